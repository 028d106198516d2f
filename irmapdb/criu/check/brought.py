"""Lists the files that a restore brings along: mounts, tmpfs content, changes of a root.

A restored container gets its mounts from its runtime and from CRIU. So a file below a mount is not
missing if the bare root directory lacks it. CRIU's images have the mounts of each mount namespace
(`mountpoints-N.img`) and the files of each tmpfs (`tmpfs-dev-N.tar.gz.img`, N is its device). An
engine's checkpoint has, beside them or one directory up, the changed files of the root
(`rootfs-diff.tar`) and its removed files (`deleted.files`, a JSON list of paths).
"""

from __future__ import annotations

import gzip
import json
import zlib

from irmapdb import files
from irmapdb.errors import FileError, ImageError
from irmapdb.image.mounts import decode_ghost, decode_mounts
from irmapdb.image.tar import member_names
from irmapdb.model import printable
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path
    from typing import BinaryIO

    from irmapdb.image.mounts import DumpedMount
    from irmapdb.model import InodeKey

__all__ = ["Brought", "Origin", "read_brought"]

_GHOST_HEAD_BYTES = 4096


class Origin(Record):
    """The source of a path in a restore."""

    what: str
    """`the mount /data`, `tmpfs-dev-45.tar.gz.img`, `rootfs-diff.tar`."""
    has_it: bool | None
    """Whether the source has the path; None if the images do not show that."""
    why_not_told: str = ""


class Brought(Record):
    """All sources in the images of one tree."""

    has_mounts: bool
    """Whether the images have mounts. Without mounts, a restore opens no handle."""
    ghosts: frozenset[InodeKey]
    """Deleted files that the images contain."""
    origins: dict[tuple[bytes, int | None], Origin]
    """By path, and by the id of the mount in whose namespace it starts."""
    removed: frozenset[bytes]
    """Paths that the engine removes from the root."""

    def origin(self, path: bytes, mnt_id: int | None) -> Origin | None:
        """The source of the path; None if there is none."""
        return self.origins.get((path, mnt_id))


def read_brought(images: Path, wanted: Collection[tuple[bytes, int | None]]) -> Brought:
    """The sources of the wanted (path, mount id) in the images of a directory.

    ImageError or FileError for an image of CRIU's that is damaged or cannot be read.
    """
    namespaces = [
        decode_mounts(files.read_whole(path, limit_bytes=files.LIMIT_BYTES), printable(path))
        for path in sorted(images.glob("mountpoints-*.img"), key=_number)
    ]
    below: dict[tuple[bytes, int | None], DumpedMount] = {}
    for path, mnt_id in wanted:
        mount = _mount_of(path, mnt_id, namespaces)
        if mount is not None:
            below[path, mnt_id] = mount
    origins = _in_mounts(images, below)
    rest = {path for path, mnt_id in wanted if (path, mnt_id) not in below}
    for path, origin in _in_root_diff(images, rest).items():
        origins |= {key: origin for key in wanted if key[0] == path and key not in below}
    return Brought(bool(namespaces), _ghosts(images), origins, _removed(images))


def _number(image: Path) -> int:
    digits = image.stem.rpartition("-")[2]
    return int(digits) if digits.isdecimal() else 0


def _mount_of(
    path: bytes, mnt_id: int | None, namespaces: list[tuple[DumpedMount, ...]]
) -> DumpedMount | None:
    """The mount that a path is on; None if that is a root."""
    mine = [
        mounts
        for mounts in namespaces
        if mnt_id is None or any(mount.mnt_id == mnt_id for mount in mounts)
    ]
    # Without a mount id the path starts at the root of the root task's namespace. That namespace
    # was made first, so it has the smallest number.
    best: DumpedMount | None = None
    for mount in mine[0] if mine else ():
        if mount.mountpoint != b"/" and _is_below(path, mount.mountpoint):
            longer = best is None or len(mount.mountpoint) >= len(best.mountpoint)
            best = mount if longer else best
    return best


def _is_below(path: bytes, mountpoint: bytes) -> bool:
    return path == mountpoint or path.startswith(mountpoint + b"/")


def _in_mounts(
    images: Path, below: dict[tuple[bytes, int | None], DumpedMount]
) -> dict[tuple[bytes, int | None], Origin]:
    origins: dict[tuple[bytes, int | None], Origin] = {}
    archives: dict[Path, dict[tuple[bytes, int | None], bytes]] = {}
    for key, mount in below.items():
        archive = images / f"tmpfs-dev-{mount.kdev}.tar.gz.img"
        if archive.exists():
            inside = key[0][len(mount.mountpoint) :].strip(b"/")
            member = b"/".join(filter(None, (mount.root.strip(b"/"), inside)))
            archives.setdefault(archive, {})[key] = member
        else:
            what = f"the mount {printable(mount.mountpoint)}"
            origins[key] = Origin(what, None, "what is in it is not in the images")
    for archive, members in archives.items():
        found, why = _look_into(archive, set(members.values()))
        for key, member in members.items():
            has_it = member in found or not member
            origins[key] = Origin(archive.name, has_it or (None if why else False), why)
    return origins


def _in_root_diff(images: Path, wanted: set[bytes]) -> dict[bytes, Origin]:
    for directory in (images, images.absolute().parent):
        archive = directory / "rootfs-diff.tar"
        if archive.is_file():
            found, _ = _look_into(archive, {path.strip(b"/") for path in wanted})
            return {
                path: Origin(archive.name, has_it=True)
                for path in wanted
                if path.strip(b"/") in found
            }
    return {}


def _look_into(archive: Path, wanted: set[bytes]) -> tuple[set[bytes], str]:
    """The wanted names that are members, and the reason if not all members were read."""
    found: set[bytes] = set()
    try:
        with files.open_regular(archive) as file:
            for name in _names(file, archive):
                plain = name.removeprefix(b".").strip(b"/")
                if plain in wanted:
                    found.add(plain)
                    if len(found) == len(wanted):
                        break
    except (ImageError, FileError) as error:
        return found, str(error)
    except (OSError, EOFError, zlib.error) as error:
        return found, f"{printable(archive)}: {error}"
    return found, ""


def _names(file: BinaryIO, archive: Path) -> Iterator[bytes]:
    packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    if packed:
        with gzip.GzipFile(fileobj=file, mode="rb") as stream:
            yield from member_names(stream, printable(archive))
    else:
        yield from member_names(file, printable(archive))


def _ghosts(images: Path) -> frozenset[InodeKey]:
    found = set()
    for path in images.glob("ghost-file-*.img"):
        head = files.read_prefix(path, size_bytes=_GHOST_HEAD_BYTES)
        key = decode_ghost(head, printable(path))
        if key is not None:
            found.add(key)
    return frozenset(found)


def _removed(images: Path) -> frozenset[bytes]:
    for directory in (images, images.absolute().parent):
        data = files.read_if_there(directory / "deleted.files", limit_bytes=files.LIMIT_BYTES)
        if data is None:
            continue
        try:
            listed = json.loads(data)
        except (ValueError, RecursionError):
            return frozenset()
        names = listed if isinstance(listed, list) else ()
        return frozenset(
            b"/" + name.strip("/").encode("utf-8", "surrogateescape")
            for name in names
            if isinstance(name, str)
        )
    return frozenset()
