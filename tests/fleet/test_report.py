"""The report of the fleet, beside the rows of the databases that were pushed."""

from __future__ import annotations

import html
import re
import sqlite3
from contextlib import closing
from datetime import UTC, datetime

import pytest

from irmapdb.fleet.push import PushOptions, push
from irmapdb.fleet.server import find_server
from irmapdb.fleet.sources import CheckVerdict, ContainerFacts, PushSource, node_facts
from tests.support.cli import irmapdb

_STOPPED = "paused_us + criu_freezing_us + criu_frozen_us"

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("postgres")]


def _ask(path, sql):
    with closing(sqlite3.connect(path)) as raw, raw:
        return raw.execute(sql).fetchall()


def _cells(page, section):
    body = page[page.index(f'<section id="{section}"') :].split("</section>")[0]
    tables = re.findall(r"<tbody>(.*?)</tbody>", body, re.DOTALL)
    return [
        [html.unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL)]
        for row in re.findall(r"<tr>(.*?)</tr>", tables[0], re.DOTALL)
    ]


def test_the_page_has_the_rows_of_all_nodes(url, maker, tmp_path):
    paths = []
    for node in ("one", "two", "three"):
        path = maker.make(tmp_path / f"{node}.db", runs=4, watches=12)
        _ask(path, "UPDATE run SET frozen_us = 0")  # as in a pause
        done = irmapdb("fleet", "push", path, "--to", url, "--node", node)
        assert done.code == 0, done.said
        paths.append(path)
    done = irmapdb("report", "--from", url, "-o", tmp_path / "fleet.html")
    assert done.code == 0, done.said
    page = (tmp_path / "fleet.html").read_text()

    stops_us = sorted(
        (us for path in paths for (us,) in _ask(path, f"SELECT {_STOPPED} FROM run")),
        reverse=True,
    )
    shown_ms = [
        sum(float(cell.replace(",", "")) for cell in row[4:] if cell)
        for row in _cells(page, "stops")
    ]
    assert shown_ms == pytest.approx([us / 1000 for us in stops_us], abs=0.3)

    last = "SELECT count(path) FROM watch WHERE run_id = (SELECT max(id) FROM run)"
    watches = sum(_ask(path, last)[0][0] for path in paths)
    assert sum(int(row[0]) for row in _cells(page, "directories")) == watches

    stale = sum(
        _ask(path, "SELECT count(*) FROM mapping WHERE stale_at NOT NULL")[0][0] for path in paths
    )
    assert len(_cells(page, "stale")) == stale
    assert "<script>alert" not in page


def test_the_verdicts_of_the_last_check_come_first(url, maker, tmp_path):
    path = maker.make(tmp_path / "one.db", runs=2)
    at = datetime(2026, 11, 28, 7, tzinfo=UTC)
    verdicts = (
        CheckVerdict(at, "no-path", 3, None, None, fails=False),
        CheckVerdict(at, "fails", 1, "a deleted <file>", "let the task remove it", fails=True),
        CheckVerdict(at, "path", 7, None, None, fails=False),
    )
    source = PushSource(bytes(path), "web.0", ContainerFacts(), verdicts)
    push(PushOptions(find_server(url), node_facts("one"), [source], (), wait_s=0))
    done = irmapdb("report", "--from", url, "-o", tmp_path / "fleet.html")
    assert done.code == 0, done.said
    rows = [row[2:] for row in _cells((tmp_path / "fleet.html").read_text(), "next")]
    assert rows == [
        ["fails", "1", "a deleted <file>", "let the task remove it"],
        ["no-path", "3", "", ""],
    ]


def test_a_fleet_without_rows(url, tmp_path):
    done = irmapdb("report", "--from", url, "-o", tmp_path / "fleet.html")
    assert done.code == 0, done.said
    assert "Not known" in (tmp_path / "fleet.html").read_text()
