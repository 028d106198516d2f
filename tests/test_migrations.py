"""The schema's revisions: in one line, applied as a whole or not at all, and no row is lost.

`tests/data/db/0001.db` and its successors were written at that revision by `write_content`
(`python -m tests.test_migrations FILE`), and stay as they are.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sqlite3
import stat
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from textwrap import dedent, indent

import pytest
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from irmapdb.errors import DatabaseError
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
from irmapdb.store import revisions, version
from irmapdb.store.database import Store
from irmapdb.store.objects import creations
from irmapdb.store.records import FileStamp, RunRow, WatchRow
from irmapdb.store.revisions import Revision, Upgrade, current, history, upgrade
from irmapdb.store.version import HEAD
from tests.test_store_processes import child, exit_code

ROOT = Path(__file__).parent.parent
RELEASED = sorted((Path(__file__).parent / "data" / "db").glob("*.db"))

T0 = datetime(2026, 11, 23, 7, 0, 0, 1, tzinfo=UTC)
T1 = T0 + timedelta(minutes=1)
T2 = T0 + timedelta(minutes=2)
NESTED = 0xF0000002
EXT4 = Identity(254 << 20, 739, FileHandle(1, bytes.fromhex("e302000000000000")))
OVERLAY = Identity(41, (1 << 64) - 2, None)
BTRFS = Identity(38, 257, FileHandle(0x4D, bytes(range(20))))
BTRFS_TOO = Identity(38, 257, FileHandle(0x4D, bytes(range(1, 21))))

IMAGE = [
    CacheEntry(OVERLAY.kdev, OVERLAY.ino, b"/srv/caf\xe9"),
    CacheEntry(EXT4.kdev, EXT4.ino, b"/etc/passwd"),
    CacheEntry(OVERLAY.kdev, OVERLAY.ino, b"/srv/caf\xe9"),
    CacheEntry(EXT4.kdev, 19, b"/etc"),
]


def imported(row_id, identity, path):
    return Mapping(identity, path, Source.IMAGE, revalidate=True, first_seen_at=T0, id=row_id)


def proved(row_id, identity, path, source, first_seen_at=T1, **rest):
    return Mapping(
        identity,
        path,
        source,
        revalidate=False,
        first_seen_at=first_seen_at,
        validated_at=T1,
        last_used_at=T1,
        id=row_id,
        **rest,
    )


MAPPINGS = [
    imported(1, OVERLAY, b"/srv/caf\xe9"),
    proved(2, EXT4, b"/etc/passwd", Source.IMAGE, T0),
    imported(3, Identity(EXT4.kdev, 19, None), b"/etc"),
    proved(4, EXT4, b"/etc/hard\nlink", Source.OPEN_FILES),
    proved(5, BTRFS, "/sub/ü".encode(), Source.BTRFS),
    proved(6, BTRFS_TOO, b"/snap/\0", Source.SCAN, stale_at=T2, stale_reason=StaleReason.REUSED),
    proved(7, EXT4, b"/etc/passwd", Source.HANDLE, mntns=NESTED),
]
SHARE = {
    "tasks_frozen": 10,
    "reread_us": 11,
    "reparsed": 12,
    "confirm_us": 13,
    "reproved": 14,
    "reproved_why": "renamed 10, not witnessed 4",
    "frozen_resolve_us": 15,
}
PAUSE = {"paused": 1, "paused_us": 16}
FREEZE = {"criu_freezing_us": 17, "criu_frozen_us": 18}
SOURCES = {"btrfs": 1, "open-files": 2}
STATS = RunStats(1, 2, 3, 4, 5, 6, 7, 8, 9, **SHARE, **PAUSE, **FREEZE, sources=SOURCES)
RUNS = [
    RunRow(1, Event.DUMP, 4242, b"sleepy\xff", T0, T1, STATS, "done"),
    RunRow(2, Event.IMPORT, None, None, T1, T2, RunStats(), "irmap-cache: cut off"),
]
WATCHES = [
    WatchRow(
        Watch(4242, 3, WatchKind.INOTIFY, 1, EXT4, 0xFFF, 0, 0), b"sleepy\xff", b"/etc/passwd", None
    ),
    WatchRow(
        Watch(4243, 4, WatchKind.FANOTIFY, -1, OVERLAY, 2**32 - 1, 8, 1),
        None,
        None,
        "handle: cannot be opened; scan: not found",
        NESTED,
        (Tried("handle", "cannot be opened"), Tried("scan", "not found")),
    ),
]
# 0001 had no column for the answers of resolvers, 0002 none for the parts of the freeze, 0003 none
# for a pause, and 0005 none for CRIU's freeze.
WATCHES_0001 = [row._replace(tried=()) for row in WATCHES]
NO_SHARE = RunStats(1, 2, 3, 4, 5, 6, 7, 8, 9, sources=STATS.sources)
NO_PAUSE = RunStats(1, 2, 3, 4, 5, 6, 7, 8, 9, **SHARE, sources=STATS.sources)
NO_FREEZE = RunStats(1, 2, 3, 4, 5, 6, 7, 8, 9, **SHARE, **PAUSE, sources=STATS.sources)
RUNS_0005 = [RUNS[0]._replace(stats=NO_FREEZE), RUNS[1]]
RUNS_0003 = [RUNS[0]._replace(stats=NO_PAUSE), RUNS[1]]
RUNS_0002 = [RUNS[0]._replace(stats=NO_SHARE), RUNS[1]]
RUNS_OF = {
    "0001": RUNS_0002,
    "0002": RUNS_0002,
    "0003": RUNS_0003,
    "0004": RUNS_0005,
    "0005": RUNS_0005,
}
CHANGES = [
    Change(ChangeKind.MOVED, EXT4, b"/etc/hard\nlink", b"/etc/old\xff", StaleReason.GONE),
    Change(ChangeKind.REVIVED, EXT4, b"/etc/passwd", mntns=NESTED),
    Change(ChangeKind.STALE, BTRFS_TOO, b"/snap/\0", reason=StaleReason.REUSED),
]
STAMP = FileStamp((1 << 64) - 1, 1 << 63, 1234, 1795503600_123456789)


def write_content(path):
    """A row in each table, as a program would have written it."""
    with Store.open(path, create=True) as store, store.step() as step:
        step.import_entries(IMAGE, T0)
        step.set_image_seen(b"/srv/images/irmap-cache", STAMP)
        step.prove(
            [
                Resolved(EXT4, b"/etc/hard\nlink", Source.OPEN_FILES, (b"/etc/passwd",)),
                Resolved(BTRFS, "/sub/ü".encode(), Source.BTRFS),
                Resolved(BTRFS_TOO, b"/snap/\0", Source.SCAN),
                Resolved(EXT4, b"/etc/passwd", Source.HANDLE, mntns=NESTED),
            ],
            T1,
        )
        step.mark_stale([(MAPPINGS[5], StaleReason.REUSED)], T2)
        for row in RUNS:
            step.add_run(
                row.event,
                pid=row.pid,
                comm=row.comm,
                started_at=row.started_at,
                finished_at=row.finished_at,
                stats=row.stats,
                outcome=row.outcome,
            )
        step.add_watches(1, WATCHES)
        step.add_changes(1, CHANGES, T2)


def check_content(path, watches=WATCHES, runs=RUNS):
    with Store.open_readonly(path) as store:
        assert list(store.all_mappings()) == MAPPINGS
        assert store.image_entries() == IMAGE
        assert list(store.runs()) == runs
        assert list(store.watches(1)) == watches
        rows = list(store.changes())
        assert [row.change for row in rows] == CHANGES
        assert [(row.id, row.run_id, row.at, row.mapping_id) for row in rows] == [
            (1, 1, T2, 4),
            (2, 1, T2, 7),
            (3, 1, T2, 6),
        ]
        assert store.image_seen(b"/srv/images/irmap-cache") == STAMP


def schema_of(path):
    with closing(sqlite3.connect(path)) as other:
        found = other.execute("SELECT type, name, tbl_name, sql FROM sqlite_master")
        # A column that was added is on the line of the one before it.
        return {(*names, sql and " ".join(sql.split())) for *names, sql in found}


def application_id(path):
    with closing(sqlite3.connect(path)) as other:
        return other.execute("PRAGMA application_id").fetchone()[0]


def dump_of(path):
    with closing(sqlite3.connect(path)) as other:
        return list(other.iterdump())


def test_the_store_knows_every_revision_without_asking_alembic():
    known = history()
    assert [one.id for one in known] == list(version.REVISIONS)
    assert [one.down for one in known] == [None, *version.REVISIONS[:-1]]
    assert known[0] == Revision("0001", None, "first schema.")
    assert version.REVISIONS[-1] == HEAD
    made = creations(HEAD).items()
    assert {name for name, sql in made if sql.startswith("CREATE TABLE")} == version.TABLES


def test_every_released_revision_has_its_database():
    assert [path.stem for path in RELEASED] == list(version.REVISIONS)


@pytest.mark.parametrize("released", RELEASED, ids=lambda path: path.stem)
def test_a_released_database_opens_with_nothing_lost(tmp_path, released):
    path, new = tmp_path / "irmap.db", tmp_path / "new.db"
    shutil.copy(released, path)
    Store.open(path, create=False).close()
    assert current(path) == HEAD
    check_content(
        path,
        WATCHES_0001 if released.stem == "0001" else WATCHES,
        RUNS_OF.get(released.stem, RUNS),
    )
    write_content(new)
    check_content(new)
    assert schema_of(path) == schema_of(new)


def test_the_revisions_make_the_tables_that_the_store_knows(tmp_path):
    """alembic from an empty file, and the store's own making: the same, word for word."""
    made, migrated = tmp_path / "made.db", tmp_path / "migrated.db"
    Store.open(made, create=True).close()
    engine = create_engine(f"sqlite:///{migrated}", poolclass=NullPool)
    with engine.begin() as connection:
        revisions._run(connection)
    assert schema_of(migrated) == schema_of(made)
    assert application_id(migrated) == application_id(made) == version.APPLICATION_ID
    Store.open(migrated, create=False).close()


@pytest.fixture
def old(tmp_path):
    """A database of the newest revision, which `add_revision` makes an older one."""
    path = tmp_path / "irmap.db"
    write_content(path)
    return path


@pytest.fixture
def add_revision(tmp_path, monkeypatch):
    """Let the store know one revision more, with this body."""

    def add(body):
        scripts = tmp_path / "scripts 100%"
        shutil.copytree(ROOT / "migrations", scripts)
        text = REVISION.format(new=NEXT, old=HEAD, body=indent(dedent(body), "    "))
        (scripts / "versions" / f"{NEXT}_test.py").write_text(text)
        monkeypatch.setattr(revisions, "_scripts", lambda: str(scripts))
        monkeypatch.setattr(version, "REVISIONS", (*version.REVISIONS, NEXT))
        monkeypatch.setattr(version, "HEAD", NEXT)
        # Its tables are in no schema file of the package.
        check = version.check_objects
        monkeypatch.setattr(
            version,
            "check_objects",
            lambda found, revision, *rest, **how: (
                None if revision == NEXT else check(found, revision, *rest, **how)
            ),
        )

    return add


NEXT = f"{int(HEAD) + 1:04}"
REVISION = """
import os
import signal
import sqlalchemy as sa
from alembic import op

revision = "{new}"
down_revision = "{old}"


def upgrade():
{body}
"""
ADD_A_TABLE = """
op.create_table("extra", sa.Column("id", sa.Integer(), primary_key=True))
op.execute(sa.text("INSERT INTO extra VALUES (1)"))
"""
# The steps of batch mode: a new table, the rows copied, the old one dropped, the new one renamed.
REBUILD = """
with op.batch_alter_table("mapping") as batch:
    batch.alter_column("source", new_column_name="found_by")
with op.batch_alter_table("mapping") as batch:
    batch.alter_column("found_by", new_column_name="source", nullable=False)
    batch.add_column(sa.Column("note", sa.Text(), nullable=True))
"""


@pytest.mark.parametrize("body", [ADD_A_TABLE, REBUILD], ids=["table", "rebuild"])
@pytest.mark.parametrize("way", ["open", "upgrade"])
def test_an_older_database_is_upgraded_with_a_backup_beside_it(old, add_revision, way, body):
    before = dump_of(old)
    add_revision(body)
    with pytest.raises(DatabaseError, match=f"older schema {HEAD}.*irmapdb db upgrade"):
        Store.open_readonly(old)
    assert current(old) == HEAD
    kept = old.with_name(f"irmap.db.backup-{HEAD}")
    kept.write_text("a backup from an earlier try")
    if way == "open":
        Store.open(old, create=False).close()
    else:
        assert upgrade(old) == Upgrade(HEAD, NEXT, os.fsencode(kept))
    assert current(old) == NEXT
    check_content(old)
    assert dump_of(old) != before
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert dump_of(kept) == before
    assert upgrade(old) == Upgrade(NEXT, NEXT, None)
    with Store.open(old, create=False) as store, store.step() as step:
        step.import_entries([CacheEntry(1, 1, b"/after")], T2)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise RuntimeError('no way')", "no way"),
        ("op.execute(sa.text('SELECT * FROM nowhere'))", "no such table: nowhere"),
        ("op.execute(sa.text('DELETE FROM run'))", "refer to rows that are gone"),
    ],
    ids=["raises", "bad sql", "orphans"],
)
def test_an_upgrade_that_fails_changes_nothing(old, add_revision, body, said):
    before = dump_of(old)
    add_revision(ADD_A_TABLE + REBUILD + body)
    with pytest.raises(DatabaseError, match=said) as failed:
        Store.open(old, create=True)
    assert f"from schema {HEAD} to {NEXT}, nothing was changed" in str(failed.value)
    assert "\n" not in str(failed.value)
    assert dump_of(old) == before
    assert dump_of(old.with_name(f"irmap.db.backup-{HEAD}")) == before


def test_a_view_of_the_user_is_kept_by_an_upgrade(old, add_revision):
    own = "CREATE VIEW mine AS SELECT path, source FROM mapping"
    with closing(sqlite3.connect(old)) as other:
        other.execute(own)
    add_revision(REBUILD)
    upgrade(old)
    assert ("view", "mine", "mine", own) in schema_of(old)
    with closing(sqlite3.connect(old)) as other:
        assert len(other.execute("SELECT * FROM mine").fetchall()) == len(MAPPINGS)


def test_an_upgrade_that_is_killed_changes_nothing(old, add_revision):
    before = dump_of(old)
    add_revision(ADD_A_TABLE + REBUILD + "os.kill(os.getpid(), signal.SIGKILL)")
    with child(lambda: upgrade(old)) as pid:
        assert exit_code(pid) == -signal.SIGKILL
    assert dump_of(old) == before


def test_without_a_backup_there_is_no_upgrade(old, add_revision):
    before = dump_of(old)
    add_revision(ADD_A_TABLE)
    old.with_name(f"irmap.db.backup-{HEAD}").mkdir()
    with pytest.raises(DatabaseError, match="Is a directory"):
        upgrade(old)
    assert dump_of(old) == before


def test_processes_that_meet_an_old_database_upgrade_it_once(old, add_revision):
    add_revision(ADD_A_TABLE)

    def look():
        Store.open(old, create=False).close()

    with child(look) as one, child(look) as two, child(look) as three:
        assert [exit_code(pid) for pid in (one, two, three)] == [0, 0, 0]
    assert current(old) == NEXT
    check_content(old)
    assert current(old.with_name(f"irmap.db.backup-{HEAD}")) == HEAD


def test_a_newer_schema_is_refused_by_name(old, add_revision, monkeypatch):
    add_revision(ADD_A_TABLE)
    upgrade(old)
    monkeypatch.undo()
    before = old.read_bytes()
    for way in (lambda: Store.open(old, create=True), lambda: upgrade(old), lambda: current(old)):
        with pytest.raises(DatabaseError, match=f"use an irmapdb that knows schema {NEXT}"):
            way()
    assert old.read_bytes() == before


def test_an_upgrade_leaves_logging_as_it_is(old, add_revision, caplog):
    add_revision(ADD_A_TABLE)
    before = logging.root.handlers[:]
    with caplog.at_level(logging.INFO, "irmapdb"):
        upgrade(old)
    assert logging.root.handlers == before
    assert f"schema {HEAD} -> {NEXT}, backup" in caplog.text


if __name__ == "__main__":
    write_content(Path(sys.argv[1]))
