"""What may come next in a question: keywords, tables, columns, functions, saved queries.

prompt_toolkit shows it; `propose` alone decides, from the text before the cursor.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from prompt_toolkit.completion import Completer, Completion

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from prompt_toolkit.completion import CompleteEvent
    from prompt_toolkit.document import Document

__all__ = ["KEYWORDS", "SqlCompleter", "propose"]

KEYWORDS = (
    *("SELECT", "DISTINCT", "FROM", "WHERE", "AND", "OR", "NOT", "IN", "IS", "NULL", "LIKE"),
    *("GLOB", "BETWEEN", "EXISTS", "CASE", "WHEN", "THEN", "ELSE", "END", "AS", "JOIN", "LEFT"),
    *("INNER", "CROSS", "ON", "USING", "GROUP BY", "HAVING", "ORDER BY", "ASC", "DESC", "LIMIT"),
    *("OFFSET", "UNION", "ALL", "EXCEPT", "INTERSECT", "WITH", "RECURSIVE", "VALUES", "CAST"),
    *("COLLATE", "NOCASE", "EXPLAIN", "QUERY PLAN", "PRAGMA", "OVER", "PARTITION BY", "FILTER"),
)
_SQLITES_FUNCTIONS = (
    *("count(", "sum(", "min(", "max(", "avg(", "total(", "group_concat(", "coalesce(", "nullif("),
    *("ifnull(", "iif(", "printf(", "hex(", "length(", "substr(", "replace(", "instr(", "lower("),
    *("upper(", "round(", "abs(", "typeof(", "datetime(", "julianday(", "strftime(", "rtrim("),
)

_ONE_WORD = re.compile(r"(?:[A-Za-z][\w-]*)?")
_WORD = re.compile(r"[\w.]*\Z")
_AFTER_FROM = re.compile(
    r"\b(?:FROM|JOIN)\s+(?:\w+(?:\s+(?:AS\s+)?\w+)?\s*,\s*)*\w*\Z", re.IGNORECASE
)
_SOURCE = re.compile(r"\b(?:FROM|JOIN|,)\s*(\w+)(?:\s+(?:AS\s+)?(\w+))?", re.IGNORECASE)


def propose(
    before: str, columns: Mapping[str, Sequence[str]], functions: Iterable[str]
) -> Iterator[str]:
    """The words that the last word before the cursor may become.

    `columns` has the columns of every table and view; `functions` are ours.
    """
    found = _WORD.search(before)
    word = found[0] if found else ""
    if "." in word:
        source, _, start = word.rpartition(".")
        names = columns.get(_sources(before, columns).get(source.lower(), ""), ())
        yield from (f"{source}.{name}" for name in names if name.startswith(start.lower()))
        return
    if _AFTER_FROM.search(before):
        yield from _starting(word, columns)
        return
    if not word:
        return
    used = set(_sources(before, columns).values()) or set(columns)
    known = dict.fromkeys(name for table in columns if table in used for name in columns[table])
    yield from _starting(word, known)
    yield from _starting(word, [f"{name}(" for name in functions])
    yield from _starting(word, columns)
    for keyword in KEYWORDS:
        if keyword.startswith(word.upper()):
            yield keyword if word[0].isupper() else keyword.lower()
    yield from _starting(word, _SQLITES_FUNCTIONS)


def _starting(word: str, names: Iterable[str]) -> Iterator[str]:
    return (name for name in names if name.startswith(word.lower()))


def _sources(before: str, columns: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The tables that the statement speaks of, by their own names and their aliases."""
    by_name: dict[str, str] = {}
    for table, alias in _SOURCE.findall(before):
        if table.lower() not in columns:
            continue
        by_name[table.lower()] = table.lower()
        if alias and alias.upper() not in KEYWORDS:
            by_name[alias.lower()] = table.lower()
    return by_name


class SqlCompleter(Completer):
    """Completes SQL, and what begins with a dot: the prompt's own commands."""

    def __init__(
        self,
        columns: Mapping[str, Sequence[str]],
        functions: Iterable[str],
        commands: Iterable[str],
        saved: Iterable[str],
    ) -> None:
        self._columns = columns
        self._functions = tuple(functions)
        self._commands = tuple(commands)
        self._saved = tuple(saved)

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterator[Completion]:
        """What prompt_toolkit asks for."""
        del complete_event  # typed or asked for: the same
        before = document.text_before_cursor.lstrip()
        if before.startswith("."):
            yield from self._of_commands(before)
            return
        if _ONE_WORD.fullmatch(before):
            for name in _starting(before, self._saved):
                yield Completion(name, start_position=-len(before))
        # After the last statement: what came before it has its own tables.
        before = before.rpartition(";")[2].lstrip()
        word = before[_WORD.search(before).start() :] if before else ""  # type: ignore[union-attr]
        for text in propose(before, self._columns, self._functions):
            yield Completion(text, start_position=-len(word))

    def _of_commands(self, before: str) -> Iterator[Completion]:
        command, space, rest = before.partition(" ")
        names: Iterable[str] = self._commands
        word = command
        if space:
            word = rest
            names = {".run": self._saved, ".schema": self._columns}.get(command.lower(), ())
        for name in names:
            if name.startswith(word.lower()):
                yield Completion(name, start_position=-len(word))
