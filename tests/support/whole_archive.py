"""An archive of a checkpoint that has a watch from each source, and other archives for tests."""

from __future__ import annotations

import io
import json
import tarfile
from typing import TYPE_CHECKING

import pytest

from irmapdb.archive.origins import OriginKind
from irmapdb.criu.check.restore import check_images
from irmapdb.errors import ImageError
from tests.support.archives import (
    CONTAINER_ID,
    config_dump,
    engine_files,
    files_img,
    mountpoints,
    pack,
    tar_of,
)

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "DATA",
    "FORMS",
    "HOSTS",
    "MOUNTS",
    "PATHS",
    "SPEC_MOUNTS",
    "TMPFS",
    "refusal",
    "tar_with",
    "unpack",
    "whole",
    "write",
]

FORMS = ("tar", "gzip", "zstd")
TMPFS = 0x2D
SHM = 0x2E
DATA = 0x2F
HOSTS = 0x30
"""Devices of mounts."""
PATHS = {
    b"/etc/nginx": (OriginKind.ROOT, "the image"),
    b"/etc/changed": (OriginKind.DIFF, "rootfs-diff.tar"),
    b"/etc/gone": (OriginKind.ROOT, "missing (deleted.files has it)"),
    b"/tmp/inside": (OriginKind.TMPFS, "tmpfs-dev-45.tar.gz.img"),
    b"/tmp/lost": (OriginKind.TMPFS, "missing (tmpfs-dev-45.tar.gz.img lacks it)"),
    b"/dev/shm/segment": (OriginKind.TMPFS, "devshm-checkpoint.tar"),
    b"/data/file": (OriginKind.BIND, "the mount /data (/srv/caf\\xe9/file on the host)"),
    b"/etc/hosts": (OriginKind.ENGINE, "the mount /etc/hosts"),
    b"/var/lib/db/row": (OriginKind.VOLUME, "volumes/db.tar"),
    b"/proc/sys": (OriginKind.MOUNT, "the mount /proc"),
    None: (None, "the handle, without a path"),
}
"""Each watched path, the kind of its source, and the place of that in words."""
MOUNTS = {
    b"/tmp": TMPFS,
    b"/dev/shm": SHM,
    b"/data": DATA,
    b"/etc/hosts": HOSTS,
    b"/var/lib/db": 0x31,
    b"/proc": 4,
}
SPEC_MOUNTS = [
    {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
    {"destination": "/dev/shm", "type": "bind", "source": f"/run/{CONTAINER_ID}/shm"},
    {"destination": "/data", "type": "bind", "source": "/srv/caf\udce9"},
    {"destination": "/etc/hosts", "type": "bind", "source": f"/c/{CONTAINER_ID}/hosts"},
    {"destination": "/var/lib/db", "type": "bind", "source": "/volumes/db/_data"},
]


def write(path: Path, files: dict[str, bytes], form: str = "tar") -> Path:
    """Make an archive of these files in one of FORMS; returns its path."""
    path.write_bytes(pack(tar_of(files), form))
    return path


def whole(engine: str) -> dict[str, bytes]:
    """The files of an archive of this engine, with a watch from each source (PATHS)."""
    images = {
        "files.img": files_img(PATHS),
        "mountpoints-13.img": mountpoints(MOUNTS),
        f"tmpfs-dev-{TMPFS}.tar.gz.img": pack(tar_of({"./": b"", "./inside": b"x"}), "gzip"),
    }
    more = {
        "config.dump": config_dump(namedVolumes=[{"volumeName": "db", "dest": "/var/lib/db"}]),
        "rootfs-diff.tar": tar_of({"etc/": b"", "etc/changed": b"new"}),
        "deleted.files": json.dumps(["/etc/gone"]).encode(),
        "devshm-checkpoint.tar": tar_of({"segment": b"x"}),
        "volumes/db.tar": tar_of({"row": b"x"}),
    }
    return {**engine_files(engine, images, mounts=SPEC_MOUNTS, more=more), **more}


def unpack(archive: Path, to: Path) -> Path:
    """Unpack it into a new directory, which is returned."""
    to.mkdir()
    with tarfile.open(archive) as tar:
        tar.extractall(to, filter="data")
    return to


def tar_with(*infos: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """A tar archive of these members, in this order."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for info, content in infos:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return made.getvalue()


def refusal(path: Path) -> str:
    """The message of the error with which an archive is refused."""
    with pytest.raises(ImageError) as caught:
        check_images(path, None)
    return str(caught.value)
