"""Tables on a terminal: aligned, no wider than it, and nothing of a cell is lost."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from irmapdb.commands.layout import Column, lay_out, text_width, wrap
from irmapdb.image import cache
from irmapdb.model import CacheEntry
from tests.support.cli import irmapdb
from tests.support.terminal import at_terminal

_LONG = (
    "/var/lib/application/releases/2026-11-28/configuration/templates/inherited/defaults/app.conf"
)


def _plain(_title: str, cell: str) -> str:
    return cell


def _lines(columns: str, *rows: tuple[str, ...], width: int | None = 80) -> list[str]:
    heads = [Column(one.rstrip(">").upper(), one.endswith(">")) for one in columns.split()]
    return list(lay_out(heads, rows, width, _plain))


def test_a_table_that_fits_is_a_line_a_row() -> None:
    assert _lines("pid> path", ("7", "/a"), ("12", "/b")) == ["PID  PATH", "  7  /a", " 12  /b"]


def test_a_long_path_goes_below_its_row() -> None:
    assert _lines(
        "pid> comm inode path", ("7", "x" * 40, "1:2", _LONG), ("8", "y", "1:3", "/a")
    ) == [
        "PID  COMM" + " " * 38 + "INODE  PATH",
        "  7  " + "x" * 40 + "  1:2",
        "    /var/lib/application/releases/2026-11-28/configuration/templates/inherited",
        "        /defaults/app.conf",
        "  8  y" + " " * 41 + "1:3    /a",
    ]


def test_a_short_text_is_wrapped_in_its_column() -> None:
    about = "watches of the last run without a path, and what each resolver said about it"
    assert _lines("name about", ("unresolved", about)) == [
        "NAME        ABOUT",
        "unresolved  watches of the last run without a path, and what each resolver said",
        "            about it",
    ]


def test_a_last_column_without_room_goes_below_each_row() -> None:
    name = "shop/prometheus-kube-state-metrics-7d9c5b-abcde/kube-state-metrics"
    why = "overlay does not open its handle (Stale file handle), and irmap knows no path"
    rows = (name, "3", "fails", why), ("b", "2", "all", "-")
    assert _lines("container watches> survive why", *rows, width=88) == [
        f"{'CONTAINER':66}  WATCHES  SURVIVE",
        "    WHY",
        f"{name}        3  fails",
        f"    {why}",
        f"{'b':66}        2  all      -",
    ]


def test_a_table_with_two_long_columns_is_a_list() -> None:
    assert _lines("run> path old_path", ("2", _LONG, "/a"), ("3", "/b", _LONG)) == [
        "RUN       2",
        "PATH      /var/lib/application/releases/2026-11-28/configuration/templates",
        "          /inherited/defaults/app.conf",
        "OLD_PATH  /a",
        "",
        "RUN       3",
        "PATH      /b",
        "OLD_PATH  /var/lib/application/releases/2026-11-28/configuration/templates",
        "          /inherited/defaults/app.conf",
    ]


def test_a_pipe_gets_a_line_a_row() -> None:
    assert _lines("path old", (_LONG, _LONG), width=None)[1] == f"{_LONG}  {_LONG}"
    assert len(_lines("path old", (_LONG * 9, _LONG), width=None)) == 2


@given(st.text(alphabet="ab/ \u65e5\u0301.-", max_size=300), st.integers(20, 100))
def test_a_wrapped_text_is_whole_and_fits(text: str, width: int) -> None:
    first, *rest = wrap(text, width)
    assert all(line.startswith("    ") for line in rest)
    assert first + "".join(line[4:] for line in rest) == text
    assert all(text_width(line) <= width for line in (first, *rest))


_cells = st.text(alphabet="ab/ \u65e5.-", max_size=120)


@given(st.lists(st.tuples(_cells, _cells, _cells), max_size=4), st.integers(40, 120))
def test_a_table_fits_and_every_character_is_there(
    rows: list[tuple[str, str, str]], width: int
) -> None:
    lines = _lines("first second> third", *rows, width=width)
    assert all(text_width(line) <= width for line in lines)

    def signs(text: str) -> list[str]:
        return sorted(re.sub(r"[A-Z\s]", "", text))  # capitals are in titles alone

    assert signs("".join(lines)) == signs("".join("".join(row) for row in rows))


@pytest.mark.parametrize(
    "words", ["show irmap-cache", "audit --all", "sql cache", "sql --list", "sql runs"]
)
def test_a_terminal_of_80_columns_is_wide_enough(tmp_path: Path, words: str) -> None:
    entries = [CacheEntry(1, 2, (_LONG * 4).encode()), CacheEntry(1, 3, "/\u65e5".encode() * 50)]
    (tmp_path / "irmap-cache").write_bytes(cache.encode_cache(entries))
    irmapdb("import", tmp_path / "irmap-cache", "-W", tmp_path)
    environment = {"COLUMNS": "80", "NO_COLOR": "1"}
    code, said = at_terminal(*words.split(), cwd=tmp_path, environment=environment)
    assert code in {0, 3}
    lines = said.decode().splitlines()
    assert max(map(text_width, lines)) <= 80
    if words not in {"sql runs", "sql --list"}:
        assert _LONG * 4 in re.sub(r"\n +", "", said.decode())
