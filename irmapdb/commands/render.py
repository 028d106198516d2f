"""Prints results: tables for people; JSON, CSV and images for programs.

A path is bytes that a tenant chose. All output follows one rule: a terminal gets printable
characters only, so that no name can move the cursor or break a line; a pipe or a file gets JSON,
CSV and images byte for byte. In JSON a byte that is not UTF-8 becomes a lone surrogate (PEP 383),
and `os.fsencode` gives the byte again. Tables are for people, and printable everywhere.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO

import typer

from irmapdb.commands.layout import Column, lay_out, wrap
from irmapdb.errors import UsageError
from irmapdb.model import printable, printable_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from _typeshed import ReadableBuffer

    from irmapdb.model import Change

__all__ = [
    "STDOUT",
    "Cell",
    "Column",
    "change_json",
    "change_line",
    "count",
    "in_namespace",
    "is_quiet",
    "json_fields",
    "json_path",
    "json_time",
    "print_csv",
    "print_json",
    "print_line",
    "print_table",
    "print_text",
    "print_unwrapped",
    "printable",
    "printable_text",
    "say",
    "set_manner",
    "shown",
    "terminal_width",
    "time_cell",
    "tolerant",
    "write_image",
    "write_json",
]


def shown(path: str | bytes | int | os.PathLike[str]) -> str:
    """A path of any type, or a descriptor, in a message."""
    return f"descriptor {path}" if isinstance(path, int) else printable(os.fsencode(path))


class _Named(io.FileIO):
    # A failed write has no name. Other errors without a name do not come from stdout.
    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            error.filename = STDOUT
            raise


STDOUT = "stdout"
"""The name in an error of our standard output."""


def tolerant(stream: TextIO | None, *, named: bool) -> TextIO:
    """The stream, with escapes for characters that its encoding lacks. Errors can name STDOUT."""
    if stream is None:  # closed by our parent
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
    """A path for people, with its mount namespace if that is not the root task's."""
    shown_path = printable(path)
    return f"{shown_path} (in mount namespace {mntns})" if mntns else shown_path


def json_path(path: bytes | None) -> str | None:
    """A path in our JSON."""
    return None if path is None else os.fsdecode(path)


def time_cell(at: datetime | None) -> str:
    """A time for people: UTC, to the second; "" for none."""
    return "" if at is None else at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def json_time(at: datetime | None) -> str | None:
    """A time in our JSON: UTC with microseconds, as in the database."""
    from irmapdb.store.values import to_time

    return None if at is None else to_time(at)


def json_fields(record: Any, names: str = "") -> dict[str, Any]:  # noqa: ANN401 any record
    """The named fields of a record in our JSON, or all: paths as text, times, records inside."""
    every: Iterable[str] = names.split() or record.__match_args__
    return {name: _json_value(getattr(record, name)) for name in every}


def _json_value(value: Any) -> Any:  # noqa: ANN401 any value, and JSON
    match value:
        case bytes():
            return json_path(value)
        case datetime():
            return json_time(value)
        case os.PathLike():
            return os.fspath(value)
        case tuple() if hasattr(value, "_fields"):
            return json_fields(value)
        case tuple() | list():
            return list(map(_json_value, value))
        case Mapping():
            return {name: _json_value(one) for name, one in value.items()}
        case _:
            return value


def print_json(document: Any) -> None:  # noqa: ANN401 any JSON value
    """One JSON document on stdout."""
    # ASCII, with all control characters escaped: fit for a terminal as it is.
    json.dump(document, sys.stdout, indent=2)
    sys.stdout.write("\n")


def print_text(text: str) -> None:
    """Text of several lines: unchanged for a program, printable lines at a terminal."""
    if sys.stdout.isatty():
        # A line of SQL may have a backslash, so a printable line is copied unchanged.
        text = "\n".join(
            line if line.replace("\t", " ").isprintable() else printable_text(line)
            for line in text.split("\n")
        )
    typer.echo(text)


def write_json(data: bytes) -> None:
    """A text that json wrote in ASCII, on stdout."""
    sys.stdout.write(data.decode("ascii"))


def write_image(data: bytes) -> None:
    """A binary image on stdout. UsageError at a terminal: its paths may hold control characters."""
    if sys.stdout.isatty():
        message = "an image is binary, and stdout is a terminal"
        raise UsageError(message, advice="redirect it: `> irmap-cache`, or use `irmapdb show`")
    sys.stdout.flush()
    sys.stdout.buffer.write(data)


Cell = str | bytes | int | float | None


def print_csv(columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> None:
    """CSV on stdout: to a program byte for byte, at a terminal printable. None is an empty field.

    Text is UTF-8 in every locale, and bytes come out as they are; in text, a byte that is
    no UTF-8 is a lone surrogate (PEP 383).
    """
    sys.stdout.flush()
    text = io.TextIOWrapper(
        sys.stdout.buffer, "utf-8", errors="surrogateescape", newline="", write_through=True
    )
    terminal = sys.stdout.isatty()
    field = _printable_field if terminal else _raw_field
    writer = csv.writer(text, lineterminator="\n" if terminal else "\r\n")
    writer.writerow(map(field, columns))
    writer.writerows(map(field, row) for row in rows)
    text.detach()


def _raw_field(value: Cell) -> str | int | float | None:
    return os.fsdecode(value) if isinstance(value, bytes) else value


def _printable_field(value: Cell) -> str | int | float | None:
    if isinstance(value, bytes):
        return printable(value)
    # As in the input text: a byte that is not UTF-8 is a surrogate.
    return printable_text(value) if isinstance(value, str) else value


def print_table(columns: Sequence[str | Column], rows: Iterable[Sequence[str]]) -> None:
    """Aligned columns; a title of ours that ends with `>` makes its column flush right.

    A terminal gets lines that are no wider than it is, with verdicts in colour. A pipe gets a line
    for each row.
    """
    heads = [
        Column(one.rstrip(">").upper(), one.endswith(">")) if isinstance(one, str) else one
        for one in columns
    ]
    typer.echo("\n".join(lay_out(heads, list(rows), terminal_width(), _paint)))


def print_line(text: str) -> None:
    """A line on stdout; at a terminal wrapped, with an indent."""
    width = terminal_width()
    lines = text.split("\n")
    if width is not None:
        lines = [line for one in lines for line in wrap(one, width)]
    typer.echo("\n".join(lines))


def print_unwrapped(text: str) -> None:
    """A line on stdout that can be copied: it has no line break of ours."""
    typer.echo(text)


def terminal_width() -> int | None:
    """The columns of the terminal that is stdout; None if stdout is no terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


# --- colour and quiet, as the command line says ---------------------------------------------------


class _Manner:
    colour = True
    quiet = False


_manner = _Manner()


def set_manner(*, colour: bool | None = None, quiet: bool | None = None) -> None:
    """Set whether verdicts may have a colour, and whether remarks are left out."""
    _manner.colour = _manner.colour if colour is None else colour
    _manner.quiet = _manner.quiet if quiet is None else quiet


def is_quiet() -> bool:
    """Whether remarks on stderr are left out."""
    return _manner.quiet


_GREEN, _YELLOW, _RED = 32, 33, 31
_COLOURS = {
    _GREEN: "brought by-handle cache image linked mount path proved ready there valid",
    _YELLOW: "changed moved new no-path options stale symlink to unknown unmounted unreachable "
    "walk",
    _RED: "deleted dropped failed fails gone missing no-filesystem no-restore other-type replaced "
    "reused twice wrong-path",
}
_COLOUR_OF = {word: colour for colour, words in _COLOURS.items() for word in words.split()}
_PAINTED = {"VERDICT", "STATE"}


def _paint(title: str, cell: str) -> str:
    colour = _COLOUR_OF.get(re.split("[ :]", cell, maxsplit=1)[0])
    if title not in _PAINTED or colour is None or not _may_colour():
        return cell
    return f"\x1b[{colour}m{cell}\x1b[0m"


def _may_colour() -> bool:
    # https://no-color.org
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return _manner.colour and sys.stdout.isatty() and not plain


def say(text: str) -> None:
    """Print a remark on stderr, unless `-q` is given."""
    if not _manner.quiet:
        typer.echo(text, err=True)


def count(number: int, noun: str, plural: str = "") -> str:
    """`1 watch`, `2 watches`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def change_line(change: Change) -> str:
    """The change of a mapping, on one line."""
    path = in_namespace(change.path, change.mntns)
    match change.kind:
        case "moved":
            return f"moved: {printable(change.old_path or b'')} → {path} ({change.reason})"
        case "stale":
            return f"stale: {path} ({change.reason})"
        case _:
            return f"{change.kind}: {path}"


def change_json(change: Change) -> dict[str, Any]:
    """The change of a mapping, in our JSON."""
    identity = change.identity
    rest = json_fields(change, "kind path old_path reason mntns")
    return {"dev": identity.kdev, "ino": identity.ino, **rest}
