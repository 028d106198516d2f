"""The views agree with the rows: each against the same query in Python."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from irmapdb.model import (
    CacheEntry,
    Event,
    FileHandle,
    Identity,
    Resolved,
    RunStats,
    Source,
    StaleReason,
    Tried,
    Watch,
    WatchKind,
)
from irmapdb.store.database import Store
from irmapdb.store.records import WatchRow

T0 = datetime(2026, 11, 23, tzinfo=UTC)
FAST = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
NESTED = 0xF0000002

PATHS = [
    b"/",
    b"/etc",
    b"/srv/data/in.csv",
    b"/srv/data/caf\xe9",
    b"/srv/caf\xe9/\x80x",  # together the two odd bytes would be one character
    "/srv/ü/ö".encode(),
    b"/srv/new\nline",
]
HANDLES = [
    None,
    FileHandle(1, b"\x01\x02"),
    FileHandle(1, b"\x01\x03"),
    FileHandle(0x4D, b"\x01\x02"),
]
identities = st.builds(
    Identity,
    st.sampled_from([254 << 20, 38]),
    st.sampled_from([1, (1 << 63) - 1, 1 << 63, (1 << 64) - 2]),
    st.sampled_from(HANDLES),
)
mntnses = st.sampled_from([0, 0, 0, NESTED])
facts = st.lists(st.tuples(identities, st.sampled_from(PATHS), mntnses, st.booleans()), max_size=12)
notes = st.lists(
    st.sampled_from([Tried("handle", "deleted"), Tried("scan", "not; found"), Tried("xfs", "no")]),
    max_size=3,
).map(tuple)
sightings = st.lists(
    st.tuples(
        identities,
        st.sampled_from(PATHS) | notes,
        st.integers(1, 3),  # pid
        st.sampled_from(list(WatchKind)),
        st.integers(0, (1 << 32) - 1),  # mask
    ),
    max_size=8,
)


def watch_row(identity, answer, pid, kind, mask):
    watch = Watch(pid, 3, kind, 1 if kind is WatchKind.INOTIFY else -1, identity, mask, 0, 0)
    if isinstance(answer, bytes):
        return WatchRow(watch, b"task", answer, None)
    why = "; ".join(f"{one.resolver}: {one.note}" for one in answer) or "no source was asked"
    return WatchRow(watch, b"ta\xffsk", None, why, tried=answer)


def write(path, mappings, *runs):
    with Store.open(path, create=True) as store, store.step() as step:
        for identity, name, mntns, _ in mappings:
            if identity.handle is None and mntns == 0:
                step.import_entries([CacheEntry(*identity.key, name)], T0)
            else:
                step.prove([Resolved(identity, name, Source.SCAN, mntns=mntns)], T0)
        stale = {(one[0].key, *one[1:3]) for one in mappings if one[3]}
        rows = [
            (row, StaleReason.GONE)
            for row in step.all_mappings()
            if (row.identity.key, row.path, row.mntns) in stale
        ]
        step.mark_stale(rows, T0 + timedelta(hours=1))
        for watches in runs:
            run_id = add_run(step)
            step.add_watches(run_id, watches)


def same(one, other):
    return one.key == other.key and one.matches(other)


def as_bytes(value):
    return value.encode() if isinstance(value, str) else value


@settings(max_examples=settings.default.max_examples // 2)
@given(mappings=facts, before=sightings, last=sightings)
def test_every_view_agrees_with_the_rows(mappings, before, last):
    last = [watch_row(*one) for one in last]
    with tempfile.TemporaryDirectory(dir=FAST) as directory:
        path = Path(directory) / "irmap.db"
        write(path, mappings, [watch_row(*one) for one in before], last)
        with Store.open_readonly(path) as store:
            rows = list(store.all_mappings())
        with closing(sqlite3.connect(path)) as plain:
            plain.row_factory = sqlite3.Row
            check_mappings(plain, rows)
            check_watches(plain, rows, last)


def check_mappings(plain, rows):
    live = [row for row in rows if not row.stale]
    by_id = {row.id: row for row in rows}

    found = {one["mapping_id"]: one for one in plain.execute("SELECT * FROM all_mappings")}
    assert found.keys() == by_id.keys()
    for row_id, row in by_id.items():
        one, identity = found[row_id], row.identity
        assert one["device"] == f"{identity.kdev >> 20}:{identity.kdev & 0xFFFFF}"
        assert str(one["inode"]) == str(identity.ino)
        assert isinstance(one["inode"], int) == (identity.ino < 1 << 63)
        assert one["in_criu_log"] == str(identity.key)
        assert one["handle"] == (str(identity.handle) if identity.handle else None)
        assert as_bytes(one["path"]) == row.path
        assert one["mount_namespace"] == (row.mntns or None)
        state = "stale" if row.stale else "to be proved" if row.revalidate else "proved"
        assert one["state"] == state

    def ids(view):
        return [one["mapping_id"] for one in plain.execute(f"SELECT * FROM {view}")]  # noqa: S608 - our own names

    assert sorted(ids("live_mappings")) == [row.id for row in live]
    assert sorted(ids("mappings_by_last_proof")) == [row.id for row in live]
    assert sorted(ids("stale_mappings")) == [row.id for row in rows if row.stale]
    for one in plain.execute("SELECT * FROM stale_mappings"):
        row = by_id[one["mapping_id"]]
        now_at = {
            other.path
            for other in live
            if row.identity.handle is not None
            and other.identity.handle is not None
            and same(row.identity, other.identity)
            and other.mntns == row.mntns
        }
        assert as_bytes(one["moved_to"]) in (now_at or {None})

    def names(row):
        return [o for o in live if same(row.identity, o.identity) and o.mntns == row.mntns]

    assert {
        one["mapping_id"]: one["paths"]
        for one in plain.execute("SELECT * FROM inodes_with_several_paths")
    } == {row.id: len(names(row)) for row in live if len(names(row)) > 1}

    handles = {}
    for row in rows:
        if row.identity.handle:
            handles.setdefault(row.identity.key, set()).add(row.identity.handle)
    assert {
        one["mapping_id"]: one["identities"]
        for one in plain.execute("SELECT * FROM shared_inode_numbers")
    } == {
        row.id: len(handles[row.identity.key])
        for row in rows
        if len(handles.get(row.identity.key, ())) > 1
    }


def check_watches(plain, rows, last):
    live = [row for row in rows if not row.stale]
    seen = [row.watch.identity for row in last]
    assert [
        (one["pid"], as_bytes(one["path"]), one["in_criu_log"], one["why"])
        for one in plain.execute("SELECT * FROM last_watches ORDER BY watch_id")
    ] == [(row.watch.pid, row.path, str(row.watch.identity.key), row.why) for row in last]

    assert [
        (one["pid"], one["resolver"], one["note"])
        for one in plain.execute("SELECT * FROM unresolved_watches")
    ] == [
        (row.watch.pid, *tried)
        for row in last
        if row.path is None
        for tried in row.tried or ((None, row.why),)
    ]

    assert sorted(
        one["mapping_id"] for one in plain.execute("SELECT * FROM unwatched_mappings")
    ) == [row.id for row in live if not any(same(row.identity, one) for one in seen)]

    wanted = Counter(
        row.watch.identity
        for row in last
        if not (row.why or "").endswith(": deleted")
        and not any(same(row.watch.identity, one.identity) for one in live)
    )
    scan = plain.execute("SELECT in_criu_log, watches FROM next_scan").fetchall()
    assert Counter(map(tuple, scan)) == Counter(
        (str(identity.key), count) for identity, count in wanted.items()
    )

    by_process = {one["pid"]: one for one in plain.execute("SELECT * FROM watches_by_process")}
    pids = Counter(row.watch.pid for row in last)
    assert {pid: one["watches"] for pid, one in by_process.items()} == pids
    for pid, one in by_process.items():
        mine = [row for row in last if row.watch.pid == pid]
        assert one["resolved"] == sum(row.path is not None for row in mine)
        assert one["inotify"] == sum(row.watch.kind == "inotify" for row in mine)

    assert {
        as_bytes(one["directory"]): one["watches"]
        for one in plain.execute("SELECT * FROM watches_by_directory")
    } == Counter(os.path.dirname(row.path) for row in last if row.path is not None)


def add_run(step, event=Event.PRE_DUMP, stats=None, outcome="done", at=T0):
    return step.add_run(
        event,
        pid=1,
        comm=None,
        started_at=at,
        finished_at=at,
        stats=stats or RunStats(),
        outcome=outcome,
    )


@pytest.mark.parametrize(
    ("reason", "later", "listed"),
    [
        # A path that the last run found stale was watched in it, so the next step must find it.
        (StaleReason.REPLACED, 0, True),
        (StaleReason.REUSED, 0, True),
        (StaleReason.GONE, 0, True),
        (StaleReason.UNMOUNTED, 0, False),
        # A finding of a later audit.
        (StaleReason.REPLACED, 1, False),
        (StaleReason.REUSED, 1, False),
        (StaleReason.DELETED, 1, False),
        (StaleReason.UNMOUNTED, 1, False),
        (StaleReason.GONE, 1, True),
        (StaleReason.MOVED, 1, True),
        # An older change does not count for a watch of the last run.
        (StaleReason.DELETED, -1, True),
        (StaleReason.UNMOUNTED, -1, True),
    ],
)
def test_an_inode_that_does_not_exist_any_more_is_not_scanned_for(tmp_path, reason, later, listed):
    path = tmp_path / "irmap.db"
    identity = Identity(1, 2, FileHandle(1, b"\1"))
    with Store.open(path, create=True) as store, store.step() as step:
        step.prove([Resolved(identity, b"/a", Source.SCAN)], T0)
        run_id = add_run(step, at=T0 + timedelta(hours=1))
        step.add_watches(run_id, [watch_row(identity, b"/a", 7, WatchKind.INOTIFY, 2)])
        step.mark_stale(
            [(row, reason) for row in step.all_mappings()], T0 + timedelta(hours=1 + later)
        )
    with closing(sqlite3.connect(path)) as plain:
        found = plain.execute("SELECT last_path, why FROM next_scan").fetchall()
    assert found == ([("/a", f"stale: {reason}")] if listed else [])


def test_a_number_alone_is_no_place_to_have_moved_to(tmp_path):
    path = tmp_path / "irmap.db"
    known = Identity(1, 2, FileHandle(1, b"\1"))
    with Store.open(path, create=True) as store, store.step() as step:
        step.import_entries([CacheEntry(1, 2, b"/imported")], T0)
        step.prove([Resolved(known, b"/old", Source.SCAN)], T0)
        step.mark_stale([(row, StaleReason.GONE) for row in step.all_mappings()], T0)
        step.prove([Resolved(known, b"/new", Source.SCAN)], T0)
    with closing(sqlite3.connect(path)) as plain:
        found = dict(plain.execute("SELECT path, moved_to FROM stale_mappings"))
    assert found == {"/imported": None, "/old": "/new"}


def test_the_parts_of_the_time_in_the_freeze(tmp_path):
    path = tmp_path / "irmap.db"
    share = RunStats(
        frozen_us=10_000,
        tasks_frozen=3,
        reread_us=1_000,
        reparsed=1,
        confirm_us=2_000,
        reproved=5,
        reproved_why="renamed 5",
        frozen_resolve_us=3_000,
    )
    with Store.open(path, create=True) as store, store.step() as step:
        add_run(step, stats=share)
        add_run(step, Event.DUMP, share)
        add_run(step, Event.DUMP, RunStats(frozen_us=7_000))  # by an older irmapdb
        add_run(step, Event.DUMP, share, "failed: x")
    with closing(sqlite3.connect(path)) as plain:
        found = plain.execute(
            "SELECT run_id, frozen_ms, tasks_frozen, reading_watches_ms, descriptors_changed,"
            " asking_what_moved_ms, proved_again, because, proving_ms, rest_ms FROM frozen_dumps"
        ).fetchall()
    assert found == [
        (2, 10.0, 3, 1.0, 1, 2.0, 5, "renamed 5", 3.0, 4.0),
        (3, 7.0, *[None] * 8),
    ]


def test_a_failed_freeze_is_not_the_last_run(tmp_path):
    path = tmp_path / "irmap.db"
    row = watch_row(Identity(1, 2, None), b"/a", 7, WatchKind.INOTIFY, 2)
    write(path, [], [row])
    with Store.open(path, create=False) as store, store.step() as step:
        add_run(step, Event.DUMP, outcome="failed: x")
        add_run(step, Event.IMPORT, outcome="3 entries")
    with closing(sqlite3.connect(path)) as plain:
        assert plain.execute("SELECT run_id FROM last_run").fetchall() == [(1,)]
        assert plain.execute("SELECT count(*) FROM last_watches").fetchall() == [(1,)]


@pytest.mark.parametrize(
    ("ago", "said"),
    [
        (timedelta(0), "0 s"),
        (timedelta(seconds=-90), "0 s"),  # the clock was set back
        (timedelta(minutes=5, seconds=20), "5 min"),
        (timedelta(hours=30), "30 h"),
        (timedelta(days=12, hours=3), "12 days"),
    ],
)
def test_ages_are_words(tmp_path, ago, said):
    path = tmp_path / "irmap.db"
    at = datetime.now(UTC) - ago
    identity = Identity(1, 2, None)
    with Store.open(path, create=True) as store, store.step() as step:
        step.prove([Resolved(identity, b"/live", Source.SCAN)], at)
        step.prove([Resolved(identity, b"/stale", Source.SCAN)], at)
        (row,) = [one for one in step.all_mappings() if one.path == b"/stale"]
        step.mark_stale([(row, StaleReason.GONE)], at)
    with closing(sqlite3.connect(path)) as plain:
        # Another second may have begun.
        fuzzy = {said, said.replace("0 s", "1 s")}
        assert plain.execute("SELECT stale_for FROM stale_mappings").fetchone()[0] in fuzzy
        (proved,) = plain.execute("SELECT proved FROM mappings_by_last_proof").fetchone()
        assert proved in {f"{one} ago" for one in fuzzy}


def test_events_are_names(tmp_path):
    path = tmp_path / "irmap.db"
    masks = {0: "", 0xFFF: "all", 0x2: "modify", 0x300: "create, delete", 1 << 31: ""}
    rows = [watch_row(Identity(1, n, None), b"/a", 7, "inotify", n) for n in masks]
    rows = [row._replace(watch=row.watch._replace(kind=WatchKind.INOTIFY)) for row in rows]
    write(path, [], rows)
    with closing(sqlite3.connect(path)) as plain:
        found = plain.execute("SELECT inode, events FROM all_watches").fetchall()
    assert dict(found) == masks
