"""A database, or an irmap-cache, in which another user has put any number of rows for one inode."""

from __future__ import annotations

import os
import sqlite3
from collections import Counter, deque
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import islice

import pytest

from irmapdb.audit import check, root_audit
from irmapdb.audit.check import AuditOptions, audit
from irmapdb.audit.fix import mend
from irmapdb.checkpoint import transaction
from irmapdb.checkpoint.steps import pre_dump
from irmapdb.checkpoint.work_dir import MappingsAndNews, News
from irmapdb.criu.hook import attend
from irmapdb.errors import DatabaseError
from irmapdb.image.cache import decode_cache, encode_cache
from irmapdb.kernel.proof import disproof, identify
from irmapdb.kernel.root import open_root
from irmapdb.model import CacheEntry, InodeKey, Resolved, Source
from irmapdb.resolve.search import Search
from irmapdb.store import entries
from irmapdb.store.database import Store
from irmapdb.store.entries import read_entries
from irmapdb.store.inode_report import MOST_INODES
from irmapdb.store.mappings import ROWS_OF_INODE, StoredMappings, open_mappings
from irmapdb.store.records import FileStamp
from irmapdb.store.snapshot import Snapshot
from irmapdb.store.values import MAX_PATH_BYTES, to_time
from tests.support.cli import irmapdb
from tests.support.features import require_root
from tests.support.hostile import give_away, run_forked
from tests.support.searching import files_of
from tests.support.stepping import NO_HINTS, options_for
from tests.support.watcher import Watcher

LONG_AGO = datetime(2026, 11, 1, tzinfo=UTC)
NOW = datetime(2026, 11, 28, tzinfo=UTC)
MANY = 12_000

_COUNTED = (
    "WITH RECURSIVE counted(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM counted WHERE x < ?1)"
)
_MAPPINGS = (
    "INSERT INTO mapping (dev, ino, handle_type, handle, path, revalidate, source, first_seen_at,"
    f" validated_at, stale_at, stale_reason) {_COUNTED}"
)


class Many:
    """A file, its database, and rows that only a hostile user would write."""

    def __init__(self, directory):
        self.directory = directory
        self.file = os.fsencode(directory / "file")
        os.close(os.open(self.file, os.O_CREAT))
        self.database = directory / "irmap.db"
        with open_root(os.getpid()) as root:
            self.identity = identify(root, self.file)
        with Store.open(self.database, create=True) as store, store.step() as tx:
            tx.prove([Resolved(self.identity, self.file, Source.SCAN)], LONG_AGO)

    @property
    def key(self):
        return self.identity.key

    def sql(self, statement, *values):
        with closing(sqlite3.connect(self.database)) as raw, raw:
            return raw.execute(statement, values).fetchall()

    def add(self, count, *, dev="?2", ino="?3", path="?6 || '-' || x", at=NOW, stale=False):
        """Rows whose paths are wrong, each proved a microsecond after the one before."""
        handle = self.identity.handle
        stamps = f"'{at:%Y-%m-%d} 00:00:00.' || printf('%06d', x)"
        gone = f"'{at:%Y-%m-%d} 00:00:00.000000', 'gone'" if stale else "NULL, NULL"
        self.sql(
            f"{_MAPPINGS} SELECT {dev}, {ino}, ?4, ?5, {path}, 0, 'scan', {stamps}, {stamps},"  # noqa: S608 ours
            f" {gone} FROM counted",
            *(count, *self.key, handle.type, handle.data, self.file.decode()),
        )

    def load(self, *keys):
        with open_mappings(self.database, wait_s=5) as stored:
            return stored.load(keys or [self.key])


@pytest.fixture
def many(tmp_path):
    require_root()  # handles
    return Many(tmp_path)


def test_the_live_rows_that_were_proved_last_are_loaded(many):
    many.add(MANY, stale=True)
    many.sql("UPDATE mapping SET path = path || 'z' WHERE id = 1")
    for path in (b"/late", b"/later"):
        with Store.open(many.database, create=False) as store, store.step() as tx:
            tx.prove([Resolved(many.identity, path, Source.SCAN)], NOW - timedelta(days=1))
    rows = many.load()[many.key]
    assert len(rows) == ROWS_OF_INODE
    assert [row.path for row in rows if not row.stale] == [many.file + b"z", b"/late", b"/later"]
    assert [row.id for row in rows] == sorted(row.id for row in rows)


def test_all_rows_of_an_inode_with_a_few_are_loaded(many):
    many.add(ROWS_OF_INODE - 1)
    assert len(many.load()[many.key]) == ROWS_OF_INODE


def test_a_batch_of_inodes_has_a_limit_too(many):
    many.add(40_000, ino="1000 + x % 400")
    found = many.load(*(InodeKey(many.key.kdev, 1000 + one) for one in range(400)), many.key)
    assert len(found) == 401
    assert sum(map(len, found.values())) <= 20 * 401
    assert min(map(len, found.values())) == 1  # the file's own row
    for key, rows in found.items():
        newest = many.sql("SELECT max(validated_at) FROM mapping WHERE ino = ?", key.ino)
        assert [(to_time(max(row.validated_at for row in rows)),)] == newest


def steps_to_load(many):
    """The number of SQLite's own steps: the same in each run."""
    steps = 0

    def count():
        nonlocal steps
        steps += 1

    with closing(sqlite3.connect(many.database)) as raw:
        raw.set_progress_handler(count, 100)
        assert StoredMappings(raw, b"", 5).load([many.key])
    return steps


def test_the_work_does_not_grow_with_their_number(many):
    many.add(30_000)
    before = steps_to_load(many)
    many.add(60_000, path="?6 || '=' || x")
    assert steps_to_load(many) <= before * 1.1


def test_statistics_of_another_user_do_not_choose_the_way_to_the_rows(many):
    many.add(30_000, ino="100 + x")
    before = steps_to_load(many)
    many.sql("CREATE INDEX theirs ON mapping (mntns, dev)")
    many.sql("ANALYZE")
    many.sql("DELETE FROM sqlite_stat1")
    many.sql(
        "INSERT INTO sqlite_stat1 VALUES ('mapping', 'theirs', '1000000 1 1'),"
        " ('mapping', 'sqlite_autoindex_mapping_1', '1000000 1000000 1000000 1000000 1')"
    )
    assert steps_to_load(many) <= before + 10


def disproved_by(many, load):
    """The number of paths that were tried in vain before irmapdb found the file."""
    with (
        Watcher() as task,
        open_root(task.pid) as root,
        Search(root, load, config=NO_HINTS) as search,
    ):
        task.add_inotify(many.file)
        search.resolve(files_of(task))
        assert search.outcome.resolved[many.identity].path == many.file
        return Counter(one.source for one in search.outcome.disproved)


def test_no_more_rows_of_an_inode_are_proved(many):
    many.add(MANY)
    with open_mappings(many.database, wait_s=5) as stored:
        assert disproved_by(many, stored.load) == {Source.STORED: ROWS_OF_INODE}


def test_nor_entries_of_an_irmap_cache(many):
    stamp = FileStamp(1, 1, 1, 1)
    wrong = tuple(CacheEntry(*many.key, b"/wrong/%d" % one) for one in range(MANY))
    news = News(b"irmap-cache", stamp, wrong)
    with open_mappings(many.database, wait_s=5) as stored:
        load = MappingsAndNews(stored.load, news, NOW)
        assert disproved_by(many, load) == {Source.STORED: ROWS_OF_INODE}


def test_nor_rows_that_a_source_gives_at_once(many):
    rows = many.load()[many.key]
    wrong = [row._replace(path=b"/wrong/%d" % one) for row in rows for one in range(MANY)]
    own = {many.key: [*rows, *wrong]}
    assert disproved_by(many, lambda keys, _mntns=0: own if many.key in keys else {}) == {
        Source.STORED: ROWS_OF_INODE
    }


def test_a_step_leaves_the_rows_alone_that_it_has_not_loaded(many):
    many.add(MANY)
    with Watcher() as task:
        task.add_inotify(many.file)
        report = pre_dump(options_for(task, many.directory))
        assert [row.path for row in report.watches] == [many.file]
        assert decode_cache((many.directory / "irmap-cache").read_bytes(), "") == (
            CacheEntry(*many.key, many.file),
        )
        # The row of the right path is one of those.
        assert many.sql("SELECT id, stale_at FROM mapping WHERE path = ?", many.file.decode()) == [
            (1, None)
        ]
        assert many.sql("SELECT validated_at > '2026-11-28' FROM mapping WHERE id = 1") == [(1,)]
        stale = many.sql("SELECT min(id), count(*) FROM mapping WHERE stale_at IS NOT NULL")
        assert stale == [(MANY + 2 - ROWS_OF_INODE, ROWS_OF_INODE)]
        assert report.stats.stale == ROWS_OF_INODE
        assert many.sql("SELECT count(*) FROM change") == [(ROWS_OF_INODE,)]
        # It is the one that was proved last now, so the next step knows it.
        again = pre_dump(options_for(task, many.directory))
        assert again.stats.hits == 1
        assert not [one for one in again.changes if one.kind != "stale"]


def test_a_step_marks_some_rows_of_a_device_that_is_gone(many, monkeypatch):
    monkeypatch.setattr(transaction, "_MOST_UNMOUNTED", 100)
    many.add(250, dev="4000000000 + x / 20", ino="x")
    marked = []
    with Watcher() as task:
        task.add_inotify(many.file)
        for _ in range(4):
            pre_dump(options_for(task, many.directory))
            marked += many.sql("SELECT count(*) FROM mapping WHERE stale_reason = 'unmounted'")
    assert marked == [(100,), (200,), (250,), (250,)]


def fill_history(many, count):
    identity = (*many.key, many.identity.handle.type, many.identity.handle.data)
    at = f"{NOW:%Y-%m-%d} 00:00:00.000000"
    many.sql(
        "INSERT INTO run (event, started_at, finished_at, freezing_us, frozen_us, resolve_us,"
        " watches, resolved, unresolved, hits, stale, scanned, outcome)"
        " VALUES ('pre-dump', ?1, ?1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 'done')",
        at,
    )
    many.sql(
        "INSERT INTO watch (run_id, pid, fd, kind, wd, dev, ino, handle_type, handle, mask,"  # noqa: S608
        f" ignored_mask, mflags, path) {_COUNTED} SELECT 1, 5, 3, 'inotify', x, ?2, ?3, ?4, ?5, 2,"
        " 0, 0, ?6 FROM counted",
        *(count, *identity, many.file.decode()),
    )
    many.sql(
        "INSERT INTO change (at, kind, dev, ino, handle_type, handle, path, reason)"  # noqa: S608
        f" {_COUNTED} SELECT ?6, 'stale', ?2, ?3, ?4, ?5, '/' || x, 'gone' FROM counted",
        *(count, *identity, at),
    )


def test_lookup_shows_the_last_rows_of_an_inode(many):
    many.add(MANY)
    fill_history(many, MANY)
    with Store.open_readonly(many.database) as store:
        report = store.inode_report(many.key)
    assert report.cut
    assert [len(report.mappings), len(report.sightings), len(report.changes)] == [ROWS_OF_INODE] * 3
    first = MANY - ROWS_OF_INODE + 1
    assert [seen.row.watch.wd for seen in report.sightings] == [*range(first, MANY + 1)]
    assert [one.id for one in report.changes] == [*range(first, MANY + 1)]
    assert [row.id for row in report.mappings] == [*range(first + 1, MANY + 2)]
    done = irmapdb("lookup", str(many.key), "--db", str(many.database))
    assert done.code == 0
    assert len(done.out.splitlines()) < 3 * ROWS_OF_INODE + 10
    assert done.err == (
        f"{many.key}: the last 1,000 paths, watches and changes are shown; `irmapdb sql` has all\n"
    )


def test_lookup_shows_some_inodes_of_a_number_or_a_path(many):
    many.add(2 * MOST_INODES, dev="1000000 + x", ino="77", path="substr(?6, 1, 0) || '/same'")
    for key in ("77", "/same"):
        done = irmapdb("lookup", key, "--db", str(many.database))
        assert done.code == 0
        assert done.out.count("inode 77") == MOST_INODES
        assert done.err == f"{key}: only 100 inodes are shown; name one of them\n"


def test_the_answers_of_resolvers_have_a_limit(many):
    fill_history(many, 2)
    for table, first in (("tried (watch_id, position, resolver, note)", "x"), ("run_source", "")):
        words = f"1, {first}, 'scan', 'no'" if first else "1, 'scan' || x, 1"
        many.sql(f"INSERT INTO {table} {_COUNTED} SELECT {words} FROM counted", 5000)  # noqa: S608
    with Store.open_readonly(many.database) as store:
        asked, unasked = store.watches(1)
        (run,) = store.runs()
    assert [len(asked.tried), len(unasked.tried), len(run.stats.sources)] == [100, 0, 100]


def test_a_list_of_one_long_path_is_not_read_whole(many, monkeypatch):
    path = b"/" + b"x" * (MAX_PATH_BYTES - 1)
    many.sql("UPDATE mapping SET path = CAST(? AS TEXT)", path)
    many.sql(f"INSERT INTO image_entry {_COUNTED} SELECT x, 1 FROM counted", 100)  # noqa: S608
    assert len(read_entries(many.database)) == 100
    assert many.database.stat().st_size < 1 << 20
    monkeypatch.setattr(entries, "_MOST_BYTES", 6 << 20)
    with pytest.raises(DatabaseError, match="its list for irmap-cache has more than 6 MiB"):
        read_entries(many.database)


def test_the_hook_waits_for_a_schema_no_longer_than_its_share(many):
    with closing(sqlite3.connect(many.database)) as raw, raw:
        raw.execute("PRAGMA writable_schema = ON")
        raw.execute(
            f"INSERT INTO sqlite_master {_COUNTED} SELECT 'view', 'v' || x, 'v' || x, 0,"  # noqa: S608
            " 'CREATE VIEW v' || x || ' AS SELECT 1' FROM counted",
            (20_000,),
        )
    with (
        pytest.raises(DatabaseError, match="a statement took longer than 1e-06 s"),
        open_mappings(many.database, wait_s=1e-6),
    ):
        pass
    with (
        pytest.raises(DatabaseError, match="more than 1000 tables, indexes and views"),
        open_mappings(many.database, wait_s=60),
    ):
        pass


def test_the_hook_does_not_decode_a_large_irmap_cache(many):
    wrong = (CacheEntry(*many.key, b"/" + b"w" * 4000 + b"%d" % one) for one in range(3000))
    large = encode_cache(wrong)
    (many.directory / "irmap-cache").write_bytes(large)
    give_away(many.directory)
    removed = many.directory / "removed"
    fd = os.open(removed, os.O_CREAT)
    with Watcher() as task:

        def attend_dump():
            done = run_forked(lambda: attend(task.pid, "", until_stored=True), many.directory)
            assert (done.code, "1 proved" in done.err) == (0, True)
            return (many.directory / "irmap-cache").read_bytes()

        task.add_inotify(many.file)
        task.add_inotify(removed)
        removed.unlink()
        # CRIU may need an old entry for the watch without a path.
        written = attend_dump()
        assert written.startswith(large)
        assert decode_cache(written, "")[3000:] == (CacheEntry(*many.key, many.file),)
        os.close(fd)  # with the file, the kernel removes its watch
        assert attend_dump() == encode_cache([CacheEntry(*many.key, many.file)])
    assert read_entries(many.database) == [CacheEntry(*many.key, many.file)]


def test_the_audit_proves_the_rows_of_an_inode_once(many, monkeypatch):
    names = [many.file + b"%d" % one for one in range(1500)]
    for name in names:
        os.link(many.file, name)
    with Store.open(many.database, create=False) as store, store.step() as tx:
        tx.prove([Resolved(many.identity, names[0], Source.SCAN, tuple(names[1:]))], LONG_AGO)
    many.add(4000)
    proved = 0

    def counting(*arguments):
        nonlocal proved
        proved += 1
        return disproof(*arguments)

    monkeypatch.setattr(root_audit, "disproof", counting)
    report = audit(AuditOptions(many.database))
    assert Counter(str(one.verdict) for one in report.findings) == {"valid": 1501, "moved": 4000}
    assert proved <= len(report.findings) + ROWS_OF_INODE + 100
    for one in report.findings:
        assert one.evidence is None or len(one.evidence.moved_to) == 100
    assert mend(AuditOptions(many.database, root=b"/")).run_id is not None
    left = many.sql("SELECT stale_reason, count(*) FROM mapping GROUP BY stale_reason")
    assert left == [(None, 1501), ("gone", 4000)]


def test_the_audit_refuses_a_database_that_no_memory_holds(many, monkeypatch):
    monkeypatch.setattr(check, "_MOST_MAPPINGS", 10)
    many.add(9)
    assert len(audit(AuditOptions(many.database)).findings) == 10
    many.add(1, path="?6 || '='")
    done = irmapdb("audit", "--db", str(many.database))
    assert (done.code, done.out) == (1, "")
    assert "has more than 10 mappings; delete old ones with `irmapdb prune`" in done.err


def loop(database, table):
    """Make every part of a table the first one: 1.6 of https://www.sqlite.org/fileformat.html."""
    with closing(sqlite3.connect(database)) as raw:
        raw.execute("PRAGMA journal_mode = DELETE")
        (page_size,) = raw.execute("PRAGMA page_size").fetchone()
        question = "SELECT rootpage FROM sqlite_master WHERE name = ?"
        (root,) = raw.execute(question, (table,)).fetchone()
    data = bytearray(database.read_bytes())
    start = (root - 1) * page_size
    kind, cells = data[start], int.from_bytes(data[start + 3 : start + 5])
    assert (kind, cells > 10) == (
        5,
        True,
    )  # an interior page: its cells begin with a child's number
    places = [
        start + int.from_bytes(data[at : at + 2])
        for at in range(start + 12, start + 12 + 2 * cells, 2)
    ]
    first = data[places[0] : places[0] + 4]
    for at in (*places, start + 8):
        data[at : at + 4] = first
    database.write_bytes(data)


def test_rows_that_come_again_and_again_are_damage(many):
    many.add(5000, ino="x")
    fill_history(many, 5000)
    for table in ("mapping", "change"):
        loop(many.database, table)
    with Store.open_readonly(many.database) as store:
        for rows in (store.all_mappings(), store.changes()):
            with pytest.raises(DatabaseError, match=r"damaged \(a row comes twice\)"):
                deque(islice(rows, 100_000), maxlen=0)
    with Snapshot.open(many.database) as snapshot:
        for rows in (snapshot.mappings(), snapshot.changes()):
            with pytest.raises(DatabaseError, match=r"damaged \(a row comes twice\)"):
                deque(islice(rows, 100_000), maxlen=0)
    done = irmapdb("audit", "--db", str(many.database))
    assert (done.code, done.out) == (1, "")
