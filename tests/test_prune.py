"""The rows that prune deletes and keeps, and that a year of runs makes no large file."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from irmapdb.config import Config, Retention, load_config
from irmapdb.convert import import_image
from irmapdb.durations import before, parse_duration
from irmapdb.errors import ConfigError
from irmapdb.image.cache import encode_cache
from irmapdb.model import (
    CacheEntry,
    Change,
    ChangeKind,
    Event,
    FileHandle,
    Identity,
    Mapping,
    Resolved,
    RunStats,
    Source,
    StaleReason,
    Tried,
    Watch,
    WatchKind,
)
from irmapdb.prune import PruneOptions, prune
from irmapdb.store.database import Store
from irmapdb.store.records import WatchRow
from irmapdb.store.retention import _EVERY, _FEW, Pruned

NOW = datetime.now(UTC)
KDEV = 254 << 20
EVERYTHING = Retention(
    keep_runs=10**9,
    keep_rows=10**9,
    stale_older_than=timedelta(days=10**5),
    unused_older_than=timedelta(days=10**5),
)


def inode(ino: int) -> Identity:
    return Identity(KDEV, ino, FileHandle(1, ino.to_bytes(8, "little")))


class Life:
    """A database with times that the test chooses, and steps by the store's API as of pre_dump."""

    def __init__(self, path: Path, keep: Retention = EVERYTHING, watches: int = 3) -> None:
        self.path = path
        self.keep = keep
        self.now = NOW - timedelta(days=400)
        self.paths = [b"/srv/data/incoming/%04d.csv" % n for n in range(watches)]
        self.inos = list(range(1, watches + 1))
        self.last_ino = watches
        self.pruned = Pruned()

    def step(self, store: Store, replaced: int = 0) -> int:
        """One pre-dump; before it so many of the watched files were replaced by new ones."""
        lost, found = [], []
        for number in range(replaced):
            slot = (self.last_ino + number) % len(self.paths)
            path = self.paths[slot]
            known = inode(self.inos[slot])
            lost.append(
                Mapping(known, path, Source.HANDLE, revalidate=False, first_seen_at=self.now)
            )
            self.last_ino += 1
            self.inos[slot] = self.last_ino
            found.append(Change(ChangeKind.FOUND, inode(self.last_ino), path))
        gone = [
            Change(ChangeKind.STALE, row.identity, row.path, reason=StaleReason.REPLACED)
            for row in lost
        ]
        resolved = [
            Resolved(inode(ino), path, Source.HANDLE)
            for ino, path in zip(self.inos, self.paths, strict=True)
        ]
        with store.step() as tx:
            tx.flag_all()
            tx.mark_stale([(row, StaleReason.REPLACED) for row in lost], self.now)
            tx.prove(resolved, self.now)
            run_id = self.add_run(tx, Event.PRE_DUMP, len(resolved))
            tx.add_watches(run_id, [self.watch(one) for one in resolved])
            tx.add_changes(run_id, [*gone, *found], self.now)
            tx.set_image([CacheEntry(*one.identity.key, one.path) for one in resolved])
            wrote = len(resolved) + len(gone) + len(found)
            self.pruned = self.pruned.plus(tx.prune(self.keep, self.now, wrote))
        return run_id

    def add_run(self, tx, event: Event, watches: int = 0, outcome: str = "done") -> int:
        return tx.add_run(
            event,
            pid=42,
            comm=b"app",
            started_at=self.now,
            finished_at=self.now,
            stats=RunStats(watches=watches, resolved=watches, sources={"handle": watches}),
            outcome=outcome,
        )

    def watch(self, one: Resolved) -> WatchRow:
        watch = Watch(42, 3, WatchKind.INOTIFY, 1, one.identity, 2, 0, 0)
        return WatchRow(watch, b"app", None, "because", tried=(Tried("handle", "because"),))


def counts(path: Path) -> dict[str, int]:
    with closing(sqlite3.connect(path)) as raw:
        assert raw.execute("PRAGMA foreign_key_check").fetchall() == []
        return {
            table: raw.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608
            for table in ("run", "run_source", "watch", "tried", "change", "mapping")
        }


def pruned(path: Path, **kwargs: object) -> Pruned:
    """By hand; a dry run before it says the same and writes nothing."""
    options = PruneOptions(path, keep=EVERYTHING._replace(**kwargs))
    before = path.read_bytes()
    foretold = prune(options._replace(dry_run=True))
    assert path.read_bytes() == before
    done = prune(options)
    assert done.pruned == foretold.pruned
    assert prune(options._replace(dry_run=True)).pruned.mappings == 0
    return done.pruned


@pytest.fixture
def life(tmp_path: Path) -> Life:
    return Life(tmp_path / "irmap.db")


def live_steps(life: Life, steps: int, apart: timedelta = timedelta(days=1), **kwargs: int) -> None:
    with Store.open(life.path, create=True) as store:
        for _ in range(steps):
            life.now += apart
            life.step(store, **kwargs)


def test_the_newest_runs_stay_with_their_watches(life: Life) -> None:
    live_steps(life, 10)
    assert pruned(life.path, keep_runs=4) == Pruned(runs=6, watches=18)
    with Store.open_readonly(life.path) as store:
        runs = list(store.runs())
        assert [run.id for run in runs] == [7, 8, 9, 10, 11]
        assert [len(list(store.watches(run.id))) for run in runs] == [3, 3, 3, 3, 0]
        assert (runs[-1].event, runs[-1].outcome) == (Event.PRUNE, "6 runs, 18 watches")
        assert {change.run_id for change in store.changes()} <= {None}
    assert counts(life.path)["tried"] == counts(life.path)["watch"] == 12


def test_runs_with_many_watches_are_fewer(life: Life) -> None:
    live_steps(life, 10)
    assert pruned(life.path, keep_rows=9) == Pruned(runs=7, watches=21)
    # One run more than that may be: the newest stays whole.
    assert pruned(life.path, keep_rows=2) == Pruned(runs=2, watches=6)


def test_the_newest_step_stays_also_behind_other_runs(life: Life) -> None:
    live_steps(life, 3)
    with Store.open(life.path, create=False) as store:
        for event, outcome in ((Event.IMPORT, "done"), (Event.DUMP, "failed: frozen")):
            for _ in range(5):
                with store.step() as tx:
                    life.add_run(tx, event, outcome=outcome)
    # The imports and the failures go by number like all others.
    assert pruned(life.path, keep_runs=4) == Pruned(runs=8, watches=6)
    with Store.open_readonly(life.path) as store:
        assert [run.id for run in store.runs()] == [3, 10, 11, 12, 13, 14]
        assert len(list(store.watches(3))) == 3
    assert pruned(life.path, keep_runs=1) == Pruned(runs=4)
    assert pruned(life.path, keep_runs=1) == Pruned(runs=1)
    assert pruned(life.path, keep_runs=1) == Pruned(), "it takes out its own runs for ever"


@pytest.mark.slow
def test_a_database_with_imports_and_audits_alone_does_not_grow(tmp_path: Path) -> None:
    # A file a day is imported, and the audit of the day after finds it gone.
    life = Life(tmp_path / "irmap.db")
    keep = Retention(keep_runs=20, keep_rows=10**9, stale_older_than=timedelta(days=30))
    live_steps(life, 1)
    sizes = []
    with Store.open(life.path, create=False) as store:
        for day in range(300):
            life.now += timedelta(days=1)
            entries = [CacheEntry(KDEV, 1000 + 50 * day + n, b"/in/%d" % n) for n in range(50)]
            with store.step() as tx:
                new = tx.import_entries(entries, life.now)
                life.add_run(tx, Event.IMPORT)
                tx.prune(keep, life.now, new)
            with store.step() as tx:
                known = tx.load({entry.key for entry in entries}, 0)
                rows = [row for some in known.values() for row in some]
                tx.mark_stale([(row, StaleReason.GONE) for row in rows], life.now)
                run_id = life.add_run(tx, Event.AUDIT_FIX)
                gone = [
                    Change(ChangeKind.STALE, row.identity, row.path, reason=StaleReason.GONE)
                    for row in rows
                ]
                tx.add_changes(run_id, gone, life.now)
                tx.prune(keep, life.now, len(gone))
            sizes.append(sum(counts(life.path).values()))
    assert max(sizes[200:]) <= max(sizes[60:100])
    left = counts(life.path)
    assert left["run"] == 20 + 1
    assert left["change"] <= 31 * 50
    assert left["mapping"] <= (31 + _EVERY) * 50 + 3


def test_an_import_deletes_old_rows(tmp_path: Path) -> None:
    image = tmp_path / "irmap-cache"
    image.write_bytes(encode_cache([CacheEntry(KDEV, 2, b"/a")]))
    for keep, left in ((Retention(keep_runs=3), 3), (Retention(automatic=False, keep_runs=1), 8)):
        for _ in range(5):
            import_image(image, tmp_path / "irmap.db", keep)
        assert counts(tmp_path / "irmap.db")["run"] == left


def test_stale_mappings_and_changes_go_by_age(life: Life) -> None:
    life.now = NOW - timedelta(days=10)
    live_steps(life, 10, replaced=1)  # one a day, the last one now
    before = counts(life.path)
    assert (before["mapping"], before["change"]) == (12, 20)
    # Stale since 10 … 1 days ago, and one just now: the first step found its own files replaced.
    done = pruned(life.path, stale_older_than=timedelta(days=4, hours=12))
    assert done == Pruned(changes=10, mappings=4)
    with Store.open_readonly(life.path) as store:
        rows = list(store.all_mappings())
        assert [change.at for change in store.changes()] == sorted(
            change.at for change in store.changes()
        )
        assert min(change.at for change in store.changes()) > NOW - timedelta(days=4, hours=12)
    assert sum(not row.stale for row in rows) == 3
    assert all(
        row.stale_at > NOW - timedelta(days=4, hours=12) for row in rows if row.stale_at is not None
    )


def test_a_mapping_without_a_watch_is_deleted_after_its_time(life: Life) -> None:
    life.now = NOW - timedelta(days=50)
    live_steps(life, 1)
    with Store.open(life.path, create=False) as store, store.step() as tx:
        tx.prove([Resolved(inode(90), b"/unwatched", Source.SCAN)], life.now)
        tx.import_entries([CacheEntry(KDEV, 91, b"/imported")], life.now)
    life.now = NOW - timedelta(days=1)
    live_steps(life, 1)  # irmap-cache now has the entry of this run
    with Store.open(life.path, create=False) as store, store.step() as tx:
        tx.import_entries([CacheEntry(KDEV, 92, b"/in-the-image")], NOW - timedelta(days=50))
    assert pruned(life.path, unused_older_than=timedelta(days=60)) == Pruned()
    assert pruned(life.path, unused_older_than=timedelta(days=40)) == Pruned(mappings=2)
    with Store.open_readonly(life.path) as store:
        kept = {row.path for row in store.all_mappings()}
    assert kept == {*life.paths, b"/in-the-image"}
    # The mappings of the newest run stay, also if it was long ago.
    assert pruned(life.path, unused_older_than=timedelta(minutes=1)) == Pruned()


@pytest.mark.parametrize("days", [739_000, 999_999, timedelta.max.days])
def test_a_span_longer_than_our_era_keeps_all(life: Life, days: int) -> None:
    assert before(NOW, timedelta(days=days)) < NOW - timedelta(days=700_000)
    span = timedelta(days=days)
    life.keep = Retention(stale_older_than=span, unused_older_than=span)
    live_steps(life, 3, replaced=1)
    assert life.pruned == Pruned()
    keep = {"stale_older_than": span, "unused_older_than": span}
    assert pruned(life.path, **keep) == Pruned()


def test_no_more_rows_than_allowed(life: Life) -> None:
    live_steps(life, 40, replaced=2)  # those of the first step were never stored
    assert pruned(life.path, keep_rows=30).mappings == 39 * 2 - 30
    left = counts(life.path)
    assert (left["change"], left["mapping"]) == (30, 30 + 3)
    with Store.open_readonly(life.path) as store:
        stale = [row.stale_at for row in store.all_mappings() if row.stale_at is not None]
        assert min(stale) > life.now - timedelta(days=16), "the oldest go first"


@settings(max_examples=settings.default.max_examples // 4)
@given(
    steps=st.lists(st.integers(0, 3), min_size=1, max_size=12),
    keep_runs=st.integers(1, 12),
    keep_rows=st.integers(1, 40),
    days=st.integers(1, 14),
)
def test_a_dry_run_counts_the_rows_that_a_run_deletes(
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[int],
    keep_runs: int,
    keep_rows: int,
    days: int,
) -> None:
    life = Life(tmp_path_factory.mktemp("life") / "irmap.db")
    life.now = NOW - timedelta(days=len(steps))
    with Store.open(life.path, create=True) as store:
        for replaced in steps:
            life.now += timedelta(days=1)
            life.step(store, replaced)
    before = counts(life.path)
    span = timedelta(days=days, hours=1)
    done = pruned(
        life.path,
        keep_runs=keep_runs,
        keep_rows=keep_rows,
        stale_older_than=span,
        unused_older_than=span,
    )
    after = counts(life.path)
    assert done.watches == before["watch"] - after["watch"]
    assert done.changes == before["change"] - after["change"]
    assert done.mappings == before["mapping"] - after["mapping"]
    told = done not in (Pruned(), Pruned(runs=1))
    assert done.runs == before["run"] - after["run"] + told
    assert 1 <= after["run"] - told <= max(keep_runs, 1)
    assert after["change"] <= keep_rows
    assert after["mapping"] <= keep_rows + 3


@pytest.mark.slow
def test_a_step_takes_out_a_bounded_part(life: Life) -> None:
    live_steps(life, 1500, apart=timedelta(minutes=1), replaced=1)
    assert life.pruned == Pruned()
    life.keep = EVERYTHING._replace(keep_runs=1, keep_rows=1)
    live_steps(life, 1, replaced=1)
    at_most = _FEW + 2 * 5
    assert 0 < life.pruned.watches + life.pruned.runs <= at_most
    assert 0 < life.pruned.changes <= at_most
    live_steps(life, 3 * _EVERY, replaced=1)
    left = counts(life.path)
    assert (left["run"], left["watch"], left["change"]) == (1, 3, 1)
    assert left["mapping"] <= 3 + 1 + _EVERY


@pytest.mark.slow
def test_a_year_of_a_hook_that_runs_every_minute(tmp_path: Path) -> None:
    # A step is in the place of six hours of runs. It replaces as many files as all of these runs
    # (one in five minutes), and from the thousandth on as many runs are kept.
    life = Life(tmp_path / "irmap.db", keep=Config().retention, watches=50)
    sizes = []
    with Store.open(life.path, create=True) as store:
        for number in range(365 * 4):
            life.now += timedelta(hours=6)
            life.step(store, replaced=72)
            if number % 40 == 39:
                size, free = store.size()
                assert free <= size
                sizes.append(size)
    day_270, end = sizes[27], sizes[-1]
    assert end <= day_270 * 1.02, "it grows for ever"
    assert end < 30e6
    left = counts(life.path)
    assert (left["run"], left["watch"]) == (1000, 50_000)
    month = 30 * 288
    assert 2 * month <= left["change"] <= 2 * month + 288
    assert left["mapping"] <= month + 50 + 72 * (_EVERY + 1)


@pytest.mark.slow
def test_it_is_made_smaller_when_asked(life: Life) -> None:
    live_steps(life, 300, apart=timedelta(minutes=1), replaced=3)
    keep = EVERYTHING._replace(keep_runs=1, keep_rows=1)
    done = prune(PruneOptions(life.path, keep=keep))
    assert done.free > done.size / 2
    smaller = prune(PruneOptions(life.path, keep=keep, vacuum=True))
    assert (smaller.free, smaller.run_id) == (0, None)
    assert smaller.size < done.size / 2
    with Store.open_readonly(life.path) as store:
        assert {row.path for row in store.all_mappings() if not row.stale} == set(life.paths)


# The configuration, and the command


def test_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "irmapdb.toml"
    path.write_text(
        "[retention]\nautomatic = false\nkeep-runs = 5\nkeep-rows = 6\n"
        'stale-older-than = "12h"\nunused-older-than = "2w"\n'
    )
    assert load_config(path).retention == Retention(
        automatic=False,
        keep_runs=5,
        keep_rows=6,
        stale_older_than=timedelta(hours=12),
        unused_older_than=timedelta(weeks=2),
    )
    for line, what in (
        ("keep-runs = 0", "above 0"),
        ("keep-runs = true", "above 0"),
        ('keep-rows = "many"', "above 0"),
        ('stale-older-than = "soon"', "30d"),
        ("unused-older-than = 30", "no span"),
        ("automatic = 1", "neither true nor false"),
        ("keep-run = 1", "did you mean retention.keep-runs"),
    ):
        path.write_text(f"[retention]\n{line}\n")
        with pytest.raises(ConfigError, match=what):
            load_config(path)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("45s", 45), ("90m", 5400), ("2h", 7200), ("1.5h", 5400), (" 30d ", 2592000), ("4w", 2419200)],
)
def test_spans(text: str, seconds: int) -> None:
    assert parse_duration(text).total_seconds() == seconds


@pytest.mark.parametrize("text", ["", "2", "h", "-2h", "2 years", "999999999w", "2h30m", "nan s"])
def test_no_spans(text: str) -> None:
    with pytest.raises(ValueError, match=r"span of time|clock"):
        parse_duration(text)


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "irmapdb", "prune", *map(os.fspath, words)],
        check=False,
        capture_output=True,
        text=True,
    )


def test_the_command(life: Life) -> None:
    live_steps(life, 10)
    before = life.path.read_bytes()
    done = run("--db", life.path, "--keep-runs", "2", "--stale-older-than", "9999d", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "would delete: 8 runs, 24 watches" in done.stdout
    assert life.path.read_bytes() == before
    done = run("--db", life.path, "--keep-runs", "2", "--stale-older-than", "9999d", "--json")
    assert json.loads(done.stdout)["pruned"]["runs"] == 8
    spans = ("--stale-older-than", "999999d", "--unused-older-than", "999999d")
    assert run("--db", life.path, "--dry-run", *spans).stdout.startswith("would delete: nothing")
    for words, code, what in (
        (("--stale-older-than", "x"), 2, "no span of time"),
        (("--keep-runs", "0"), 2, "keep-runs"),
        (("--db", "/nowhere/irmap.db"), 1, "no such database"),
    ):
        refused = run("--db", life.path, *words)
        assert (refused.returncode, what in refused.stderr) == (code, True)
