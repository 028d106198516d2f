"""The page of `irmapdb report` in a browser, compared with the rows of the database."""

from __future__ import annotations

import itertools
import re
import shlex
import sqlite3
import sys
from contextlib import closing
from datetime import UTC, datetime

import pytest

from irmapdb.store.database import Store
from tests.support.browser import Browser
from tests.support.cli import irmapdb
from tests.support.fleet_rows import HOSTILE, Maker

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser")]

_STOPS = """
    SELECT started_at, (criu_freezing_us + criu_frozen_us
        + CASE WHEN paused THEN paused_us ELSE freezing_us + frozen_us END) / 1000.0
    FROM run WHERE event = 'dump' OR paused ORDER BY id DESC LIMIT 40
"""
_PARTS = ("paused_ms", "freezing_ms", "reading_watches_ms", "asking_what_moved_ms", "proving_ms")


@pytest.fixture(scope="module")
def browser():
    with Browser() as made:
        yield made


@pytest.fixture
def database(tmp_path):
    path = Maker(tmp_path).make(tmp_path / "irmap.db", runs=30, watches=60)
    ask(path, "UPDATE run SET paused = 0, event = 'dump', tasks_frozen = 2 WHERE id % 2")
    return path


def ask(path, sql):
    with closing(sqlite3.connect(path)) as raw, raw:
        return raw.execute(sql).fetchall()


def write(tmp_path, *words):
    page = tmp_path / "report.html"
    done = irmapdb("report", "-o", page, *words)
    assert done.code == 0, done.said
    assert done.out == ""
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_needs_no_network_and_shows_no_fault(database, tmp_path, browser, width, scheme):
    page = write(tmp_path, "--db", database)
    browser.open(page, width=width, scheme=scheme)
    asked = [one for one in browser.requests() if not one.startswith("data:")]
    assert asked == [page.as_uri()]
    assert browser.console() == []
    browser.open_details()
    assert browser.ask("document.documentElement.scrollWidth") <= width
    assert browser.faults() == []
    assert browser.ask("document.scripts.length") == 0
    background = browser.ask("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")


def test_the_numbers_are_those_of_the_database(database, tmp_path, browser):
    browser.open(write(tmp_path, "--db", database))
    browser.open_details()

    stops = browser.cells("stops")
    expected = ask(database, _STOPS)
    assert [row[0] for row in stops] == [start[:19] for start, _ in expected]
    for row, (_, whole_ms) in zip(stops, expected, strict=True):
        parts_ms = [float(cell.replace(",", "")) for cell in row[4:] if cell]
        # Each of six parts is rounded to 0.1 ms.
        assert sum(parts_ms) == pytest.approx(whole_ms, abs=0.6)
    bars = browser.ask(
        "[...document.querySelectorAll('#stops svg .bars desc.value')].map(d => d.textContent)"
    )
    shown_ms = sum(float(bar.removesuffix(" ms").replace(",", "")) for bar in bars)
    assert shown_ms == pytest.approx(sum(ms for _, ms in expected[:20]), abs=12)

    (last,) = ask(database, "SELECT max(id) FROM run")[0]
    of_last = f"FROM watch WHERE run_id = {last} AND path IS NOT NULL"
    ((watches,),) = ask(database, f"SELECT count(*) {of_last}")
    assert sum(int(row[0]) for row in browser.cells("directories")) == watches
    tiles = browser.ask(
        "[...document.querySelectorAll('#directories svg desc.value')].map(d => d.textContent)"
    )
    assert sum(map(float, tiles)) == watches

    stale = ask(database, "SELECT stale_at FROM mapping WHERE stale_at IS NOT NULL ORDER BY 1 DESC")
    assert [row[0] for row in browser.cells("stale")] == [at[:19] for (at,) in stale]
    bars = browser.ask(
        "[...document.querySelectorAll('#stale svg .bars desc.value')].map(d => d.textContent)"
    )
    assert sum(map(float, bars)) == len(stale)

    for name in ("FROM frozen_dumps", "FROM watches_by_directory", "FROM stale_mappings"):
        assert name in browser.text()


def test_a_name_is_text_and_nothing_else(tmp_path, browser):
    path = Maker(tmp_path).make(tmp_path / "irmap.db", runs=40, watches=40)
    ask(path, "UPDATE mapping SET stale_at = validated_at, stale_reason = 'gone'")
    stored = {row[0] for row in ask(path, "SELECT CAST(path AS BLOB) FROM mapping")}
    assert stored == {*HOSTILE}
    browser.open(write(tmp_path, "--db", path))
    browser.open_details()
    text = browser.text()
    assert "<script>alert(1)</script>" in text
    assert r"/srv/caf\xe9" in text
    assert r"a\0b" in text or r"a\x00b" in text
    assert r"tab\there\nand\rthere" in text
    assert browser.console() == []
    assert browser.ask("document.scripts.length") == 0
    assert len(HOSTILE[7]) == 4096
    assert r"\xff" * 1000 in text


def test_a_large_database_makes_a_small_page(tmp_path):
    path = Maker(tmp_path).make(tmp_path / "irmap.db", runs=999, watches=1)
    names = [b"/srv/%d/%s/file-%d" % (n % 700, b"d" * 60, n) for n in range(10_000)]
    Maker(tmp_path).add(path, runs=1, watches=10_000, names=names)
    page = write(tmp_path, "--db", path)
    assert page.stat().st_size < 1_000_000
    assert "more are not shown" in page.read_text()


def test_it_is_for_its_owner_only_and_replaced_whole(database, tmp_path):
    other = tmp_path / "other"
    other.write_text("theirs")
    (tmp_path / "report.html").symlink_to(other)
    done = irmapdb("report", "-o", tmp_path / "report.html", "--db", database)
    assert other.read_text() == "theirs"
    if done.code == 0:
        assert (tmp_path / "report.html").lstat().st_mode & 0o7777 == 0o600


def test_no_run_yet(tmp_path, browser):
    with Store.open(tmp_path / "irmap.db", create=True) as store, store.step() as step:
        step.import_entries([], datetime.now(UTC))
    browser.open(write(tmp_path, "--db", tmp_path / "irmap.db"))
    assert "Not known: no pre-dump or dump has finished." in browser.text()
    assert browser.faults() == []


@pytest.mark.parametrize("value", ["'<b>'", "9e999", "-1", "x'ff'"])
def test_a_column_of_another_type_harms_no_chart(tmp_path, browser, value):
    path = Maker(tmp_path).make(tmp_path / "irmap.db", runs=3)
    ask(path, f"UPDATE run SET paused_us = {value}, watches = {value}, started_at = {value}")  # noqa: S608
    ask(path, f"UPDATE mapping SET stale_at = {value}, stale_reason = 'gone'")  # noqa: S608
    browser.open(write(tmp_path, "--db", path))
    assert browser.console() == []
    assert "How long were the tasks stopped?" in browser.text()


@pytest.mark.parametrize(
    "value", ["'0001-01-01 00:00:00.000000'", "'9999-12-31 23:59:59'", "'0001-01-05 00:00:00'"]
)
def test_the_first_and_the_last_hour_harm_no_chart(tmp_path, value):
    path = Maker(tmp_path).make(tmp_path / "irmap.db", runs=3)
    ask(path, f"UPDATE run SET event = 'dump', tasks_frozen = 1, paused = 0, started_at = {value}")  # noqa: S608
    ask(path, f"UPDATE run SET freezing_us = {value}, frozen_us = {value}, reread_us = {value}")  # noqa: S608
    ask(path, f"UPDATE mapping SET stale_at = {value}, stale_reason = 'gone'")  # noqa: S608
    page = write(tmp_path, "--db", path).read_text()
    assert "Stale paths, the last one first" in page


def test_many_long_paths_are_counted_and_not_read(tmp_path):
    # A tenant chose their number and length: together they are larger than an answer may be.
    path = Maker(tmp_path).make(tmp_path / "irmap.db", runs=3)
    ask(path, "UPDATE mapping SET stale_at = validated_at, stale_reason = 'gone'")
    ask(path, _LONG_STALE_PATHS)
    ((stale,),) = ask(path, "SELECT count(*) FROM stale_mappings")
    page = write(tmp_path, "--db", path).read_text()
    shown = page.count(">gone<")
    assert shown
    assert f"{stale - shown:,} more are not shown" in page


def test_rows_that_are_larger_than_an_answer_are_left_out(tmp_path):
    # 100 paths of 900 KB: SQLite takes a value of 1 MiB, and an answer has 64 MiB.
    path = Maker(tmp_path).make(tmp_path / "irmap.db")
    ask(path, _LONG_STALE_PATHS.replace("17000", "100").replace("%04080d", "%0900000d"))
    ((stale,),) = ask(path, "SELECT count(*) FROM stale_mappings")
    text = write(tmp_path, "--db", path).read_text()
    (left_out,) = re.findall(r"<caption>Stale paths[^<]*; (\d+) more are not shown", text)
    assert 0 < stale - int(left_out) < 70


def test_long_texts_make_no_large_page(tmp_path):
    path = Maker(tmp_path).make(tmp_path / "irmap.db", runs=60, watches=400)
    quotes = "printf('%.*c', 4000, '\"')"  # of five bytes each in HTML
    ask(path, f"UPDATE run SET event = 'dump', paused = 0, tasks_frozen = 1, comm = {quotes}")  # noqa: S608
    ask(path, f"UPDATE watch SET path = '/' || id || {quotes} || '/x' WHERE path IS NOT NULL")  # noqa: S608
    ask(path, "UPDATE watch SET path = NULL, why = 'x' WHERE NOT id % 2")
    ask(path, f"INSERT INTO tried SELECT id, 2, 'scan', {quotes} FROM watch WHERE path IS NULL")  # noqa: S608
    ask(path, "UPDATE mapping SET stale_at = validated_at, stale_reason = 'gone'")
    ask(path, f"UPDATE mapping SET path = '/' || id || {quotes}")  # noqa: S608
    page = write(tmp_path, "--db", path)
    assert page.stat().st_size < 1_000_000
    text = page.read_text()
    for figure in ("Watches without a path", "The dumps", "Watches of the last run", "Stale paths"):
        assert re.search(rf"<caption>{figure}[^<]*; [\d,]+ more are not shown", text), figure


# --- charts ---------------------------------------------------------------------------------------

_TEXTS = """[...document.querySelectorAll('figure svg')].map(svg => {
        const box = one => { const r = one.getBoundingClientRect();
            return [r.left, r.top, r.right, r.bottom, one.textContent] };
        return [box(svg), [...svg.querySelectorAll('text')].filter(one => one.textContent
            && getComputedStyle(one).display != 'none' && one.getClientRects().length
            && !one.transform.baseVal.length).map(box)];
    })
"""


def _overlaps(one, other):
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


@pytest.mark.parametrize("watches", [3, 120])
@pytest.mark.parametrize("runs", [1, 25])
@pytest.mark.parametrize("parts", ["pause", "freeze", "both"])
def test_each_text_of_a_chart_is_whole_and_on_none_other(tmp_path, browser, parts, runs, watches):
    names = [b"/srv/directory-%d/file" % n for n in range(100)]
    path = Maker(tmp_path).make(tmp_path / "irmap.db", runs=runs, watches=watches, names=names)
    if parts != "pause":
        some = "1" if parts == "freeze" else "id % 2"
        ask(path, f"UPDATE run SET paused = 0, event = 'dump', tasks_frozen = 2 WHERE {some}")  # noqa: S608
        ask(path, "UPDATE run SET reread_us = frozen_us / 9, confirm_us = frozen_us / 8")
        ask(path, "UPDATE run SET frozen_resolve_us = frozen_us / 7")
    ask(path, "UPDATE mapping SET stale_at = validated_at, stale_reason = 'gone'")
    browser.open(write(tmp_path, "--db", path))
    charts = browser.ask(_TEXTS)
    assert len(charts) >= 3
    for (left, top, right, bottom, _), texts in charts:
        assert texts
        for text in texts:
            assert left <= text[0] <= text[2] <= right, text
            assert top <= text[1] <= text[3] <= bottom, text
        for one, other in itertools.combinations(texts, 2):
            assert not _overlaps(one, other), (one, other)
    ticks = browser.ask(
        "[...document.querySelectorAll('figure svg .axis.y text')].map(t => t.textContent)"
    )
    assert not any("…" in tick for tick in ticks if tick[:1].isdigit())
    colours = browser.ask(
        "[...document.querySelectorAll('#stops .legend rect')].map(r => getComputedStyle(r).fill)"
    )
    assert len({*colours}) == len(colours)
    assert len(colours) >= (8 if parts == "both" and runs > 1 else 3)


def test_a_chart_of_a_part_says_so(tmp_path, browser):
    names = [b"/srv/%d/file" % n for n in range(1000)]
    path = Maker(tmp_path).make(tmp_path / "irmap.db", runs=30, watches=900, names=names)
    browser.open(write(tmp_path, "--db", path))
    count = "SELECT count(DISTINCT path) FROM watch WHERE run_id = (SELECT max(id) FROM run)"
    ((directories,),) = ask(path, count)
    assert f"; the largest 24 of {directories:,} directories" in browser.text()
    assert "; the last 20 of 30 dumps" in browser.text()


def test_on_paper_no_table_is_cut_and_the_numbers_are_open(tmp_path, browser, database):
    page = write(tmp_path, "--db", database)
    browser.open(page, width=718, media="print")  # A4 without Chromium's margins
    assert browser.ask("document.documentElement.scrollWidth") <= 718
    wide = browser.ask("[...document.querySelectorAll('table')].map(t => t.offsetWidth)")
    assert max(wide) <= 718
    heights = browser.ask(
        "[...document.querySelectorAll('details.numbers table')].map(t => t.offsetHeight)"
    )
    assert min(heights) > 0


def test_each_region_is_reached_by_the_tab_key(tmp_path, browser, database):
    browser.open(write(tmp_path, "--db", database))
    reached = browser.tab_through()
    wanted = browser.ask(
        "[...document.querySelectorAll('a[href], summary, [role=region]')]"
        ".filter(one => one.checkVisibility()).length"
    )
    assert len(reached) == wanted
    assert all(outline != "none" for outline in reached)


_LONG_STALE_PATHS = """
    WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < 17000)
    INSERT INTO mapping (dev, ino, path, mntns, revalidate, source, first_seen_at, stale_at,
        stale_reason)
    SELECT 1, n, '/' || n || printf('%04080d', 0), 0, 0, 'scan', '2026-01-01 00:00:00.000000',
        '2026-01-01 00:00:00.000000', 'gone'
    FROM number
"""


# --- several databases ----------------------------------------------------------------------------


def test_all_databases_of_a_node(tmp_path, browser):
    directory = tmp_path / "databases"
    directory.mkdir(mode=0o700)
    maker = Maker(tmp_path)
    for name in ("web.0123456789abcdef.db", "db.fedcba9876543210.db"):
        maker.make(directory / name, runs=3)
    (directory / "broken.0000000000000000.db").write_bytes(b"SQLite format 3\0" + b"\xff" * 4096)
    config = tmp_path / "irmapdb.toml"
    config.write_text(f'[warm]\ndirectory = "{directory}"\n')
    page = tmp_path / "report.html"
    done = irmapdb("report", "--all", "-o", page, "--config", config)
    assert done.code == 0, done.said
    assert "broken.0000000000000000" in done.err
    browser.open(page)
    browser.open_details()
    rows = browser.ask(
        "[...document.querySelectorAll('#stops tbody tr')].map(r => r.cells[0].textContent)"
    )
    assert {*rows} == {"web.0123456789abcdef", "db.fedcba9876543210"}
    assert len(rows) == 6
    assert "broken.0000000000000000" in browser.text()
    assert browser.faults() == []


@pytest.mark.parametrize("broken", [True, False])
def test_the_only_database_of_a_node(tmp_path, broken):
    directory = tmp_path / "databases"
    directory.mkdir(mode=0o700)
    only = directory / "web.0123456789abcdef.db"
    Maker(tmp_path).make(only, runs=3)
    if broken:
        only.write_bytes(b"SQLite format 3\0" + b"\xff" * 4096)
    config = tmp_path / "irmapdb.toml"
    config.write_text(f'[warm]\ndirectory = "{directory}"\n')
    page = tmp_path / "report.html"
    done = irmapdb("report", "--all", "-o", page, "--config", config)
    assert done.code == 0, done.said
    text = page.read_text()
    assert ('<h2 id="problems-title">Not read</h2>' in text) == broken
    assert ">web.0123456789abcdef<" in text or broken


def test_the_name_of_a_database_does_not_control_the_terminal(tmp_path):
    directory = tmp_path / "databases"
    directory.mkdir(mode=0o700)
    for name in ("a\x1b[2Jb.0000000000000000.db", "c.0000000000000000.db"):
        (directory / name).write_bytes(b"SQLite format 3\0" + b"\xff" * 4096)
    config = tmp_path / "irmapdb.toml"
    config.write_text(f'[warm]\ndirectory = "{directory}"\n')
    done = irmapdb("report", "--all", "-o", tmp_path / "report.html", "--config", config)
    assert done.code == 0, done.said
    assert "a\\x1b[2Jb" in done.err
    assert all(line.isprintable() for line in done.err.splitlines())


# --- wrong use ------------------------------------------------------------------------------------


def test_without_the_extra_it_says_how_to_install_it(database, tmp_path, monkeypatch):
    for name in ("irmapdb.report.page", "irmapdb.report.charts"):
        monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.delattr(name, raising=False)
    monkeypatch.setitem(sys.modules, "pygal", None)
    done = irmapdb("report", "-o", tmp_path / "report.html", "--db", database)
    assert done.code == 1
    # The pip on PATH can belong to another environment.
    assert f"run `{shlex.quote(sys.executable)} -m pip install 'irmapdb[report]'`" in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--all --db x", "exclude each other"),
        ("--all --from postgresql://h/d", "exclude each other"),
        ("-W . --from postgresql://h/d", "exclude each other"),
    ],
)
def test_one_subject_is_given(tmp_path, words, said):
    done = irmapdb("report", "-o", tmp_path / "r.html", *words.split())
    assert done.code == 2
    assert said in done.err


def test_no_database(tmp_path):
    done = irmapdb("report", "-o", tmp_path / "r.html", "-W", tmp_path)
    assert done.code == 1
    assert "irmap.db" in done.err
    assert not (tmp_path / "r.html").exists()
