r"""Reads the lines of a log that may be large, hostile, cut off, or quoted by another program.

A line of CRIU, as its log.c writes it:

    line     = [time] [pid] [level] text LF
    time     = "(" seconds "." microseconds ") "    from -v3 on; 12 characters
    pid      = PID ": "                              the tasks of a restore, right-aligned
    level    = "Error (" FILE ":" LINE "): " | "Warn  (" FILE ":" LINE "): "

Engines put text of their own before it (a time, a level, the name of the program). In one line of
an engine, or in JSON, `\n` stands for the end of a line of CRIU, with one backslash or with several
if one program quotes the other. Such lines are split and unquoted.

Memory: a line is read up to 64 KiB, and a line of CRIU up to 16 KiB; CRIU itself writes none that
is longer than 4 KiB. The rest of a longer line is skipped, except if it is quoted.

No pattern here can take more than linear time: each repetition is bounded.
"""

from __future__ import annotations

import codecs
import itertools
import re

from irmapdb.errors import FileError
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["CHUNK_BYTES", "Lines", "LogLine"]

CHUNK_BYTES = 1 << 18
"""The size of a piece that a reader should pass."""
_LINE_BYTES = 1 << 16
_CRIU_LINE_BYTES = 1 << 14

# Only from the beginning of a run of backslashes: there may be millions in a row.
_QUOTED_END = re.compile(rb"(?<!\\)\\{1,16}(?:r\\{1,16})?n")
_QUOTED = re.compile(rb'(?<!\\)\\{1,16}(?:u([0-9a-f]{4})|x([0-9a-f]{2})|(["\'/t]))', re.IGNORECASE)
_SAME = {b"t": b"\t"}

# A line that is CRIU's own from its beginning: a text like an escape belongs to a name.
_OWN = re.compile(
    rb"\([0-9.]{9,12}\) | {0,6}[0-9]{1,10}: |(?:Error|Warn) {1,2}\([^()]{1,64}:[0-9]{1,6}\): "
    rb"|(?:irmap|fsnotify): "
)
_QUOTED_OWN = re.compile(_QUOTED_END.pattern + rb"(?=" + _OWN.pattern + rb")")
_TIME = re.compile(rb"\([0-9.]{9,12}\) ")
_PID = re.compile(rb" {0,6}([0-9]{1,10}): ")
_LEVEL = re.compile(rb"(Error|Warn) {1,2}\(([\w./-]{1,64}):([0-9]{1,6})\): ")
_SUBSYSTEM = re.compile(rb"(?:irmap|fsnotify): ")
_QUOTES = b"\"'\\ \t,})]"

_COMPRESSED = {
    b"\x1f\x8b": ("gzip", "zcat"),
    b"\x28\xb5\x2f\xfd": ("zstd", "zstdcat"),
    b"\xfd7zXZ": ("xz", "xzcat"),
    b"BZh": ("bzip2", "bzcat"),
}


class LogLine(Record):
    """One line of CRIU's log."""

    number: int
    """The line of the input, from 1."""
    level: bytes
    """`Error`, `Warn`, or nothing."""
    source: bytes
    """`criu/fsnotify.c`; nothing without a level."""
    pid: int | None
    """The task of a restore that wrote it."""
    text: bytes
    """The rest, without the end of the line. It may end anywhere if the log was cut off."""
    own: bool = True
    """Whether the line of the input begins as CRIU's own lines do."""
    quoted: bool = False
    """Whether another program quoted it as a part of a longer line."""


class Lines:
    """The lines of a log that can be messages of CRIU, in their order. It can be iterated once."""

    def __init__(self, chunks: Iterable[bytes], name: str) -> None:
        """`name` is for errors: iterating raises FileError for a compressed log."""
        self._chunks = chunks
        self._name = name
        self.number = 0
        """The number of lines of the input so far."""
        self.own = 0
        """The number of lines so far that begin as CRIU's own lines do, or have its level."""

    def __iter__(self) -> Iterator[LogLine]:
        for number, raw, is_rest in self._wanted():
            own = not is_rest and _OWN.match(raw) is not None
            self.own += own
            yield from self._parsed(number, raw, own=own, is_rest=is_rest)

    def _wanted(self) -> Iterator[tuple[int, bytes, bool]]:
        """Number, bytes, and whether it is the rest of a line that was too long."""
        buffer, is_rest = b"", False
        for chunk in _decoded(self._chunks, self._name):
            block = buffer + chunk
            end = block.find(b"\n") + 1 if is_rest else 0
            if end:
                for piece, _ in _pieces(block[: end - 1], is_rest=True):
                    yield self.number + 1, piece, True
                self.number += 1
                is_rest = False
            last = max(block.rfind(b"\n") + 1, end)
            for number, line in _wanted_lines(block[end:last], self.number + 1):
                for piece, rest in _pieces(line.removesuffix(b"\r"), is_rest=False):
                    yield number, piece, rest
            self.number += block.count(b"\n", end)
            buffer = block[last:]
            while len(buffer) > _LINE_BYTES:
                piece, buffer = _cut(buffer)
                yield self.number + 1, piece, is_rest
                is_rest = True
        if buffer:
            self.number += 1
            for piece, rest in _pieces(buffer.removesuffix(b"\r"), is_rest=is_rest):
                yield self.number, piece, rest

    def _parsed(self, number: int, raw: bytes, *, own: bool, is_rest: bool) -> Iterator[LogLine]:
        ends = _QUOTED_OWN if own else _QUOTED_END
        pieces = ends.split(raw) if b"\\" in raw else [raw]
        if len(pieces) > 1:
            for piece in pieces:
                if piece:
                    yield _parsed(number, _unquoted(piece), own=own, quoted=True)
        elif not is_rest:
            yield _parsed(number, raw if own else _unquoted(raw), own=own, quoted=False)


_WORDS = (
    *(b"fsnotify", b"irmap", b"Error", b"umping ", b"Restor", b" fdinfo ", b"Version: "),
    *(b"RPC settings", b"cg: ", b" time: ", b"criu", b"CRIU", b"log file"),
)
"""A line without one of them means nothing here."""
_FIRST_LINES = 100
"""The number of lines that are read in any case: a log that was cut off early has no others."""


def _wanted_lines(block: bytes, number: int) -> Iterator[tuple[int, bytes]]:
    # Most lines of -v4 are about other things, and a word is found fast in many lines at once.
    starts = {0} if number <= _FIRST_LINES and block else set()
    starts |= {start for word in _WORDS for start in _lines_with(block, word)}
    if number <= _FIRST_LINES:
        ends = itertools.islice(_occurrences(block, b"\n"), _FIRST_LINES - number + 1)
        starts |= {end + 1 for end in ends if end + 1 < len(block)}
    before = 0
    for start in sorted(starts):
        number += block.count(b"\n", before, start)
        before = start
        line = block[start : block.index(b"\n", start)]
        if line[12:22] != b"irmap: Ref":  # a line for each file of a scan
            yield number, line


def _lines_with(block: bytes, word: bytes) -> Iterator[int]:
    # Each line once: a line may have the word a hundred thousand times.
    at = block.find(word)
    while at >= 0:
        yield block.rfind(b"\n", 0, at) + 1
        end = block.find(b"\n", at)
        at = block.find(word, end) if end >= 0 else -1


def _occurrences(block: bytes, word: bytes) -> Iterator[int]:
    at = block.find(word)
    while at >= 0:
        yield at
        at = block.find(word, at + 1)


def _parsed(number: int, raw: bytes, *, own: bool, quoted: bool) -> LogLine:
    raw = raw[:_CRIU_LINE_BYTES]
    if found := _LEVEL.search(raw):
        pid = _pid_before(raw[: found.start()])
        text = raw[found.end() :]
        behind = quoted or not _is_bare(raw[: found.start()])
        return LogLine(
            number, found[1], found[2], pid, _without_quotes(text, behind=behind), own, quoted
        )
    start = _TIME.search(raw, 0, 512)
    if start is not None:
        rest = raw[start.end() :]
    elif found := _SUBSYSTEM.search(raw):
        rest = raw[found.start() :]
        before = _PID.fullmatch(raw[: found.start()])
        rest = raw[: found.start()] + rest if before else rest
    else:
        return LogLine(number, b"", b"", None, raw, own, quoted)
    pid = None
    if found := _PID.match(rest):
        pid, rest = int(found[1]), rest[found.end() :]
    behind = quoted or (start is not None and start.start() > 0)
    return LogLine(number, b"", b"", pid, _without_quotes(rest, behind=behind), own, quoted)


def _is_bare(before: bytes) -> bool:
    return _TIME.sub(b"", before, count=1).strip(b" 0123456789:") == b""


def _pid_before(before: bytes) -> int | None:
    found = _TIME.search(before)
    pid = _PID.fullmatch(before[found.end() :] if found else before)
    return None if pid is None else int(pid[1])


def _without_quotes(text: bytes, *, behind: bool) -> bytes:
    # At the end of a quoted text are the quotes and brackets of its engine.
    return text.rstrip(_QUOTES) if behind and text[-1:] in b"\"'}" else text


def _unquoted(piece: bytes) -> bytes:
    return _QUOTED.sub(_unescape, piece).replace(b"\\\\", b"\\")


def _unescape(found: re.Match[bytes]) -> bytes:
    if found[1] is not None:
        return chr(int(found[1], 16)).encode("utf-8", "replace")
    if found[2] is not None:
        return bytes((int(found[2], 16),))
    return _SAME.get(found[3], found[3])


def _pieces(line: bytes, *, is_rest: bool) -> Iterator[tuple[bytes, bool]]:
    while len(line) > _LINE_BYTES:
        piece, line = _cut(line)
        yield piece, is_rest
        is_rest = True
    if line:
        yield line, is_rest


def _cut(line: bytes) -> tuple[bytes, bytes]:
    # Behind the last quoted end of a line, if there is one: a quoted log is one long line.
    end = line.rfind(b"\\n", _LINE_BYTES - _CRIU_LINE_BYTES, _LINE_BYTES)
    end = _LINE_BYTES if end < 0 else end + 2
    return line[:end], line[end:]


def _decoded(chunks: Iterable[bytes], name: str) -> Iterator[bytes]:
    """The bytes without NULs; UTF-16 as UTF-8."""
    decode: Callable[[bytes], bytes] | None = None
    for chunk in chunks:
        if decode is None:
            _refuse_compressed(chunk, name)
            decode = _decoder(chunk)
        yield decode(chunk)


def _refuse_compressed(head: bytes, name: str) -> None:
    for magic, (form, program) in _COMPRESSED.items():
        if head.startswith(magic):
            message = f"{name}: it is compressed with {form}"
            raise FileError(message, advice=f"use `{program} {name} | irmapdb explain -`")


def _decoder(head: bytes) -> Callable[[bytes], bytes]:
    encoding = _utf16(head)
    if not encoding:
        return lambda chunk: chunk.replace(b"\0", b"").removeprefix(codecs.BOM_UTF8)
    decoder = codecs.getincrementaldecoder(encoding)("replace")

    def decode(chunk: bytes) -> bytes:
        return decoder.decode(chunk).replace("\0", "").encode("utf-8", "replace")

    return decode


def _utf16(head: bytes) -> str:
    # With a byte order mark, or ASCII with a NUL in each pair.
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    sample = head[:64]
    low, high = sample[::2], sample[1::2]
    if len(high) > 1 and not any(high) and all(low):
        return "utf-16-le"
    if len(high) > 1 and not any(low) and all(high):
        return "utf-16-be"
    return ""
