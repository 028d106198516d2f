"""The text of a question: its statements, its tokens, and where in it SQLite saw an error.

Python hands on SQLite's message, but not the offset that sqlite3_error_offset() knows. So the
place is found from the message: the word that it quotes, and where that stands more than once,
by asking SQLite about a part of the text.

Source: https://www.sqlite.org/lang_expr.html (literals, parameters), src/tokenize.c and
src/complete.c of sqlite.
"""

from __future__ import annotations

import re
import sqlite3
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "Piece",
    "Token",
    "excerpt",
    "find_name",
    "is_complete",
    "locate",
    "name_in",
    "split",
    "tokens",
]

_TOKEN = re.compile(
    r"""(?P<space>   \s+ | --[^\n]* | /\*.*?(?:\*/|\Z) )
      | (?P<text>    [xX]?'(?:[^']|'')*(?:'|\Z) )
      | (?P<name>    "(?:[^"]|"")*(?:"|\Z) | `(?:[^`]|``)*(?:`|\Z) | \[[^\]]*(?:\]|\Z)
                   | [^\W\d][\w$]* )
      | (?P<number>  \d[\w.]* | \.\d\w* )
      | (?P<parameter> [:@$][\w$]+ | \?\d* )
      | (?P<other>   . )""",
    re.VERBOSE | re.DOTALL,
)
_QUOTED = re.compile(
    r'near "(?P<near>.+)": syntax error|unrecognized token: "(?P<unknown>.+)"', re.DOTALL
)
_NAMED = re.compile(
    r"(?:no such (?P<kind>column|table|function|collation sequence|index|module|view)"
    r"|ambiguous column name|misuse of (?:aliased )?(?:aggregate|window)(?: function)?"
    r"|wrong number of arguments to function|unknown (?:database|function))"
    r'[: ]+"?(?P<name>[^"()]+)'
)
_NOT_ENCODED = re.compile("[\0\ud800-\udfff]")
_EXCERPT_WIDTH = 100


class Token(NamedTuple):
    """One token, and where it starts in the text."""

    kind: str
    text: str
    start: int

    @property
    def end(self) -> int:
        return self.start + len(self.text)

    @property
    def name(self) -> str:
        """A name as SQLite compares it: without its quotes, in lower case."""
        quoted = self.text[:1] in '"`['
        return (self.text[1:-1] if quoted else self.text).lower()


class Piece(NamedTuple):
    """One statement, and where it starts in the text."""

    text: str
    start: int


def tokens(text: str) -> Iterator[Token]:
    """Every token but spaces and comments; what is not closed runs to the end."""
    for found in _TOKEN.finditer(text):
        kind = str(found.lastgroup)
        if kind != "space":
            yield Token(kind, found[0], found.start())


def split(text: str) -> list[Piece]:
    """The statements of a text, each with its semicolon; empty ones are left out."""
    pieces = []
    start: int | None = None
    for token in tokens(text):
        if start is None:
            if token.text == ";":
                continue
            start = token.start
        # Within a trigger, a semicolon does not end the statement.
        if token.text == ";" and is_complete(text[start : token.end]):
            pieces.append(Piece(text[start : token.end], start))
            start = None
    if start is not None:
        pieces.append(Piece(text[start:], start))
    return pieces


def is_complete(text: str) -> bool:
    """Whether the last statement of a text has its semicolon."""
    # A NUL and a byte that is no UTF-8 are no SQL, but for SQLite to say so it has to be asked.
    return sqlite3.complete_statement(_NOT_ENCODED.sub(" ", text))


def name_in(message: str) -> tuple[str, str] | None:
    """What a message says is not there: "column", "table" or "function", and its name."""
    found = _NAMED.match(message)
    if found is None or found["kind"] not in {"column", "table", "function"}:
        return None
    return found["kind"], found["name"].rpartition(".")[2]


def locate(message: str, text: str, complaint: Callable[[str], str]) -> int | None:
    """Where in a statement the error of this message is; None where no one place is to blame.

    `complaint` is SQLite's message about another statement, or "".
    """
    if message == "incomplete input":
        return len(text.rstrip())
    quoted = _QUOTED.match(message)
    if quoted is not None:
        word = quoted["near"] or quoted["unknown"]
        places = [token for token in tokens(text) if token.text.startswith(word)]
        for token in places:
            # Up to and with the word to blame, the message is the same; before, it is not.
            if complaint(text[: token.start + len(word)]) == message:
                return token.start
        return places[0].start if places else None
    named = _NAMED.match(message)
    if named is None:
        return None
    spans = _spans_of(named["name"], list(tokens(text)))
    if named["kind"] == "column" or message.startswith("ambiguous"):
        # The name may be right in one place and wrong in another: to blame is the first that
        # still draws the complaint when all others are taken out.
        for span in spans:
            if complaint(_with_nulls(text, [other for other in spans if other != span])) == message:
                return span[0]
    return spans[0][0] if spans else None


def find_name(name: str, text: str) -> int | None:
    """Where a name first stands in a statement."""
    spans = _spans_of(name, list(tokens(text)))
    return spans[0][0] if spans else None


def _with_nulls(text: str, spans: list[tuple[int, int]]) -> str:
    for start, end in reversed(spans):
        text = f"{text[:start]}NULL{text[end:]}"
    return text


def _spans_of(name: str, found: list[Token]) -> list[tuple[int, int]]:
    # Where the name stands, with what qualifies it: "a.b" for the name "a.b".
    wanted = name.lower().split(".")
    spans = []
    for index, token in enumerate(found):
        parts = found[index : index + 2 * len(wanted) - 1]
        if [part.name for part in parts[::2]] != wanted or token.kind != "name":
            continue
        if any(part.text != "." for part in parts[1::2]):
            continue
        before = found[index - 1].text.upper() if index else ""
        if before not in {".", "AS"}:
            spans.append((token.start, parts[-1].end))
    return spans


def excerpt(text: str, offset: int) -> str:
    """The line of the text that holds the offset, and a caret below it."""
    start = text.rfind("\n", 0, offset) + 1
    line = text[start:].partition("\n")[0]
    column = offset - start
    first = max(0, column - _EXCERPT_WIDTH // 2)
    shown = line[first : first + _EXCERPT_WIDTH]
    shown = "".join(one if one.isprintable() else " " for one in shown)
    return f"  {shown}\n  {' ' * (column - first)}^"
