"""Checkpoint archives in the layouts of the engines, made by hand.

The layouts are those that were seen in archives of podman 4.3.1, CRI-O and containerd: the images
in `checkpoint/`, and the files of the engine beside it.
"""

from __future__ import annotations

import gzip
import importlib
import io
import json
import sys
import tarfile
from typing import TYPE_CHECKING, Any

from irmapdb._pb.fsnotify_pb2 import FhEntry, FileEntry, FownEntry, InotifyFileEntry, InotifyWdEntry
from irmapdb._pb.restore_pb2 import MntEntry
from irmapdb.image.framing import join_frames
from irmapdb.image.magic import FILES, HEADER, MOUNTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "CONTAINER_ID",
    "ENGINES",
    "INVENTORY",
    "config_dump",
    "engine_files",
    "files_img",
    "many_watches",
    "mountpoints",
    "pack",
    "spec_dump",
    "tar_of",
]

CONTAINER_ID = "6924be1bd90c23f10e2667102b0ee0f74f09bba78b6661871e733cb3b1737821"
ENGINES = ("podman", "cri-o", "containerd")
INVENTORY = HEADER.pack(0x54564319, 0x58313116)
"""Nothing but its header: irmapdb looks whether it is there."""

_DUMP_LOG = b"(00.000000) Version: 4.1.1 (gitid 0)\n(00.000010) Running on node Linux\n"


def files_img(paths: Iterable[bytes | None], *, mnt_id: int | None = None) -> bytes:
    """An image with one inotify descriptor: wd 1, 2, … on these paths, on one device."""

    def watch(number: int, path: bytes | None) -> InotifyWdEntry:
        handle = FhEntry(n_bytes=8, type=1, handle=[number], path=path, mnt_id=mnt_id)
        return InotifyWdEntry(
            id=0,
            i_ino=number,
            mask=0x20,
            ignored_mask=0,
            s_dev=0x7F0000F,
            wd=number,
            f_handle=handle,
        )

    watches = [watch(number, path) for number, path in enumerate(paths, 1)]
    fown = FownEntry(uid=0, euid=0, signum=0, pid_type=0, pid=0)
    file = InotifyFileEntry(id=7, flags=0, fown=fown, wd=watches)
    entry = FileEntry(type=11, id=7, ify=file)
    return join_frames(FILES, [entry.SerializeToString()])


def many_watches(count: int) -> bytes:
    """A `files.img` with this number of watches, each as small as possible."""
    handle = FhEntry(n_bytes=0, type=0, path=b"")
    watch = InotifyWdEntry(
        id=0, i_ino=1, mask=1, ignored_mask=0, s_dev=1, wd=1, f_handle=handle
    ).SerializeToString()
    fown = FownEntry(uid=0, euid=0, signum=0, pid_type=0, pid=0)
    file = InotifyFileEntry(id=7, flags=0, fown=fown).SerializeToString()
    file += (b"\x2a" + bytes((len(watch),)) + watch) * count
    return join_frames(FILES, [b"\x08\x0b\x10\x07\x6a" + _varint(len(file)) + file])


def _varint(number: int) -> bytes:
    low, rest = number & 0x7F, number >> 7
    return bytes((low | 0x80,)) + _varint(rest) if rest else bytes((low,))


def mountpoints(mounts: Mapping[bytes, int]) -> bytes:
    """An image of a mount namespace: mount point → device; the root is there too."""
    entries = [
        MntEntry(
            fstype=0,
            mnt_id=number,
            root_dev=kdev,
            parent_mnt_id=0,
            root=b"/",
            mountpoint=mountpoint,
        )
        for number, (mountpoint, kdev) in enumerate({b"/": 1, **mounts}.items(), 10)
    ]
    return join_frames(MOUNTS, [entry.SerializeToString() for entry in entries])


def tar_of(files: Mapping[str, bytes], *, form: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar of regular files; a name that ends in `/` is a directory."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=form) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name.rstrip("/"))
            if name.endswith("/"):
                info.type = tarfile.DIRTYPE
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return made.getvalue()


def pack(data: bytes, form: str) -> bytes:
    """`tar` as it is, `gzip`, or `zstd`."""
    if form == "gzip":
        return gzip.compress(data)
    return _zstd().compress(data) if form == "zstd" else data


def _zstd() -> Any:  # noqa: ANN401 a module
    name = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    return importlib.import_module(name)


def config_dump(**more: object) -> bytes:
    """podman's and CRI-O's `config.dump`, with the fields that irmapdb reads."""
    config = {
        "id": CONTAINER_ID,
        "name": "web",
        "rootfsImageID": "a8758716bb6a",
        "rootfsImageName": "docker.io/library/nginx:latest",
        "runtime": "runc",
    }
    return json.dumps({**config, **more}).encode()


def spec_dump(engine: str, mounts: Iterable[Mapping[str, object]] = ()) -> bytes:
    """The runtime's configuration with the annotations of an engine."""
    notes: dict[str, dict[str, str]] = {
        "podman": {"io.container.manager": "libpod"},
        "cri-o": {
            "io.container.manager": "cri-o",
            "io.kubernetes.container.name": "web",
            "io.kubernetes.pod.name": "web-0",
            "io.kubernetes.pod.namespace": "shop",
        },
        "containerd": {
            "io.kubernetes.cri.container-name": "web",
            "io.kubernetes.cri.image-name": "docker.io/library/nginx:latest",
            "io.kubernetes.cri.sandbox-name": "web-0",
            "io.kubernetes.cri.sandbox-namespace": "shop",
        },
    }
    return json.dumps({"annotations": notes[engine], "mounts": list(mounts)}).encode()


def engine_files(
    engine: str,
    images: Mapping[str, bytes],
    *,
    mounts: Iterable[Mapping[str, object]] = (),
    more: Mapping[str, bytes] | None = None,
) -> dict[str, bytes]:
    """The members of an engine's archive, in its order; `images` lie in `checkpoint/`."""
    inside = {f"checkpoint/{name}": data for name, data in images.items()}
    inside |= {"checkpoint/inventory.img": INVENTORY, "checkpoint/pages-1.img": bytes(70_000)}
    shared = {"spec.dump": spec_dump(engine, mounts), **(more or {})}
    if engine == "podman":
        return {"config.dump": config_dump(), **shared, "checkpoint/": b"", **inside}
    if engine == "cri-o":
        beside = {"dump.log": _DUMP_LOG, "bind.mounts": b"[]", "config.dump": config_dump()}
        return {"checkpoint/": b"", **inside, **beside, **shared}
    config = json.dumps({"id": CONTAINER_ID, "config": {"metadata": {"name": "web"}}}).encode()
    status = {"status": b"{}", "status.dump": b"{}", "container.log": b"log\n"}
    return {"config.dump": config, **status, **shared, "checkpoint/": b"", **inside}
