"""Finds containers with the annotation `org.criu.config`, which names another file for CRIU.

The annotation is in the OCI `config.json` of a container; runc's state has it as a label. Its value
comes from the user of the engine, so it is only compared and read, never written.

Sources: runc's docs/checkpoint-restore.md; runc(8), crun(1) for the directories of the state.
"""

from __future__ import annotations

import functools
import json
import os
import time

from irmapdb import files
from irmapdb.errors import FileError
from irmapdb.kernel.child_call import ask_in_child
from irmapdb.node.engine_names import GRAPH_ROOTS
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path

__all__ = ["AnnotatedContainer", "annotated_containers", "files_with_hook"]

_PATIENCE_S = 3.0
"""The time for all files of annotations together, and if one does not answer, for each alone."""
_PATIENCE_FOR_EACH_S = 0.5
_LIMIT_BYTES = 1 << 20
_MOST_NAMES = 10_000
_ANNOTATION = "org.criu.config"
_RUNC = "run/runc"
_CRUN = "run/crun"
_CONTAINERD = "run/containerd/io.containerd.runtime.v2.task"


class AnnotatedContainer(Record):
    """A container, and the value of its annotation."""

    id: str
    file: str
    """"" if the annotation is empty: CRIU reads no file of the runtime then."""


def annotated_containers(root: Path) -> tuple[AnnotatedContainer, ...]:
    """All containers with the annotation. A file that cannot be read is left out."""
    found: dict[str, AnnotatedContainer] = {}
    for id_, texts in _all_annotations(root):
        value = texts.get(_ANNOTATION)
        if isinstance(value, str):
            found[id_] = AnnotatedContainer(id_, _as_criu_reads(value))
    return tuple(found[id_] for id_ in sorted(found))


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


def _all_annotations(root: Path) -> Iterator[tuple[str, dict[str, object]]]:
    for id_ in _names(f"{root / _RUNC}"):
        labels = _field(_document(f"{root / _RUNC}/{id_}/state.json"), "config", "labels")
        words = [one for one in labels if isinstance(one, str)] if isinstance(labels, list) else []
        yield id_, dict(word.partition("=")[::2] for word in words)
    for id_ in _names(f"{root / _CRUN}"):
        bundle = _field(_document(f"{root / _CRUN}/{id_}/status"), "bundle")
        if isinstance(bundle, str):
            yield id_, _annotations(bundle)
    for namespace in _names(f"{root / _CONTAINERD}"):
        top = f"{root / _CONTAINERD}/{namespace}"
        for id_ in _names(top):
            yield id_, _annotations(f"{top}/{id_}")
    for graph_root in GRAPH_ROOTS:
        place = f"{graph_root.removeprefix('/')}/overlay-containers"
        for id_ in _names(f"{root / place}"):
            yield id_, _annotations(f"{root / place}/{id_}/userdata")


def _annotations(bundle: str) -> dict[str, object]:
    found = _field(_document(f"{bundle}/config.json"), "annotations")
    return found if isinstance(found, dict) else {}


def _names(directory: str) -> list[str]:
    try:
        with os.scandir(directory) as entries:
            return [entry.name for entry, _ in zip(entries, range(_MOST_NAMES), strict=False)]
    except OSError:
        return []


def _document(path: str) -> object:
    # None if it is missing, half written, or too long.
    try:
        data = files.read_if_there(os.fsencode(path), limit_bytes=_LIMIT_BYTES)
        return None if data is None else json.loads(data)
    except (FileError, ValueError, RecursionError):
        return None


def _field(document: object, *names: str) -> object:
    for name in names:
        document = document.get(name) if isinstance(document, dict) else None
    return document
