"""Reads the container of a checkpoint: name, image, engine, mounts, version of CRIU.

podman and CRI-O write `config.dump` and `spec.dump`, containerd's CRI plugin too, with other
fields. `spec.dump` is the OCI runtime's config.json. CRIU's version is in no image; only a
`dump.log` that the engine packed has it. Sources: config.dump and spec.dump as podman 4.3.1 writes
them; the annotations of CRI-O's and containerd's documentation.

The archive can have any content: a field of another type counts as absent.
"""

from __future__ import annotations

import json
import re

from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from irmapdb.archive.files import CheckpointFiles

__all__ = ["DumpedContainer", "SpecMount", "read_container"]

_VERSION = re.compile(rb"^[^\n]*\bVersion: ([0-9][0-9A-Za-z.+~-]{0,40}) \(gitid ", re.MULTILINE)
_MANAGERS = {"libpod": "podman", "cri-o": "cri-o"}
_TEXT_LIMIT = 4096
_OF_NO_VOLUME = {"/", "\0"}
"""The name of a volume is that of a file: `volumes/NAME.tar`."""


class SpecMount(Record):
    """A mount of the container, as its engine wanted it."""

    destination: bytes
    """The mount point, absolute in the container."""
    type: str
    """`bind`, `tmpfs`, `proc`, …"""
    source: bytes
    """Of a bind mount: the file or directory on the host."""
    volume: str
    """The name of the engine's volume; empty: none."""


class DumpedContainer(Record):
    """The container of a checkpoint. An empty text: not known."""

    engine: str
    """`podman`, `cri-o`, `containerd`."""
    runtime: str
    """`runc`, `crun`."""
    id: str
    name: str
    image: str
    pod: str
    """NAMESPACE/NAME of the Kubernetes pod."""
    criu_version: str
    mounts: tuple[SpecMount, ...]

    @property
    def is_of_engine(self) -> bool:
        """Whether an engine made the checkpoint, and so will restore its root too."""
        return bool(self.engine)


def read_container(checkpoint: CheckpointFiles) -> DumpedContainer:
    """The content of the engine's files. ImageError or FileError if one cannot be read."""
    config = _object(checkpoint.beside("config.dump"))
    spec = _object(checkpoint.beside("spec.dump"))
    notes = _dict(spec.get("annotations"))
    engine = ""
    if config or spec:
        engine = _MANAGERS.get(_text(notes.get("io.container.manager")), "")
        engine = engine or ("containerd" if _is_containerd(checkpoint, notes) else "")
        engine = engine or ("podman" if "rootfsImageID" in config else "")
    elif checkpoint.in_layer:
        engine = "containerd"  # `ctr containers checkpoint` packs the images alone
    return DumpedContainer(
        engine=engine,
        runtime=_text(config.get("runtime")),
        id=_text(config.get("id")),
        name=_first(notes, "io.kubernetes.container.name", "io.kubernetes.cri.container-name")
        or _text(config.get("name")),
        image=_image(config, notes),
        pod=_pod(notes),
        criu_version=_criu_version(checkpoint),
        mounts=_mounts(spec, config),
    )


def _is_containerd(checkpoint: CheckpointFiles, notes: dict[str, Any]) -> bool:
    if any(name.startswith("io.kubernetes.cri.") for name in notes):
        return True
    return checkpoint.beside("status") is not None or checkpoint.beside("status.dump") is not None


def _image(config: dict[str, Any], notes: dict[str, Any]) -> str:
    named = _text(config.get("rootfsImageName")) or _text(config.get("rootfsImage"))
    return named or _first(notes, "io.kubernetes.cri-o.ImageName", "io.kubernetes.cri.image-name")


def _pod(notes: dict[str, Any]) -> str:
    name = _first(notes, "io.kubernetes.pod.name", "io.kubernetes.cri.sandbox-name")
    if not name:
        return ""
    space = _first(notes, "io.kubernetes.pod.namespace", "io.kubernetes.cri.sandbox-namespace")
    return f"{space}/{name}" if space else name


def _criu_version(checkpoint: CheckpointFiles) -> str:
    found = _VERSION.search(checkpoint.beside("dump.log") or b"")
    return found[1].decode() if found else ""


def _mounts(spec: dict[str, Any], config: dict[str, Any]) -> tuple[SpecMount, ...]:
    volumes = {
        _bytes(_dict(one).get("dest")): _volume(_dict(one).get("volumeName"))
        for one in _list(config.get("namedVolumes"))
    }
    found = []
    for one in map(_dict, _list(spec.get("mounts"))):
        destination = _bytes(one.get("destination"))
        if destination.startswith(b"/"):
            plain = b"/" + destination.strip(b"/")
            kind = _text(one.get("type")) or "bind"
            volume = volumes.get(destination, "")
            found.append(SpecMount(plain, kind, _bytes(one.get("source")), volume))
    return tuple(found)


def _object(data: bytes | None) -> dict[str, Any]:
    if data is None:
        return {}
    try:
        return _dict(json.loads(data))
    except (ValueError, RecursionError):
        return {}


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: object) -> str:
    # JSON may have halves of surrogate pairs, and no encoding has these.
    return _raw(value).encode("utf-8", "replace").decode()


def _volume(value: object) -> str:
    name = _text(value)
    return "" if _OF_NO_VOLUME & {*name} else name


def _raw(value: object) -> str:
    return value[:_TEXT_LIMIT] if isinstance(value, str) else ""


def _bytes(value: object) -> bytes:
    text = _raw(value).partition("\0")[0]
    # A lone surrogate that is no byte of surrogateescape has no bytes.
    return text.encode("utf-8", "surrogateescape") if _is_encodable(text) else b""


def _is_encodable(text: str) -> bool:
    return not re.search("[\ud800-\udc7f\udd00-\udfff]", text)


def _first(notes: dict[str, Any], *names: str) -> str:
    return next((found for name in names if (found := _text(notes.get(name)))), "")
