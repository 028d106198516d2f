"""Finds containers with the annotation `org.criu.config`, which names another file for CRIU.

The annotation is in the OCI `config.json` of a container; runc's state has it as a label, and crun
copies the file into its state. A tenant may own the bundle of a container and change the
`config.json` there later; no runtime reads that at a checkpoint. The value comes from the user of
the engine, so it is only compared and read, never written.

Sources: runc's docs/checkpoint-restore.md; runc(8), crun(1) for the directories of the state.
"""

from __future__ import annotations

import functools
import time

from irmapdb.kernel.child_call import ask_in_child
from irmapdb.node.engine_names import GRAPH_ROOTS, runc_annotations
from irmapdb.node.guarded_json import GuardedFiles
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path

__all__ = ["AnnotatedContainer", "annotated_containers", "files_by_id", "files_with_hook"]

_PATIENCE_S = 3.0
"""The time for all files of annotations together, and if one does not answer, for each alone."""
_PATIENCE_FOR_EACH_S = 0.5
_ANNOTATION = "org.criu.config"
_RUNC = "/run/runc"
_CRUN = "/run/crun"
_CONTAINERD = "/run/containerd/io.containerd.runtime.v2.task"


class AnnotatedContainer(Record):
    """A container, and the value of its annotation."""

    id: str
    file: str
    """"" if the annotation is empty: CRIU reads no file of the runtime then."""


def annotated_containers(root: Path) -> tuple[AnnotatedContainer, ...]:
    """All containers with the annotation. A file that cannot be read is left out."""
    return tuple(
        AnnotatedContainer(id_, file)
        for id_, found in sorted(files_by_id(root).items())
        for file in sorted(one for one in found if one is not None)
    )


def files_by_id(root: Path) -> dict[str, frozenset[str | None]]:
    """The annotations of the containers with each id; None for a container without one.

    Two runtimes, and two namespaces of containerd, can have a container of the same name.
    """
    found: dict[str, set[str | None]] = {}
    for id_, texts in _all_annotations(GuardedFiles(str(root).rstrip("/"))):
        value = texts.get(_ANNOTATION)
        file = _as_criu_reads(value) if isinstance(value, str) else None
        found.setdefault(id_, set()).add(file)
    return {id_: frozenset(files) for id_, files in found.items()}


def files_with_hook(named: Collection[str], has_hook: Callable[[str], bool]) -> frozenset[str]:
    """Those of the files for which `has_hook` returns True; not a file that does not answer.

    In a child process: a tenant chose the files, and can have them on a filesystem of its own.
    """
    found = ask_in_child(lambda: set(filter(has_hook, named)), lambda _: None, _PATIENCE_S)
    if found is not None:
        return frozenset(found)
    end_s = time.monotonic() + _PATIENCE_S

    def answers(file: str) -> bool:
        call = functools.partial(has_hook, file)
        is_early = time.monotonic() < end_s
        return is_early and ask_in_child(call, lambda _: False, _PATIENCE_FOR_EACH_S)

    return frozenset(filter(answers, named))


def _as_criu_reads(value: str) -> str:
    # CRIU is written in C: the name ends at a NUL. Half a surrogate pair has no bytes.
    return value.partition("\0")[0].encode("utf-8", "replace").decode()


def _all_annotations(files: GuardedFiles) -> Iterator[tuple[str, dict[str, object]]]:
    for id_ in files.names(_RUNC):
        yield id_, runc_annotations(files.document(f"{_RUNC}/{id_}/state.json"))
    yield from _of_bundles(files, _CRUN)
    for namespace in files.names(_CONTAINERD):
        yield from _of_bundles(files, f"{_CONTAINERD}/{namespace}")
    for graph_root in GRAPH_ROOTS:
        yield from _of_bundles(files, f"{graph_root}/overlay-containers", "/userdata")


def _of_bundles(
    files: GuardedFiles, directory: str, below: str = ""
) -> Iterator[tuple[str, dict[str, object]]]:
    for id_ in files.names(directory):
        document = files.document(f"{directory}/{id_}{below}/config.json")
        if document is not None:
            found = document.get("annotations") if isinstance(document, dict) else None
            yield id_, found if isinstance(found, dict) else {}
