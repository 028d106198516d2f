"""Finds the checkpoint in an archive file, and keeps its small files.

    podman, CRI-O, containerd's CRI = checkpoint/ (the images), beside it config.dump, spec.dump,
                                      rootfs-diff.tar, deleted.files, stats-dump, …
    an images dir that was packed   = the images at the top, or in one directory
    `ctr images export`             = a layer with the images at the top

The archive is read once for these files, and for the archives inside it that are small
(`rootfs-diff.tar`, the content of a tmpfs). If a watch needs a name in a larger one, the archive is
read once more. Nothing is unpacked to disk. At most `KEPT_BYTES` are in memory; the memory contents
of the tasks are passed over.
"""

from __future__ import annotations

import io
import os
import re

from irmapdb.archive.decompress import Allowance, unpacked
from irmapdb.archive.members import walk
from irmapdb.archive.tar import Meter, members
from irmapdb.errors import ImageError
from irmapdb.model import printable, printable_text
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from pathlib import Path

    from irmapdb.archive.decompress import Peekable
    from irmapdb.archive.members import Found
    from irmapdb.archive.tar import Reader

__all__ = [
    "FILES_IMG_LIMIT_BYTES",
    "GHOST_HEAD_BYTES",
    "KEPT_BYTES",
    "LIMIT_MOUNTS",
    "LIMIT_WATCHES",
    "Inside",
    "Layout",
    "in_layers",
    "limit_of",
    "look_into",
    "names_inside",
    "read_layout",
]

KEPT_BYTES = 96 << 20
"""All files of an archive that are kept in memory together."""
FILES_IMG_LIMIT_BYTES = 32 << 20
"""The largest part of the `files.img` of an archive that is read."""
LIMIT_WATCHES = 300_000
"""An archive with more watches is refused."""
LIMIT_MOUNTS = 100_000
"""An archive with more mounts, in all mount namespaces together, is refused. The kernel allows this
number in one of them (`fs.mount-max`)."""
GHOST_HEAD_BYTES = 4096
"""The first entry of a `ghost-file-N.img`; the content of the file is behind it."""

_INVENTORY = "inventory.img"
_FILES = "files.img"
_HEAD_ONLY = re.compile(r"ghost-file-[0-9a-f]+\.img|dump\.log|status(?:\.dump)?")
_LONGEST_PLACE = 4096
"""No file of a checkpoint has a longer name. A name may have 1 MiB, and all would be kept."""
_DEEPEST = 2
"""A checkpoint is not deeper in an archive than NAME/checkpoint/."""
_KEPT = re.compile(
    r"files\.img|inventory\.img|mountpoints-[0-9]+\.img|config\.dump|spec\.dump|deleted\.files"
    r"|stats-dump"
)
_INSIDE = re.compile(r"tmpfs-dev-[0-9]+\.tar\.gz\.img|rootfs-diff\.tar|devshm-checkpoint\.tar")
_VOLUME = re.compile(r"volumes/[^/]+\.tar")
_LIMITS_BYTES = {_FILES: FILES_IMG_LIMIT_BYTES, "deleted.files": 8 << 20, "dump.log": 64 << 10}
_LIMIT_BYTES = 4 << 20
_SMALL_BYTES = 16 << 20
"""All archives inside that are kept in memory together."""
_CHUNK_BYTES = 1 << 20


class Layout(Record):
    """The files of the one checkpoint in an archive."""

    images: dict[str, bytes]
    """By name; of a `ghost-file-N.img` the first `GHOST_HEAD_BYTES`."""
    beside: dict[str, bytes]
    """The files of the engine: those beside the directory of the images, or among them."""
    inside: dict[str, str]
    """The archives inside it: name → place. `tmpfs-dev-45.tar.gz.img`, `rootfs-diff.tar`,
    `volumes/NAME.tar`."""
    small: dict[str, bytes]
    """The bytes of those that are small, by place."""
    in_layer: bool
    """Whether it is in a layer of an image."""


class Inside(Record):
    """Which of the wanted names an archive inside has."""

    found: frozenset[bytes]
    links: frozenset[bytes]
    """Those of them that are symbolic links."""
    why: str
    """Why not all its members were read; empty if they were."""


class _Kept:
    """The results of the first pass, by place."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._size = 0
        self.files: dict[str, bytes] = {}
        self.inside: set[str] = set()
        self.small: dict[str, bytes] = {}
        self._small_bytes = 0
        self.links: set[str] = set()

    def take(self, one: Found) -> None:
        if one.place.rpartition("!")[2].count("/") > _DEEPEST:
            return  # a file of the root of an image, for example
        if len(one.place) > _LONGEST_PLACE:
            return
        base = one.place.rpartition("/")[2].rpartition("!")[2]
        if _INSIDE.fullmatch(base) or _VOLUME.search(one.place):
            self._take_inside(one)
            return
        head_only = _HEAD_ONLY.fullmatch(base) is not None
        if not head_only and _KEPT.fullmatch(base) is None:
            return
        # A tar may have a name twice: the later one counts.
        self._forget(one.place)
        if not one.is_regular:
            self.links.add(one.place)
            return
        limit = GHOST_HEAD_BYTES if base.startswith(("ghost", "status")) else limit_of(base)
        if one.size_bytes > limit and not head_only:
            message = f"{self._name}: {printable_text(one.place)}: {one.size_bytes:,} bytes"
            advice = f"more than {limit:,} bytes are not read; unpack it and name the directory"
            raise ImageError(message, advice=advice)
        data = _read(one.content, min(limit, one.size_bytes))
        self._size += len(data) + GHOST_HEAD_BYTES  # with the memory that Python needs for it
        if self._size > KEPT_BYTES:
            message = f"{self._name}: its images have more than {KEPT_BYTES:,} bytes"
            raise ImageError(message, advice="unpack it and name the directory")
        self.files[one.place] = data

    def _take_inside(self, one: Found) -> None:
        old = self.small.pop(one.place, b"")
        self._small_bytes -= len(old)
        self._size += GHOST_HEAD_BYTES
        if not one.is_regular or self._size > KEPT_BYTES:
            self.inside.discard(one.place)
            return
        self.inside.add(one.place)
        if self._small_bytes + one.size_bytes <= _SMALL_BYTES:
            self.small[one.place] = _read(one.content, one.size_bytes)
            self._small_bytes += one.size_bytes

    def _forget(self, place: str) -> None:
        old = self.files.pop(place, None)
        if old is not None:
            self._size -= len(old) + GHOST_HEAD_BYTES
        self.links.discard(place)


def read_layout(path: Path) -> Layout:
    """The files of the checkpoint in an archive file.

    ImageError if there is none or more than one, if a needed file is a link, and as
    `irmapdb.archive.members.walk`; FileError.
    """
    name = printable(path)
    kept = _Kept(name)
    for one in walk(path):
        kept.take(one)
    return _of_one(kept, name)


def _of_one(kept: _Kept, name: str) -> Layout:
    tops = [place.removesuffix(_INVENTORY) for place in kept.files if _is(place, _INVENTORY)]
    # A pre-dump has an inventory, and no files.img.
    whole = [top for top in tops if f"{top}{_FILES}" in kept.files]
    if len(whole) != 1:
        raise _not_one(kept, name, tops, whole)
    (top,) = whole
    links = [place for place in kept.links if place.startswith(top)]
    if links:
        message = f"{name}: {printable_text(links[0])}: a link, not a file"
        raise ImageError(message, advice="no engine makes such an archive: do not trust it")
    layer, bang, directory = top.rpartition("!")
    parent = directory.rstrip("/").rpartition("/")[0]
    around = f"{layer}{bang}{parent}{'/' if parent else ''}"
    images = _below(kept.files, top)
    beside = {**images, **_below(kept.files, around)}
    places = {**_places(kept.inside, top), **_places(kept.inside, around)}
    small = {place: kept.small[place] for place in places.values() if place in kept.small}
    return Layout(images, beside, places, small, bool(bang))


def _is(place: str, base: str) -> bool:
    return place.rpartition("!")[2].rpartition("/")[2] == base


def _below(found: Mapping[str, bytes], top: str) -> dict[str, bytes]:
    cut = {place[len(top) :]: data for place, data in found.items() if place.startswith(top)}
    return {rest: data for rest, data in cut.items() if "/" not in rest and "!" not in rest}


def _places(inside: Iterable[str], top: str) -> dict[str, str]:
    cut = {place[len(top) :]: place for place in inside if place.startswith(top)}
    return {
        rest: place
        for rest, place in cut.items()
        if _VOLUME.fullmatch(rest) or _INSIDE.fullmatch(rest)
    }


def _not_one(kept: _Kept, name: str, tops: list[str], whole: list[str]) -> ImageError:
    if len(whole) > 1:
        shown = ", ".join(printable_text(top or ".") for top in sorted(whole)[:3])
        message = f"{name}: {len(whole)} checkpoints ({shown}{', …' if len(whole) > 3 else ''})"  # noqa: PLR2004 the first three
        return ImageError(message, advice="unpack it and name one of the directories")
    if tops:
        message = f"{name}: no {_FILES}, so it holds no open files: a pre-dump, or an older CRIU's"
        return ImageError(message, advice="name the archive of a whole dump")
    if any(_is(place, _FILES) for place in kept.files):
        message = f"{name}: no {_INVENTORY}, so no images of a whole dump"
        return ImageError(message, advice="have the checkpoint made again")
    message = f"{name}: no checkpoint in it: no {_INVENTORY} anywhere"
    return ImageError(message, advice="name the archive of a checkpoint, or its images dir")


def limit_of(base: str) -> int:
    """The number of bytes that are read of a file of this name."""
    return _LIMITS_BYTES.get(base, _LIMIT_BYTES)


def _read(content: Reader, size: int) -> bytes:
    chunks = []
    left = size
    while left > 0 and (chunk := content.read(min(left, _CHUNK_BYTES))):
        chunks.append(chunk)
        left -= len(chunk)
    return b"".join(chunks)


def look_into(
    path: Path, small: Mapping[str, bytes], wanted: Mapping[str, Collection[bytes]]
) -> dict[str, Inside]:
    """For each archive inside, by its place, which of the wanted names it has.

    `small` has the bytes of some. Errors are as in `read_layout`; one within an archive inside is
    in `why`.
    """
    allowance = Allowance()
    answers = {
        place: _inside(io.BytesIO(small[place]), place, names, allowance)
        for place, names in wanted.items()
        if place in small
    }
    if len(answers) == len(wanted):
        return answers
    for one in walk(path, allowance):
        if one.place in wanted and one.place not in small and one.is_regular:
            answers[one.place] = _inside(one.content, one.place, wanted[one.place], allowance)
            if len(answers) == len(wanted):
                break
    return answers


def in_layers(path: Path, wanted: Collection[bytes]) -> frozenset[bytes]:
    """Which of the wanted names the layers of an image file have. Errors as in `read_layout`."""
    places = ((one.place.partition("!")[2]) for one in walk(path))
    return frozenset(name for name in map(os.fsencode, places) if name in wanted)


def _inside(content: Reader, place: str, wanted: Collection[bytes], allowance: Allowance) -> Inside:
    name = printable_text(place)
    with unpacked(content, name, allowance) as stream:
        return names_inside(stream, name, wanted)


def names_inside(stream: Peekable, name: str, wanted: Collection[bytes]) -> Inside:
    """Which of the wanted names, without `./` and `/` at the ends, are members."""
    found: dict[bytes, bool] = {}
    why = ""
    try:
        for member in members(stream, Meter(name)):
            plain = member.name.removeprefix(b"./").strip(b"/")
            if plain in wanted:
                found[plain] = member.is_symlink
                if len(found) == len(wanted):
                    break
    except ImageError as error:
        why = str(error)
    links = (plain for plain, is_symlink in found.items() if is_symlink)
    return Inside(frozenset(found), frozenset(links), why)
