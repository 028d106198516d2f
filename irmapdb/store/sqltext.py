"""Splits an SQL text into its statements.

Source: https://www.sqlite.org/lang_comment.html and https://www.sqlite.org/lang_expr.html
(comments, literals, quoted names), https://www.sqlite.org/c3ref/complete.html.
"""

from __future__ import annotations

import re
import sqlite3

from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Statement", "split"]

_COMMENT = r"--[^\n]*+|/\*.*?(?:\*/|\Z)"
_BETWEEN = re.compile(rf"(?:[\s;]++|{_COMMENT})*+", re.DOTALL)
_QUOTED_OR_END = re.compile(
    rf"""{_COMMENT}|'[^']*+(?:'|\Z)|"[^"]*+(?:"|\Z)|`[^`]*+(?:`|\Z)|\[[^\]]*+(?:\]|\Z)|;""",
    re.DOTALL,
)
_NOT_ENCODED = re.compile("[\0\ud800-\udfff]")


class Statement(Record):
    """One statement with its semicolon, and the number of the line that it starts on."""

    text: str
    line: int


def split(text: str) -> Iterator[Statement]:
    """The statements of a text. Empty statements and comments between statements are left out."""
    start = _between(text, 0)
    while start < len(text):
        end = _end(text, start)
        yield Statement(text[start:end], text.count("\n", 0, start) + 1)
        start = _between(text, end)


def _between(text: str, start: int) -> int:
    found = _BETWEEN.match(text, start)
    return found.end() if found else start


def _end(text: str, start: int) -> int:
    for found in _QUOTED_OR_END.finditer(text, start):
        # A semicolon within a trigger does not end the statement. SQLite reports a NUL or a lone
        # surrogate when it runs the statement; complete_statement() takes neither.
        if found[0] == ";" and sqlite3.complete_statement(
            _NOT_ENCODED.sub(" ", text[start : found.end()])
        ):
            return found.end()
    return len(text)
