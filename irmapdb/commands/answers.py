"""Prints the rows of a query: a table for people, JSON or CSV for programs."""

from __future__ import annotations

import enum
import os
from typing import TYPE_CHECKING, Any

import typer

from irmapdb.commands import render

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from irmapdb.store.ask import Answer, Value

__all__ = ["Form", "print_answer", "print_separator"]

_SPACE = 0x20
_DEL = 0x7F
_HANDLE = "handle"


class Form(enum.StrEnum):
    """How an answer is printed."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


def print_answer(answer: Answer, form: Form) -> None:
    """The rows of one statement on stdout; nothing for a statement that has no columns."""
    if not answer.columns:
        return
    match form:
        case Form.JSON:
            render.print_json(_document(answer))
        case Form.CSV:
            _print_csv(answer)
        case Form.TABLE:
            _print_table(answer)


def _print_table(answer: Answer) -> None:
    cells = [list(map(_cell, map(_in_words, _plain(answer, row)))) for row in answer.rows]
    titles = [
        render.Column(
            render.printable_text(name.upper()), _is_number(row[index] for row in answer.rows)
        )
        for index, name in enumerate(answer.columns)
    ]
    render.print_table(titles, cells)


def _is_number(values: Any) -> bool:  # noqa: ANN401 any iterable of values
    # Inode numbers from 2^63 on are digits in TEXT.
    some = [value for value in values if value is not None]
    return bool(some) and all(
        type(value) in {int, float} or (isinstance(value, str) and value.isdecimal())
        for value in some
    )


def _cell(value: Value) -> str:
    match value:
        case None:
            return "-"
        case str():
            return render.printable_text(value)
        case bytes():
            return render.printable(value)
        case _:
            return str(value)


def _plain(answer: Answer, row: tuple[Value, ...]) -> Iterator[Value]:
    # The row for every form: only names stay BLOBs.
    for column, value in zip(answer.columns, row, strict=True):
        if isinstance(value, bytes) and not _is_name(column, value):
            yield f"x'{value.hex()}'"
        else:
            yield value


def _in_words(value: Value) -> Value:
    # PostgreSQL has booleans; in JSON they stay booleans.
    return str(value).lower() if isinstance(value, bool) else value


def _is_name(column: str, blob: bytes) -> bool:
    # A path or a task's name that is not UTF-8. A file handle may look like one.
    control = any(byte < _SPACE or byte == _DEL for byte in blob)
    may_be = blob.startswith(b"/") or not control
    return may_be and b"\0" not in blob and column.lower() != _HANDLE


def _document(answer: Answer) -> list[dict[str, Any]]:
    names = _distinct(answer.columns)
    return [
        dict(zip(names, map(_json_value, _plain(answer, row)), strict=True)) for row in answer.rows
    ]


def _distinct(columns: Sequence[str]) -> list[str]:
    # `a.path, b.path` are both "path": none may be lost, or take the name of a third column.
    names: list[str] = []
    taken = set(columns)
    for name in columns:
        distinct, number = name, 1
        while distinct in names or (number > 1 and distinct in taken):
            number += 1
            distinct = f"{name}_{number}"
        names.append(distinct)
    return names


def _json_value(value: Value) -> str | int | float | None:
    if isinstance(value, bytes):
        return os.fsdecode(value)
    if isinstance(value, float) and value - value != 0:
        return None  # JSON has no infinity
    return value


def _print_csv(answer: Answer) -> None:
    rows = (list(map(_in_words, _plain(answer, row))) for row in answer.rows)
    render.print_csv(answer.columns, rows)


def print_separator(form: Form) -> None:
    """Between the answers of two statements."""
    if form is not Form.JSON:
        typer.echo()
