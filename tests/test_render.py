"""Tables for people: aligned with names of any characters, and no name is cut."""

from __future__ import annotations

import pytest

from irmapdb.commands.render import print_table, printable
from irmapdb.store.database import Store
from tests.support.cli import irmapdb


def shown(capsys: pytest.CaptureFixture[str], columns: tuple[str, ...], *rows: tuple[str, ...]):
    print_table(columns, rows)
    return capsys.readouterr().out.splitlines()


def test_a_long_cell_moves_its_own_line_and_no_other(capsys) -> None:
    long = "/srv/" + "x" * 200
    lines = shown(
        capsys, ("path", "n>", "where"), ("/a", "1", "b"), (long, "22", "c"), ("-", "3", "d")
    )
    assert lines == ["PATH   N  WHERE", "/a     1  b", f"{long}  22  c", "-      3  d"]


def test_the_last_column_is_never_padded(capsys) -> None:
    assert shown(capsys, ("a", "b"), ("x" * 30, "y" * 300), ("x", "y")) == [
        "A" + " " * 31 + "B",
        "x" * 30 + "  " + "y" * 300,
        "x" + " " * 31 + "y",
    ]


@pytest.mark.parametrize("columns", [("path", "n"), ("path>", "n")])
def test_names_of_every_width_are_aligned(capsys, columns: tuple[str, ...]) -> None:
    names = {"/plain": 6, "/\u65e5\u672c\u8a9e": 7, "/e\u0301te\u0301": 4, "/\U0001f600": 3}
    _, *lines = shown(capsys, columns, *((name, "|") for name in names))
    for (name, width), line in zip(names.items(), lines, strict=True):
        space = " " * (7 - width)
        assert line == (f"{space}{name}  |" if ">" in columns[0] else f"{name}{space}  |")


def test_many_rows_beside_a_large_cell_stay_small(capsys) -> None:
    rows = [("x" * 100_000, "a"), *(("y", "b") for _ in range(1000))]
    print_table(("large", "small"), rows)
    assert len(capsys.readouterr().out) < 120_000


@pytest.mark.parametrize(
    "title", ["x" * 49, "x" * 300, "\u65e5" * 25, "e\u0301" * 100, "\u0301", ""]
)
@pytest.mark.parametrize("where", [0, 1, 2])
def test_a_title_of_any_width_is_printed(capsys, title: str, where: int) -> None:
    columns = ["a", "b>", "c"]
    columns[where] = title
    lines = shown(capsys, tuple(columns), ("1", "2", "3"))
    assert lines[0].split() == [one.rstrip(">").upper() for one in columns if one]
    assert lines[1].split() == ["1", "2", "3"]
    assert shown(capsys, tuple(columns))[0].split() == lines[0].split(), "without a row, too"


@pytest.mark.parametrize(
    "name", ["x" * 49, "\u65e5" * 25, "path || '" + "e\u0301" * 60, "a>", ">>", "\x9b"]
)
@pytest.mark.parametrize("value", ["1", "'\u65e5'"])
def test_an_answer_may_have_any_column(name: str, value: str, tmp_path) -> None:
    with Store.open(tmp_path / "irmap.db", create=True):
        pass
    quoted = name.replace('"', '""')
    for query in (f'SELECT {value} AS "{quoted}"', f'SELECT {value} AS "{quoted}", 2 AS b'):
        done = irmapdb("sql", query, "-W", tmp_path)
        assert (done.code, done.err) == (0, "")
        title, row = done.out.splitlines()
        assert title.strip().startswith(printable(name.upper().encode()))
        assert row.strip().startswith(value.strip("'"))


def test_nothing_but_titles(capsys) -> None:
    assert shown(capsys, ("a>", "b")) == ["A  B"]
