"""Unpacks gzip and zstd from a stream; the form is detected from the first bytes.

    gzip = 1f 8b ...              RFC 1952
    zstd = 28 b5 2f fd ...        RFC 8878, also with skippable frames (5? 2a 4d 18) in front

A stream may be a decompression bomb: an `Allowance` ends the work after more than `FREE_BYTES` of
output, and more than `RATIO` bytes of output for each byte of input. A frame of zstd and a member
of gzip may be empty, and still take 10 µs, so after `FREE_FRAMES` each must have `FRAME_BYTES` on
average. `zstd:chunked` has a frame for each file, with the file's header of 512 bytes. zlib reads
the headers of gzip: Python's own module reads a name in a header, and zeros behind a member, one
byte at a time. zstd needs as much memory as its window has; a window of more than 128 MiB (zstd's
own default limit) is refused.
"""

from __future__ import annotations

import contextlib
import functools
import zlib

from irmapdb.errors import ImageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from irmapdb.archive.tar import Reader

__all__ = [
    "FRAME_BYTES",
    "FREE_BYTES",
    "FREE_FRAMES",
    "RATIO",
    "Allowance",
    "Peekable",
    "describe_packed",
    "is_packed",
    "unpacked",
]

FREE_BYTES = 1 << 32
"""The number of bytes that may be unpacked from the streams of an archive, for any ratio."""
RATIO = 200
"""Above `FREE_BYTES`: the number of unpacked bytes for each byte of the archive."""
FREE_FRAMES = 10_000
"""The number of frames of zstd and members of gzip that are read, for any size."""
FRAME_BYTES = 256
"""Above `FREE_FRAMES`: the number of unpacked bytes for each frame."""

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPED = tuple(bytes((0x50 + low,)) + b"\x2a\x4d\x18" for low in range(16))
_WINDOW_LOG = 27
_CHUNK_BYTES = 1 << 18
_INPUT_BYTES = 1 << 14
"""The number of bytes that a decompressor gets at a time. The rest of them is copied for the next
frame."""
_BUFFER_BYTES = 1 << 13
"""For the headers of a tar, of 512 bytes each."""
_GZIP_BITS = 31
"""zlib's largest window, with the header and the checksum of gzip: inflateInit2() of zlib.h."""

# file(1)'s magic. Each with the name of the format and the program that unpacks it.
_OTHERS = (
    (b"\xfd7zXZ\0", "xz", "unpack it first (xz -d)"),
    (b"BZh", "bzip2", "unpack it first (bzip2 -d)"),
    (b"\x04\x22\x4d\x18", "lz4", "unpack it first (lz4 -d)"),
    (b"PK\x03\x04", "a zip archive", "unpack it first (unzip)"),
    (b"age-encryption.org/", "encrypted with age", "decrypt it first (age -d)"),
    (b"-----BEGIN AGE ENCRYPTED FILE", "encrypted with age", "decrypt it first (age -d)"),
    (b"-----BEGIN PGP MESSAGE", "encrypted with PGP", "decrypt it first (gpg -d)"),
    (b"\x85\x01", "encrypted with PGP", "decrypt it first (gpg -d)"),
    (b"\x85\x02", "encrypted with PGP", "decrypt it first (gpg -d)"),
    (b"\x84", "encrypted with PGP", "decrypt it first (gpg -d)"),
    (b"\x8c\x0d", "encrypted with PGP", "decrypt it first (gpg -d)"),
    (b"Salted__", "encrypted with openssl", "decrypt it first (openssl enc -d)"),
    (b"LUKS\xba\xbe", "an encrypted disk (LUKS)", "open it first (cryptsetup)"),
)


class Allowance:
    """The bytes that may be unpacked, for an archive and all streams inside it."""

    def __init__(
        self,
        *,
        free_bytes: int = FREE_BYTES,
        ratio: int = RATIO,
        free_frames: int = FREE_FRAMES,
    ) -> None:
        self._free_bytes = free_bytes
        self._ratio = ratio
        self._free_frames = free_frames
        self._frames = 0
        self._went_in = 0
        self._came_out = 0

    def add(self, went_in: int, came_out: int, name: str) -> None:
        """ImageError, with `name` as the stream, if more came out than a checkpoint needs."""
        self._went_in += went_in
        self._came_out += came_out
        if self._came_out > max(self._free_bytes, self._ratio * self._went_in):
            message = f"{name}: {self._came_out:,} bytes came out of {self._went_in:,}"
            advice = "a decompression bomb? If you trust it, unpack it and name the directory"
            raise ImageError(message, advice=advice)

    def add_frame(self, name: str) -> None:
        """ImageError, with `name` as the stream, if there are too many for the bytes in them."""
        self._frames += 1
        if self._frames > self._free_frames + self._came_out // FRAME_BYTES:
            message = f"{name}: more than {self._frames - 1:,} frames in {self._came_out:,} bytes"
            advice = "it looks like a bomb; if you trust it, unpack it and name the directory"
            raise ImageError(message, advice=advice)


def is_packed(head: bytes) -> bool:
    """Whether a stream with these first bytes is gzip or zstd."""
    return head.startswith((_GZIP, _ZSTD, *_ZSTD_SKIPPED))


def describe_packed(head: bytes) -> tuple[str, str] | None:
    """The kind of a file that irmapdb cannot unpack, and the next step; None: not known."""
    for magic, what, advice in _OTHERS:
        if head.startswith(magic):
            return what, advice
    return None


@contextlib.contextmanager
def unpacked(stream: Reader, name: str, allowance: Allowance) -> Iterator[Peekable]:
    """The bytes of a stream of any form: plain, gzip, zstd.

    To read it raises ImageError, with `name`, if it is damaged or beyond the allowance.
    """
    source = Peekable(stream)
    head = source.peek(len(_ZSTD))
    if not is_packed(head):
        yield source
        return
    is_gzip = head.startswith(_GZIP)
    begin = functools.partial(allowance.add_frame, name)
    errors, opened = (_gzip if is_gzip else _zstd)(source, begin)
    with contextlib.closing(opened):
        yield Peekable(_Bounded(opened, errors, source, name, allowance))


class Peekable:
    """A stream whose first bytes can be looked at, and that counts the bytes read."""

    def __init__(self, stream: Reader) -> None:
        self._stream = stream
        self._head = b""
        self.count = 0
        if hasattr(stream, "jump"):
            self.jump = self._jump

    def peek(self, size: int) -> bytes:
        """The next bytes, which stay; less only at the end."""
        while len(self._head) < size and (chunk := self._stream.read(size - len(self._head))):
            self._head += chunk
        return self._head[:size]

    def read(self, size: int, /) -> bytes:
        """At most so many bytes; none at the end."""
        if not self._head and size < _BUFFER_BYTES:
            self._head = self._stream.read(_BUFFER_BYTES)
        if self._head:
            data, self._head = self._head[:size], self._head[size:]
        else:
            data = self._stream.read(size)
        self.count += len(data)
        return data

    def _jump(self, size: int) -> None:
        left = size - len(self._head)
        self._head = self._head[size:]
        if left > 0:
            self._stream.jump(left)  # type: ignore[attr-defined]


class _Bounded:
    """The bytes of a decompressor, up to the limit."""

    def __init__(
        self,
        opened: Any,  # noqa: ANN401 of either module
        errors: tuple[type[Exception], ...],
        source: Peekable,
        name: str,
        allowance: Allowance,
    ) -> None:
        self._opened = opened
        self._errors = errors
        self._source = source
        self._name = name
        self._allowance = allowance
        self._seen = 0

    def read(self, size: int, /) -> bytes:
        try:
            data: bytes = self._opened.read(size)
        except EOFError:
            raise ImageError(f"{self._name}: cut off", advice="have it made again") from None
        except self._errors as error:
            raise ImageError(f"{self._name}: {error}", advice="have it made again") from None
        went_in = self._source.count - self._seen
        self._seen = self._source.count
        self._allowance.add(went_in, len(data), self._name)
        return data


def _gzip(source: Peekable, begin: Callable[[], None]) -> tuple[tuple[type[Exception], ...], Any]:
    def new() -> _GzipMember:
        begin()
        return _GzipMember()

    return (zlib.error,), _Frames(source, new, padding=b"\0")


class _GzipMember:
    """A decompressor of one member, with the interface of ZstdDecompressor."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(wbits=_GZIP_BITS)
        self._was_full = False

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    @property
    def needs_input(self) -> bool:
        # zlib may have read all input, and have more output than it was asked for.
        return not self._was_full and not self._zlib.unconsumed_tail

    def decompress(self, data: bytes, size: int) -> bytes:
        found = self._zlib.decompress(self._zlib.unconsumed_tail + data, size)
        self._was_full = len(found) == size
        return found


def _zstd(source: Peekable, begin: Callable[[], None]) -> tuple[tuple[type[Exception], ...], Any]:
    # Only archives need it. The module is part of Python 3.14 as compression.zstd.
    try:
        from compression import zstd  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415
    except ImportError:
        from backports import zstd  # type: ignore[no-redef,unused-ignore]  # noqa: PLC0415
    options = {zstd.DecompressionParameter.window_log_max: _WINDOW_LOG}

    def new() -> Any:  # noqa: ANN401 of either module
        begin()
        return zstd.ZstdDecompressor(options=options)

    return (zstd.ZstdError,), _Frames(source, new)


class _Frames:
    """The content of all frames of a stream. It copies less than the modules' file objects.

    `padding` may stand behind a frame, any number of times.
    """

    def __init__(self, source: Peekable, new: Callable[[], Any], padding: bytes = b"") -> None:
        self._source = source
        self._new = new
        self._padding = padding
        self._frame = new()
        self._is_new = True

    def read(self, size: int, /) -> bytes:
        while True:
            given = b""
            if self._frame.eof:
                given = self._behind_frame(self._frame.unused_data)
                if not given:
                    return b""
                self._frame = self._new()
                self._is_new = True
            if not given and self._frame.needs_input:
                given = self._source.read(_INPUT_BYTES)
                if not given and self._is_new:
                    return b""
                if not given:
                    raise EOFError
            self._is_new = False
            data: bytes = self._frame.decompress(given, min(size, _CHUNK_BYTES))
            if data:
                return data

    def _behind_frame(self, given: bytes) -> bytes:
        # The beginning of the next frame; b"" at the end.
        given = given.lstrip(self._padding)
        while not given and (chunk := self._source.read(_INPUT_BYTES)):
            given = chunk.lstrip(self._padding)
        return given

    def close(self) -> None:
        pass
