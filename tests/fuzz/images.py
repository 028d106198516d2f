"""Targets: CRIU's images and crit's JSON."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from irmapdb.errors import ImageError
from irmapdb.image import fsnotify
from irmapdb.image.cache import decode_cache, encode_cache, loadable
from irmapdb.image.critjson import decode_json, encode_json
from irmapdb.image.formats import Format, sniff
from irmapdb.image.magic import FANOTIFY_FILE, FILES, HEADER, INOTIFY_FILE, IRMAP_CACHE
from irmapdb.model import CacheEntry, Mark, MarkKind, Watch, WatchFile, WatchKind
from tests.fuzz.target import Target, check, refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from irmapdb.image.fsnotify import FsnotifyFile, FsnotifyWatch
    from irmapdb.model import FileHandle, Identity

__all__ = ["TARGETS"]

_DATA = Path(__file__).parent.parent / "data" / "images"
_NAME = "input"


def _images() -> Iterator[bytes]:
    for path in sorted(_DATA.glob("*.irmap-cache")):
        yield path.read_bytes()


# --- irmap-cache --------------------------------------------------------------------------------

_ENTRY = struct.Struct("<IQB")
_MOST_ENTRIES = 4  # more take longer and reach no other code


def _entries_from(data: bytes) -> list[CacheEntry]:
    """Any list of entries that an image can hold, made of the bytes of an input."""
    entries, at = [], 0
    while len(data) - at >= _ENTRY.size and len(entries) < _MOST_ENTRIES:
        kdev, ino, length = _ENTRY.unpack_from(data, at)
        at += _ENTRY.size
        entries.append(CacheEntry(kdev, ino, data[at : at + length]))
        at += length
    return entries


def _check_forms(entries: tuple[CacheEntry, ...]) -> None:
    """Every form gives the same entries back."""
    image = encode_cache(entries)
    check(decode_cache(image, _NAME) == entries, "image: another list came back")
    check(loadable(image), "image: CRIU would not load our image")
    check(sniff(image, _NAME) is Format.PB, "image: not told as one")
    pretty = bool(len(image) & 1)  # one of the two forms is enough for one input
    text = encode_json(entries, pretty=pretty)
    check(decode_json(text, _NAME) == entries, f"JSON, {pretty=}: another list came back")
    check(sniff(text, _NAME) is Format.JSON, "JSON: not told as JSON")
    check(len(json.loads(text)["entries"]) == len(entries), "JSON: another number of entries")


def _cache(data: bytes) -> None:
    _check_forms(tuple(_entries_from(data)))
    with refusal(ImageError):
        sniff(data, _NAME)
    entries: tuple[CacheEntry, ...] = ()
    with refusal(ImageError) as refused:
        entries = decode_cache(data, _NAME)
    can_load = loadable(data)
    if refused:
        return
    check(can_load, "read here, and not loadable by CRIU")
    check(encode_cache(entries) == data, "not byte for byte what was read")
    _check_forms(entries)


# --- crit's JSON --------------------------------------------------------------------------------


def _json(data: bytes) -> None:
    entries: tuple[CacheEntry, ...] = ()
    with refusal(ImageError) as refused:
        entries = decode_json(data, _NAME)
    if refused:
        return
    _check_forms(entries)
    document = json.loads(data)
    check(document["magic"] == "IRMAP_CACHE", "the JSON of another image")
    check(len(document["entries"]) == len(entries), "another number of entries")
    for row, entry in zip(document["entries"], entries, strict=True):
        check(os.fsencode(row["path"]) == entry.path, "another path")
        check(int(row["inode"]) == entry.ino, "another inode")


# --- fsnotify images ----------------------------------------------------------------------------


def _watch(file: FsnotifyFile, watch: FsnotifyWatch) -> Watch:
    return Watch(
        1,
        file.id,
        file.kind,
        watch.wd,
        watch.identity,
        watch.mask,
        watch.ignored_mask,
        watch.mflags,
    )


def _as_watched(file: FsnotifyFile) -> WatchFile:
    """The descriptor that would make such an entry."""
    marks = tuple(
        Mark(1, file.id, MarkKind.MOUNT, one.mnt_id, one.mask, one.ignored_mask, one.mflags)
        for one in file.mount_marks
    )
    watches = tuple(_watch(file, watch) for watch in file.watches)
    return WatchFile(1, file.id, file.kind, file.flags, file.faflags, file.evflags, watches, marks)


def _handle(handle: FileHandle | None) -> FileHandle | None:
    # Without bytes and type it is none.
    return handle if handle is not None and (handle.type or handle.data) else None


def _normal(file: FsnotifyFile) -> FsnotifyFile:
    """The part of a descriptor that an image of ours holds."""
    watches = tuple(
        one._replace(
            identity=one.identity._replace(handle=_handle(one.identity.handle)),
            path=None,
            mnt_id=None,
        )
        for one in file.watches
    )
    marks = tuple(one._replace(kdev=0, path=None) for one in file.mount_marks)
    return file._replace(id=0, flags=file.flags & ~os.O_CLOEXEC, watches=watches, mount_marks=marks)


def _check_written(
    files: tuple[FsnotifyFile, ...],
    encode: Callable[[list[WatchFile], Callable[[Identity], bytes | None]], bytes],
    decode: Callable[[bytes, str], tuple[FsnotifyFile, ...]],
) -> None:
    image = b""
    with refusal(ImageError) as refused:  # a handle longer than an image holds
        image = encode([_as_watched(file) for file in files], lambda _identity: b"/a\xff")
    if refused:
        return
    again = decode(image, _NAME)
    check([file.id for file in again] == list(range(1, len(files) + 1)), "another numbering")
    check(list(map(_normal, again)) == list(map(_normal, files)), "another file came back")
    paths = {watch.path for file in again for watch in file.watches}
    check(paths <= {b"/a\xff"}, "another path came back")


def _varint(number: int) -> bytes:
    low, rest = number & 0x7F, number >> 7
    return bytes((low | 0x80,)) + _varint(rest) if rest else bytes((low,))


def _wrapped(data: bytes, field: int) -> bytes:
    """The same messages as CRIU's files.img has them: each in a FileEntry, as this field."""
    image, at = HEADER.pack(*FILES), HEADER.size
    while at < len(data):
        (size,) = struct.unpack_from("<i", data, at)
        message = data[at + 4 : at + 4 + size]
        at += 4 + size
        inner = _varint(field << 3 | 2) + _varint(len(message)) + message
        entry = b"\x08\x07" + b"\x10\x01" + inner
        image += struct.pack("<i", len(entry)) + entry
    return image


def _fsnotify(data: bytes) -> None:
    for kind, decode, encode, field in (
        (WatchKind.INOTIFY, fsnotify.decode_inotify, fsnotify.encode_inotify, 13),
        (WatchKind.FANOTIFY, fsnotify.decode_fanotify, fsnotify.encode_fanotify, 14),
    ):
        files: tuple[FsnotifyFile, ...] = ()
        with refusal(ImageError) as refused:
            files = decode(data, _NAME)
        if refused:
            continue
        check(all(file.kind is kind for file in files), "another kind of file")
        _check_written(files, encode, decode)
        check(
            fsnotify.decode_files_img(_wrapped(data, field), _NAME) == files,
            "files.img tells another change_set than the image of one kind",
        )


def _files(data: bytes) -> None:
    files: tuple[FsnotifyFile, ...] = ()
    with refusal(ImageError) as refused:
        files = fsnotify.decode_files_img(data, _NAME)
    if refused:
        return
    inotify = tuple(file for file in files if file.kind is WatchKind.INOTIFY)
    fanotify = tuple(file for file in files if file.kind is WatchKind.FANOTIFY)
    _check_written(inotify, fsnotify.encode_inotify, fsnotify.decode_inotify)
    _check_written(fanotify, fsnotify.encode_fanotify, fsnotify.decode_fanotify)


def _files_seeds() -> Iterator[bytes]:
    data = (_DATA / "files.img").read_bytes()
    yield data
    # Small ones: the first entries alone.
    at = HEADER.size
    while at < len(data):
        (size,) = struct.unpack_from("<i", data, at)
        yield data[: HEADER.size] + data[at : at + 4 + size]
        at += 4 + size


def _fsnotify_seeds() -> Iterator[bytes]:
    files = fsnotify.decode_files_img((_DATA / "files.img").read_bytes(), "files.img")
    watched = [_as_watched(file) for file in files]
    for encode in (fsnotify.encode_inotify, fsnotify.encode_fanotify):
        yield encode(watched, lambda _identity: b"/etc/caf\xe9")
        yield encode(watched[:1], lambda _identity: None)
    yield HEADER.pack(*INOTIFY_FILE)
    yield HEADER.pack(*FANOTIFY_FILE)


def _json_seeds() -> Iterator[bytes]:
    for image in _images():
        entries = decode_cache(image, "seed")[:8]
        yield encode_json(entries)
        yield encode_json(entries[:3], pretty=True)


_HEADERS = tuple(HEADER.pack(*magic) for magic in (IRMAP_CACHE, FILES, INOTIFY_FILE, FANOTIFY_FILE))

TARGETS = (
    Target(
        "cache", _cache, _images, (*_HEADERS, b"\x08", b"\x10", b"\x1a", b"/", b"/.", b"\xff"), 1024
    ),
    Target(
        "crit-json",
        _json,
        _json_seeds,
        tuple(
            word.encode()
            for word in (
                *('"magic"', '"IRMAP_CACHE"', '"entries"', '"dev"', '"inode"', '"path"', '"8:1"'),
                *("[", "]", "{", "}", ": ", ", ", "null", "true", "1e9", "-1", '"\\udc80"'),
                *('"\\ud800"', "18446744073709551616", "NaN"),
            )
        ),
        1024,
    ),
    Target("fsnotify", _fsnotify, _fsnotify_seeds, _HEADERS, 2048),
    Target("files-img", _files, _files_seeds, (*_HEADERS, b"\x6a", b"\x72"), 2048),
)
