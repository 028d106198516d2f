"""How results are shown: tables for people, JSON for programs.

A path is bytes that a tenant chose. For people it is made printable, so that no name can move
the cursor or break a line; in JSON it is kept whole (PEP 383: a byte that is no UTF-8 becomes a
lone surrogate, which `os.fsencode` turns back).
"""

from __future__ import annotations

import io
import json
import os
import sys
from typing import TYPE_CHECKING, Any, TextIO

import typer

from irmapdb.model import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from _typeshed import ReadableBuffer

    from irmapdb.model import Change

__all__ = [
    "STDOUT",
    "change_json",
    "change_line",
    "count",
    "in_namespace",
    "json_path",
    "print_json",
    "print_table",
    "printable",
    "say",
    "shown",
    "tolerant",
]

_MAX_PADDED = 48
"""A handle of btrfs has 43 characters."""


def shown(path: str | bytes | int | os.PathLike[str]) -> str:
    """A path of any kind, or a descriptor, in a message."""
    return f"descriptor {path}" if isinstance(path, int) else printable(os.fsencode(path))


class _Named(io.FileIO):
    # A write that fails does not say where to; other errors without a name are no fault of stdout.
    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            error.filename = STDOUT
            raise


STDOUT = "stdout"
"""The name in an error of our standard output."""


def tolerant(stream: TextIO | None, *, named: bool) -> TextIO:
    """The stream, so that it escapes what its encoding lacks; its errors are STDOUT's if asked."""
    if stream is None:  # closed by who started us
        return open(os.devnull, "w", encoding="utf-8")
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    try:
        fd = stream.fileno() if named else None
    except OSError:  # in memory
        fd = None
    if fd is None:
        stream.reconfigure(errors="backslashreplace")
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(_Named(fd, "wb", closefd=False)),
        stream.encoding,
        "backslashreplace",
        newline="\n",
        line_buffering=stream.line_buffering,
    )


def in_namespace(path: bytes, mntns: int) -> str:
    """A path for people, and whose root it starts at where that is not the root task's."""
    shown_path = printable(path)
    return f"{shown_path} (in mount namespace {mntns})" if mntns else shown_path


def json_path(path: bytes | None) -> str | None:
    """A path as it stands in our JSON."""
    return None if path is None else os.fsdecode(path)


def print_json(document: Any) -> None:  # noqa: ANN401 whatever json takes
    """One JSON document on stdout."""
    json.dump(document, sys.stdout, indent=2)
    sys.stdout.write("\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Aligned columns; a column whose name ends with `>` is flush right.

    Nothing is cut or wrapped, so that a path can be copied as it stands: the widest column comes
    last, and the reader's terminal or pager deals with long lines. In the columns before it, a
    cell that is longer than most pushes its own line to the right and no other.
    """
    rows = list(rows)
    titles = [column.rstrip(">").upper() for column in columns]
    widths = [
        max(0, *(width for width in map(_width, cells) if width <= _MAX_PADDED))
        for cells in zip(titles, *rows, strict=True)
    ]

    def line(cells: Sequence[str]) -> str:
        padded = (
            _padded(cell, width, flush_right=column.endswith(">"))
            for cell, width, column in zip(cells, widths, columns, strict=True)
        )
        return "  ".join(padded).rstrip()

    typer.echo("\n".join([line(titles), *map(line, rows)]))


def _padded(cell: str, width: int, *, flush_right: bool) -> str:
    space = " " * (width - _width(cell))
    return space + cell if flush_right else cell + space


def _width(text: str) -> int:
    """In columns of a terminal: a Chinese character takes two, a combining accent none."""
    if text.isascii():
        return len(text)
    from wcwidth import wcswidth

    width = wcswidth(text)
    return len(text) if width < 0 else width


def say(text: str) -> None:
    """Talk: stderr."""
    typer.echo(text, err=True)


def count(number: int, noun: str, plural: str = "") -> str:
    """`1 watch`, `2 watches`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def change_line(change: Change) -> str:
    """What happened to a mapping, on one line."""
    path = in_namespace(change.path, change.mntns)
    match change.kind:
        case "moved":
            return f"moved: {printable(change.old_path or b'')} → {path} ({change.reason})"
        case "stale":
            return f"stale: {path} ({change.reason})"
        case _:
            return f"{change.kind}: {path}"


def change_json(change: Change) -> dict[str, Any]:
    """What happened to a mapping, as it stands in our JSON."""
    return {
        "kind": change.kind,
        "dev": change.identity.kdev,
        "ino": change.identity.ino,
        "path": json_path(change.path),
        "old_path": json_path(change.old_path),
        "reason": change.reason,
        "mntns": change.mntns,
    }
