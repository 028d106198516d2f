"""Lays out a table on a terminal: aligned, within its width, with no cell cut.

If a table is too wide only because of its last column, it keeps its columns: a long cell, or the
title, is wrapped in its column, or below its row with an indent. Otherwise each row becomes a list,
with a line or more for each cell.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from irmapdb.record import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["Column", "cut", "lay_out", "text_width", "wrap"]

_GAP = "  "
_INDENT = "    "
_MAX_PADDED = 48
"""A handle of btrfs has 43 characters."""
_LEAST_ROOM = 16
_ROOM_FOR_TEXT = 30
_MOST_BESIDE = 3
"""A cell of more lines is easier to read below its row."""
_PIECES = re.compile(r"/?[^/ ]* ?")  # of a path or text: a line may begin with each of them


class Column(Record):
    """The head of a column whose title is not ours, and may end with `>` itself."""

    title: str
    flush_right: bool


def lay_out(
    heads: Sequence[Column],
    rows: Sequence[Sequence[str]],
    width: int | None,
    paint: Callable[[str, str], str],
) -> Iterator[str]:
    """The lines of a table. `width` is None if nothing is wrapped.

    `paint` gets the title of a column and a cell without blanks around it. The text that it adds
    must have no width.
    """
    titles = [head.title for head in heads]
    natural = [max(map(text_width, cells)) for cells in zip(titles, *rows, strict=True)]
    before_last = sum(natural[:-1]) + len(_GAP) * (len(natural) - 1)
    if width is None or before_last + natural[-1] <= width:
        yield from _lines(heads, rows, _padding(titles, rows), paint)
    elif before_last <= width:
        yield from _wrapped(heads, rows, natural, width, paint)
    else:
        yield from _lists(titles, rows, width, paint)


def wrap(text: str, width: int, indent: str = _INDENT) -> list[str]:
    """Wrap a text to the width, if it can be broken; the first line has no indent.

    Without line ends and indents they are the text again.
    """
    lines, room = [""], width
    for piece in _PIECES.findall(text):
        for part in _parts(piece, width - len(indent)):
            if lines[-1] and text_width(lines[-1]) + text_width(part) > room:
                lines.append("")
                room = width - len(indent)
            lines[-1] += part
    return [lines[0], *(indent + line for line in lines[1:])]


def cut(text: str, width: int) -> str:
    """The text, or its first characters and `…` if it is wider than `width`."""
    if text_width(text) <= width:
        return text
    kept, left = "", width - 1
    for char in text:
        left -= text_width(char)
        if left < 0:
            break
        kept += char
    return f"{kept}…"


def text_width(text: str) -> int:
    """The width in columns of a terminal: two for a Chinese character, none for an accent."""
    if text.replace("…", "").isascii():  # ours, of one column: wcwidth takes long to import
        return len(text)
    from wcwidth import wcswidth

    width = wcswidth(text)
    return len(text) if width < 0 else width


def _parts(piece: str, width: int) -> Iterator[str]:
    # A piece that is wider than a line is broken at any place.
    part = ""
    for char in piece if text_width(piece) > width else ():
        if part and text_width(part + char) > width:
            yield part
            part = ""
        part += char
    yield part or piece


def _padding(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    # A cell that is longer than most moves only its own line to the right.
    return [
        max((width for width in map(text_width, cells) if width <= _MAX_PADDED), default=0)
        for cells in zip(titles, *rows, strict=True)
    ]


def _lines(
    heads: Sequence[Column],
    rows: Sequence[Sequence[str]],
    widths: Sequence[int],
    paint: Callable[[str, str], str],
) -> Iterator[str]:
    yield _line(heads, [head.title for head in heads], widths, _plain)
    for row in rows:
        yield _line(heads, row, widths, paint)


def _line(
    heads: Sequence[Column],
    cells: Sequence[str],
    widths: Sequence[int],
    paint: Callable[[str, str], str],
) -> str:
    padded = []
    for head, cell, width in zip(heads, cells, widths, strict=True):
        space = " " * (width - text_width(cell))
        painted = paint(head.title, cell)
        padded.append(space + painted if head.flush_right else painted + space)
    return _GAP.join(padded).rstrip()


def _wrapped(
    heads: Sequence[Column],
    rows: Sequence[Sequence[str]],
    natural: Sequence[int],
    width: int,
    paint: Callable[[str, str], str],
) -> Iterator[str]:
    room = width - sum(natural[:-1]) - len(_GAP) * (len(natural) - 1)
    titles = [head.title for head in heads]
    widths = [*natural[:-1], text_width(titles[-1])]
    for row, paint_cell in ((titles, _plain), *((row, paint) for row in rows)):
        last = row[-1]
        if text_width(last) <= max(room, 0):
            yield _line(heads, row, widths, paint_cell)
            continue
        beside = wrap(last, room, "") if room >= _ROOM_FOR_TEXT else []
        if 0 < len(beside) <= _MOST_BESIDE:
            yield _line(heads, [*row[:-1], beside[0]], widths, paint_cell)
            yield from ((" " * (width - room) + line).rstrip() for line in beside[1:])
        else:
            yield _line(heads, [*row[:-1], ""], widths, paint_cell)
            yield from ((_INDENT + line).rstrip() for line in wrap(last, width - len(_INDENT)))


def _plain(_title: str, cell: str) -> str:
    return cell


def _lists(
    titles: Sequence[str],
    rows: Sequence[Sequence[str]],
    width: int,
    paint: Callable[[str, str], str],
) -> Iterator[str]:
    names = max(map(text_width, titles))
    beside = names + len(_GAP) + _LEAST_ROOM <= width
    for number, row in enumerate(rows):
        if number:
            yield ""
        for title, cell in zip(titles, row, strict=True):
            head = title + " " * (names - text_width(title)) + _GAP if beside else ""
            if not beside:
                yield from wrap(title, width)
            indent = " " * text_width(head) or _INDENT
            first, *rest = wrap(cell, width - text_width(indent), "")
            yield ((head or indent) + paint(title, first)).rstrip()
            yield from (indent + paint(title, line) for line in rest)
