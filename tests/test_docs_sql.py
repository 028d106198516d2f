"""docs/sql.md: each example gives the output on the page, and every table and view is in it.

`python -m tests.test_docs_sql` writes the answers into the page anew.
"""

from __future__ import annotations

import os
import re
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from irmapdb.store.ask import Ask
from tests.support.cli import irmapdb
from tests.support.scenario import write_scenario

PAGE = Path(__file__).parent.parent / "docs" / "sql.md"
_BLOCK = re.compile(
    r"^```(sql|console)\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL
)
_AGE = re.compile(r"\b\d+ (?:s|min|h|days)\b *")
_ENOUGH = 15


class Example(NamedTuple):
    kind: str
    commands: tuple[tuple[str, ...], ...]
    shown: str


def _examples(text: str) -> list[Example]:
    found = []
    for kind, body, shown in _BLOCK.findall(text):
        if kind == "sql":
            found.append(Example(kind, (("sql", body),), shown))
        else:
            lines = [line for line in body.splitlines() if line.startswith("$ ")]
            run = tuple(tuple(shlex.split(line)[2:]) for line in lines)
            found.append(Example(kind, run, body))
    return found


def _output(example: Example) -> str:
    if example.kind == "sql":
        return irmapdb(*example.commands[0]).said
    lines = [line for line in example.shown.splitlines() if line.startswith("$ ")]
    return "".join(
        f"{line}\n{irmapdb(*command).said}"
        for line, command in zip(lines, example.commands, strict=True)
    )


def _without_ages(text: str) -> str:
    # How long ago is not the same tomorrow; the width of its column may change with it.
    return _AGE.sub("AGE ", text)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("scenario")
    write_scenario(place / "irmap.db")
    return place


@pytest.fixture
def scenario(place, monkeypatch):
    monkeypatch.chdir(place)


@pytest.mark.parametrize(
    "example", _examples(PAGE.read_text()), ids=lambda example: example.commands[0][-1][:60]
)
def test_each_example_gives_the_output_on_the_page(scenario, example):
    assert _without_ages(_output(example)) == _without_ages(example.shown)


def test_the_page_has_questions_enough():
    cookbook = PAGE.read_text().partition("\n## Cookbook\n")[2].partition("\n## ")[0]
    questions = re.findall(r"^### .*\?$", cookbook, re.MULTILINE)
    assert len(questions) == len(set(questions)) >= _ENOUGH
    assert all("```sql" in part for part in cookbook.split("\n### ")[1:])


def test_every_table_view_and_column_is_on_the_page(scenario):
    text = PAGE.read_text()
    tables = text.partition("\n## Tables\n")[2].partition("\n## Views\n")[0]
    described = {}
    for section in tables.split("\n### ")[1:]:
        name = section.partition("\n")[0].strip("`")
        first_cells = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
        described[name] = [
            column for cell in first_cells for column in re.findall(r"`(\w+)`", cell)
        ]
    views = text.partition("\n## Views\n")[2].partition("\n## Cookbook\n")[0]
    for name, columns in re.findall(r"^\| `(\w+)` \| [^|]* \| (.*) \|$", views, re.MULTILINE):
        described[name] = re.findall(r"`(\w+)`", columns)
    with Ask.open("irmap.db") as ask:
        known = {name: sorted(columns) for name, columns in ask.columns().items()}
    assert {name: sorted(columns) for name, columns in described.items()} == known


def _rewritten(text: str) -> Iterator[str]:
    end = 0
    for found in _BLOCK.finditer(text):
        yield text[end : found.start()]
        (example,) = _examples(found[0])
        if example.kind == "sql":
            yield f"```sql\n{found[2]}```\n\n```text\n{_output(example)}```\n"
        else:
            yield f"```console\n{_output(example)}```\n"
        end = found.end()
    yield text[end:]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        write_scenario(Path(scratch, "irmap.db"))
        os.chdir(scratch)
        PAGE.write_text("".join(_rewritten(PAGE.read_text())))
