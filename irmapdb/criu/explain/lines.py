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

from irmapdb.criu.explain.messages import STEP_LINE, STEPS
from irmapdb.errors import FileError
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["CHUNK_BYTES", "MOST_STEPS", "Lines", "LogLine", "StepLines", "text_of"]

CHUNK_BYTES = 1 << 18
"""The size of a piece that a reader should pass."""
MOST_STEPS = 64
"""The largest number of lines about one watch that are kept."""
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


class StepLines(Record):
    """Successive lines with steps of CRIU (irmapdb.criu.explain.messages.STEPS)."""

    counts: dict[str, int]
    """The number of lines of each message, by name."""
    last: str
    """The message of the last line."""
    begins: bool
    """Whether CRIU began with a watch."""
    about: tuple[bytes, ...]
    """The lines about the watch, from the one on with which CRIU began with it; at most
    MOST_STEPS."""


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

    def __iter__(self) -> Iterator[LogLine | StepLines]:
        for part in self._wanted():
            if isinstance(part, StepLines):
                self.own += sum(part.counts.values())
                yield part
                continue
            number, raw, is_rest = part
            found = None if is_rest else _plainly_own(number, raw)
            if found is not None:
                self.own += 1
                yield found
                continue
            own = not is_rest and _OWN.match(raw) is not None
            self.own += own
            yield from self._parsed(number, raw, own=own, is_rest=is_rest)

    def _wanted(self) -> Iterator[StepLines | tuple[int, bytes, bool]]:
        """Steps; or number, bytes, and whether it is the rest of a line that was too long."""
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
            yield from _wanted_lines(block[end:last], self.number + 1)
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
                if piece and (number <= _FIRST_LINES or _WANTED_PIECE.search(piece)):
                    yield _parsed(number, _unquoted(piece), own=own, quoted=True)
        elif not is_rest:
            yield _parsed(number, raw if own else _unquoted(raw), own=own, quoted=False)


_WORDS = (
    *(b"fsnotify", b"irmap", b"Error", b"umping ", b"Restor", b" fdinfo ", b"Version: "),
    *(b"RPC settings", b"cg: ", b" time: ", b"criu", b"CRIU", b"log file"),
)
"""A line without one of them means nothing here."""
_WANTED = re.compile(b"|".join(_WORDS))
_WANTED_PIECE = re.compile(
    _WANTED.pattern + rb"|parse_fdinfo|Unexpected EOF|cript|execvp|path=|see the log"
)
"""The same for a part of a quoted line: the whole line has other words."""
_FIRST_LINES = 100
"""The number of lines that are read in any case: a log that was cut off early has no others."""
_OF_SCAN = b"irmap: Ref"
"""A line for each file of a scan, behind the usual time."""
_SAMPLE_BYTES = 4096
_DENSE = 4
"""In a dense block, one line of this number has a word."""


def _wanted_lines(block: bytes, number: int) -> Iterator[StepLines | tuple[int, bytes, bool]]:
    # Without those of a scan, and without empty ones.
    sample = block[:_SAMPLE_BYTES].split(b"\n")
    if sum(_WANTED.search(line) is not None for line in sample) * _DENSE < len(sample):
        for line_number, line in _few_lines(block, number):
            for piece, is_rest in _pieces(line, is_rest=False):
                yield line_number, piece, is_rest
        return
    at = no_steps_before = 0
    while at < len(block):
        if at >= no_steps_before:
            end, steps = _steps_at(block, at)
            if steps is not None:
                yield steps
                number += block.count(b"\n", at, end)
                at = end
                continue
            no_steps_before = end
        end = block.index(b"\n", at)
        line = block[at:end].removesuffix(b"\r")
        is_wanted = number <= _FIRST_LINES or _WANTED.search(line)
        if is_wanted and line[12:22] != _OF_SCAN:
            for piece, is_rest in _pieces(line, is_rest=False):
                yield number, piece, is_rest
        number += 1
        at = end + 1


def _steps_at(block: bytes, start: int) -> tuple[int, StepLines | None]:
    # Steps, and their end. None: there are none up to this end.
    counts: dict[str, int] = {}
    about: list[re.Match[bytes]] = []
    begins, last, at, levels = False, "", start, 0
    while len(about) < MOST_STEPS and (found := STEP_LINE.match(block, at)):
        step = STEPS[found.lastindex or 0]
        if step is None:
            break
        if block.startswith(_OF_SCAN, at + 12):
            at = found.end()
            continue
        name, begins_here, tells, is_many = step
        counts[name] = counts.get(name, 0) + 1
        if begins_here:
            about, begins = [found], True
        elif tells:
            if is_many and name == last and about:
                about.pop()
            about.append(found)
        levels += found[1] is not None
        last, at = name, found.end()
    # CRIU may not have ended a line, and another one follows in it.
    if not counts or len(_LEVEL.findall(block, start, at)) != levels:
        return at, None
    return at, StepLines(counts, last, begins, tuple(one[0] for one in about))


def _few_lines(block: bytes, number: int) -> Iterator[tuple[int, bytes]]:
    # Most lines of -v4 are about other things, and a word is found fast in many lines at once.
    starts = {0} if number <= _FIRST_LINES and block else set()
    starts |= {start for word in _WORDS for start in _lines_with(block, word)}
    if number <= _FIRST_LINES:
        ends = itertools.islice(_occurrences(block, b"\n"), _FIRST_LINES - number)
        starts |= {end + 1 for end in ends if end + 1 < len(block)}
    before = 0
    for start in sorted(starts):
        number += block.count(b"\n", before, start)
        before = start
        line = block[start : block.index(b"\n", start)].removesuffix(b"\r")
        if line and line[12:22] != _OF_SCAN:
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


_HEAD = re.compile(
    rb"\([0-9.]{9,12}\) (?: {0,6}([0-9]{1,10}): )?"
    rb"(?:(Error|Warn) {1,2}\(([\w./-]{1,64}):[0-9]{1,6}\): )?"
)
"""`_TIME`, `_PID` and `_LEVEL` of a line that CRIU itself wrote."""


def _plainly_own(number: int, raw: bytes) -> LogLine | None:
    # The same as `_parsed`, for the form that nearly all lines of a large log have.
    found = _HEAD.match(raw)
    if found is None or b"\\" in raw or len(raw) > _CRIU_LINE_BYTES:
        return None
    pid, level, source = found.groups()
    if level is None and (b"Error" in raw or b"Warn" in raw):
        return None
    number_of_task = None if pid is None else int(pid)
    text = raw[found.end() :]
    return LogLine(number, level or b"", source or b"", number_of_task, text, True, False)  # noqa: FBT003 fields


def text_of(line: bytes) -> bytes:
    """The text of a line of CRIU, without time, pid and level."""
    found = _HEAD.match(line)
    return line if found is None else line[found.end() :].rstrip(b"\r\n")


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
