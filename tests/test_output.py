"""Tables for people: aligned whatever the names are made of, and none is cut."""

from __future__ import annotations

import pytest

from irmapdb.commands.output import print_table


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


def test_nothing_but_titles(capsys) -> None:
    assert shown(capsys, ("a>", "b")) == ["A  B"]
