"""Rows that are stored are read back unchanged."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from irmapdb.errors import DatabaseError
from irmapdb.image.cache import decode_cache
from irmapdb.model import (
    CacheEntry,
    Change,
    ChangeKind,
    Event,
    FileHandle,
    Identity,
    InodeKey,
    Mapping,
    Resolved,
    RunStats,
    Source,
    StaleReason,
    Watch,
    WatchKind,
)
from irmapdb.store.database import Store
from irmapdb.store.records import FileStamp, WatchRow
from tests.support.features import require_program

T0 = datetime(2026, 11, 23, 6, 7, 8, 9, tzinfo=UTC)
T1 = T0 + timedelta(hours=1)
T2 = T0 + timedelta(hours=2)
KDEV = 254 << 20
IMAGES = sorted((Path(__file__).parent / "data" / "images").glob("*.irmap-cache"))

ODD_PATHS = [
    b"",
    b"/",
    b"/plain",
    "/ünïcode".encode(),
    b"/caf\xe9",
    b"/nul\0inside",
    b"/\xed\xa0\x80",  # a surrogate: no UTF-8
    b"/new\nline\ttab\\",
    b"/x (deleted)",
    b"/" + b"x" * 4095,
    b"\xff" * 4096,
]
BIG_INOS = [0, 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]

kdevs = st.integers(0, (1 << 32) - 1)
inos = st.integers(0, (1 << 64) - 1) | st.sampled_from(BIG_INOS)
handles = st.none() | st.builds(
    FileHandle, st.integers(-(1 << 31), (1 << 31) - 1), st.binary(max_size=128)
)
paths = st.binary(max_size=64) | st.sampled_from(ODD_PATHS) | st.text(max_size=8).map(str.encode)
mntnses = st.just(0) | st.integers(0xF0000000, 0xFFFFFFFF)
identities = st.builds(Identity, kdevs, inos, handles)
times = st.datetimes(
    min_value=datetime(2, 1, 2),  # noqa: DTZ001 - hypothesis adds the timezone
    max_value=datetime(9998, 12, 30),  # noqa: DTZ001
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=45))]),
)
# A path names one inode at a time, so the same path comes with the same handle.
some_resolved = st.lists(
    st.builds(
        Resolved,
        identities,
        paths,
        st.sampled_from(list(Source)),
        st.lists(paths, max_size=3).map(tuple),
        mntnses,
    ),
    max_size=8,
)
few_entries = st.lists(
    st.builds(
        CacheEntry,
        st.sampled_from([KDEV, 42]),
        st.sampled_from([1, 2, 1 << 63]),
        st.sampled_from([b"/a", b"/b", b"/\xff"]),
    ),
    max_size=12,
)


# Where a commit waits for no disk: a property makes a database an example.
FAST = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@contextmanager
def fresh():
    with (
        tempfile.TemporaryDirectory(dir=FAST) as directory,
        Store.open(Path(directory) / "irmap.db", create=True) as store,
    ):
        yield store


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "irmap.db", create=True) as opened:
        yield opened


def inode(ino, handle=None):
    return Identity(KDEV, ino, None if handle is None else FileHandle(1, handle))


def found(ino, path, *others, handle=None, source=Source.SCAN):
    return Resolved(inode(ino, handle), path, source, others)


def prove(store, *resolved, now=T0):
    with store.step() as step:
        step.prove(resolved, now)


def only(store):
    (mapping,) = store.all_mappings()
    return mapping


@given(resolved=some_resolved, now=times)
def test_every_mapping_is_read_back_unchanged(resolved, now):
    truth = {}
    first_source = {}
    for item in resolved:
        for path in (*item.other_paths, item.path):
            key = (item.identity.key, path, item.mntns)
            truth[key] = item.identity.handle
            first_source.setdefault(key, item.source)
    with fresh() as store:
        prove(store, *resolved, now=now)
        stored = list(store.all_mappings())
        assert {
            (one.identity.key, one.path, one.mntns): one.identity.handle for one in stored
        } == truth
        for one in stored:
            assert one.source == first_source[one.identity.key, one.path, one.mntns]
            assert one.first_seen_at == one.validated_at == one.last_used_at == now
            assert not one.revalidate
            assert not one.stale
        # Exactly the rows of the inode, in the order of the ids.
        for mntns in {0, *(item.mntns for item in resolved)}:
            keys = {item.identity.key for item in resolved}
            loaded = store.load(keys, mntns)
            assert loaded == {
                key: rows
                for key in keys
                if (rows := [m for m in stored if m.identity.key == key and m.mntns == mntns])
            }
        # The file, as every other program sees it.
        with closing(sqlite3.connect(os.fsdecode(store.path))) as other:
            for dev, ino, kind, raw in other.execute(
                "SELECT dev, ino, typeof(path), CAST(path AS BLOB) FROM mapping"
            ):
                assert any((dev, ino % (1 << 64), raw) == (*key, path) for key, path, _ in truth)
                try:
                    is_text = "\0" not in raw.decode()
                except UnicodeDecodeError:
                    is_text = False
                assert kind == ("text" if is_text else "blob")


@given(entries=st.lists(st.builds(CacheEntry, kdevs, inos, paths), max_size=8))
def test_an_image_comes_back_in_its_order_with_its_duplicates(entries):
    entries += entries[:3]
    with fresh() as store:
        with store.step() as step:
            assert step.import_entries(entries, T0) == len(set(entries))
        assert store.image_entries() == entries
        with store.step() as step:
            assert step.import_entries(entries, T1) == 0
            assert step.image_entries() == entries
        assert all(one.revalidate for one in store.all_mappings())


@pytest.mark.parametrize("image", IMAGES, ids=lambda path: path.name)
def test_an_image_of_criu_comes_back_unchanged(store, image):
    entries = decode_cache(image.read_bytes(), image.name)
    with store.step() as step:
        step.import_entries(entries, T0)
    assert store.image_entries() == list(entries)


@given(first=few_entries, second=few_entries)
def test_an_image_that_is_imported_moves_its_mappings_to_the_end(first, second):
    with fresh() as store:
        with store.step() as step:
            step.import_entries(first, T0)
            step.import_entries(second, T1)
        assert store.image_entries() == [one for one in first if one not in second] + second


def test_an_import_keeps_live_rows_and_revives_stale_rows(store):
    prove(store, found(7, b"/a", handle=b"h"))
    with store.step() as step:
        step.mark_stale([(only(step), StaleReason.GONE)], T1)
        assert step.import_entries([CacheEntry(KDEV, 7, b"/a")], T2) == 0
    assert only(store) == Mapping(
        identity=inode(7, b"h"),
        path=b"/a",
        source=Source.SCAN,
        revalidate=True,
        first_seen_at=T0,
        validated_at=T0,
        last_used_at=T0,
        id=1,
    )


def test_a_proof_completes_and_revives_a_mapping_but_keeps_where_it_came_from(store):
    with store.step() as step:
        step.import_entries([CacheEntry(KDEV, 7, b"/a")], T0)
        step.mark_stale([(only(step), StaleReason.REPLACED)], T1)
        assert only(step).stale_reason is StaleReason.REPLACED
        step.prove([found(7, b"/a", handle=b"h", source=Source.HANDLE)], T2)
    assert only(store) == Mapping(
        identity=inode(7, b"h"),
        path=b"/a",
        source=Source.IMAGE,
        revalidate=False,
        first_seen_at=T0,
        validated_at=T2,
        last_used_at=T2,
        id=1,
    )


def test_a_reused_inode_number_takes_over_the_row_of_its_path(store):
    prove(store, found(7, b"/a", handle=b"old"))
    prove(store, found(7, b"/a", handle=b"new"), now=T1)
    assert only(store).identity == inode(7, b"new")


def test_files_that_share_an_inode_number_stay_apart(store):
    prove(store, found(257, b"/one/f", handle=b"1"), found(257, b"/two/f", handle=b"2"))
    loaded = store.load([InodeKey(KDEV, 257)])[InodeKey(KDEV, 257)]
    assert [(one.path, one.identity) for one in loaded] == [
        (b"/one/f", inode(257, b"1")),
        (b"/two/f", inode(257, b"2")),
    ]


def test_stale_mappings_keep_their_first_reason_and_leave_the_image(store):
    prove(store, found(1, b"/a", b"/hard"), found(2, b"/b"))
    with store.step() as step:
        step.set_image([CacheEntry(KDEV, 1, b"/hard"), CacheEntry(KDEV, 1, b"/a")])
        gone = [one for one in step.all_mappings() if one.path == b"/hard"]
        step.mark_stale([(one, StaleReason.GONE) for one in gone], T1)
        step.mark_stale([(one, StaleReason.SYMLINK) for one in gone], T2)
        step.flag_all()
    state = {one.path: (one.stale_at, one.stale_reason) for one in store.all_mappings()}
    assert state == {
        b"/a": (None, None),
        b"/hard": (T1, StaleReason.GONE),
        b"/b": (None, None),
    }
    assert store.image_entries() == [CacheEntry(KDEV, 1, b"/a")]
    # Only live rows are marked: irmapdb does not prove a stale mapping again.
    flagged = {one.path: one.revalidate for one in store.all_mappings()}
    assert flagged == {b"/a": True, b"/hard": False, b"/b": True}


def test_the_image_has_the_given_paths_of_the_root_task_alone(store):
    nested = Resolved(inode(1), b"/a", Source.SCAN, mntns=0xF0000001)
    prove(store, found(1, b"/a"), found(2, b"/b"), nested)
    entries = [CacheEntry(KDEV, 2, b"/b"), CacheEntry(KDEV, 1, b"/a"), CacheEntry(KDEV, 2, b"/b")]
    with store.step() as step:
        step.set_image(entries)
    assert store.image_entries() == entries
    with store.step() as step:
        step.set_image(entries[1:])
    assert store.image_entries() == entries[1:]
    with pytest.raises(DatabaseError), store.step() as step:
        step.set_image([CacheEntry(KDEV, 3, b"/never seen")])
    assert store.image_entries() == entries[1:]


def test_an_image_file_is_remembered(store, tmp_path):
    image = tmp_path / os.fsdecode(b"irmap-\xff")
    image.write_bytes(b"x")
    stamp = FileStamp.of(image.stat())
    assert stamp == (image.stat().st_dev, image.stat().st_ino, 1, image.stat().st_mtime_ns)
    assert store.image_seen(image) is None
    with store.step() as step:
        step.set_image_seen(image, stamp._replace(size=99))
        step.set_image_seen(image, stamp)
    assert store.image_seen(os.fsencode(image)) == stamp
    huge = FileStamp((1 << 64) - 1, 1 << 63, (1 << 63) - 1, -1)
    with store.step() as step:
        step.set_image_seen(b"/elsewhere", huge)
    assert store.image_seen(b"/elsewhere") == huge
    assert store.image_seen(image) == stamp


watches = st.builds(
    WatchRow,
    st.builds(
        Watch,
        st.integers(1, 1 << 22),
        st.integers(0, 1 << 20),
        st.sampled_from(list(WatchKind)),
        st.integers(-1, (1 << 31) - 1),
        identities,
        *[st.integers(0, (1 << 32) - 1)] * 3,
    ),
    st.none() | paths,
    st.none(),
    st.none(),
    mntnses,
)


@given(
    rows=st.lists(
        st.one_of(
            st.builds(WatchRow._replace, watches, path=paths),
            st.builds(WatchRow._replace, watches, why=st.text(max_size=20)),
        ),
        max_size=6,
    )
)
def test_every_watch_comes_back_with_its_run(rows):
    with fresh() as store:
        with store.step() as step:
            ids = [
                step.add_run(
                    Event.PRE_DUMP,
                    pid=1,
                    comm=None,
                    started_at=T0,
                    finished_at=T1,
                    stats=RunStats(),
                    outcome="done",
                )
                for _ in range(2)
            ]
            step.add_watches(ids[0], rows)
            step.add_watches(ids[1], rows[:1])
        assert list(store.watches(ids[0])) == rows
        assert list(store.watches(ids[1])) == rows[:1]
        assert list(store.watches(99)) == []


def test_every_run_comes_back_with_its_figures(store):
    words = {"sources", "reproved_why"}
    stats = RunStats(
        **{name: at for at, name in enumerate(RunStats.__slots__) if name not in words},
        reproved_why="renamed 13",
        sources={"scan": 5, "handle": 7},
    )
    kept = [
        {"event": Event.DUMP, "pid": 4242, "comm": b"caf\xe9", "stats": stats},
        {"event": Event.IMPORT, "pid": None, "comm": None, "stats": RunStats()},
    ]
    with store.step() as step:
        ids = [
            step.add_run(**one, started_at=T0, finished_at=T1, outcome="out of patience")
            for one in kept
        ]
    runs = list(store.runs())
    assert [run.id for run in runs] == ids
    assert [
        {"event": run.event, "pid": run.pid, "comm": run.comm, "stats": run.stats} for run in runs
    ] == kept
    assert {(run.started_at, run.finished_at, run.outcome) for run in runs} == {
        (T0, T1, "out of patience")
    }


def test_a_change_has_its_kind_and_its_mapping(store):
    nested = 0xF0000001
    prove(
        store,
        found(1, b"/new"),
        found(2, b"/\xff", handle=b"h"),
        Resolved(inode(1), b"/new", Source.SCAN, mntns=nested),
    )
    changes = [
        Change(ChangeKind.MOVED, inode(1), b"/new", b"/old", StaleReason.GONE),
        Change(ChangeKind.FOUND, inode(2, b"h"), b"/\xff"),
        Change(ChangeKind.REVIVED, inode(1), b"/new", mntns=nested),
        Change(ChangeKind.STALE, inode(3), b"/never stored", reason=StaleReason.BAD_PATH),
    ]
    with store.step() as step:
        run = step.add_run(
            Event.DUMP,
            pid=1,
            comm=b"",
            started_at=T0,
            finished_at=T0,
            stats=RunStats(),
            outcome="done",
        )
        step.add_changes(run, changes, T1)
    rows = list(store.changes())
    assert [row.change for row in rows] == changes
    ids = {(one.identity.ino, one.mntns): one.id for one in store.all_mappings()}
    assert [row.mapping_id for row in rows] == [ids[1, 0], ids[2, 0], ids[1, nested], None]
    assert {(row.run_id, row.at) for row in rows} == {(run, T1)}


def test_a_step_that_fails_leaves_nothing_of_itself(store):
    prove(store, found(1, b"/a"))
    before = list(store.all_mappings())

    def half_way():
        for ino in range(5000):
            yield found(ino, b"/%d" % ino)
        raise KeyboardInterrupt

    def cut_off():
        with store.step() as step:
            step.flag_all()
            step.import_entries([CacheEntry(1, 1, b"/x")], T1)
            step.prove(half_way(), T1)

    with pytest.raises(KeyboardInterrupt):
        cut_off()
    assert list(store.all_mappings()) == before
    assert store.image_entries() == []
    prove(store, found(1, b"/a"), now=T1)  # the store goes on
    assert only(store).validated_at == T1


def test_a_reader_may_pause_while_the_store_is_written(store):
    many = 5000
    prove(store, *(found(ino, b"/%d" % ino) for ino in range(many)))
    walk = store.all_mappings()
    assert next(walk).path == b"/0"
    with store.step() as step:
        assert next(walk).path == b"/1"
        step.mark_stale([(one, StaleReason.GONE) for one in step.all_mappings()], T1)
        assert sum(1 for _ in step.all_mappings()) == many
    rest = list(walk)
    assert [one.path for one in rest] == [b"/%d" % ino for ino in range(2, many)]
    assert rest[-1].stale


def test_many_inodes_are_loaded_with_all_their_rows(store):
    many = range(0, 6000, 2)
    prove(store, *(found(ino, b"/a%d" % ino, b"/b%d" % ino) for ino in many))
    loaded = store.load([InodeKey(KDEV, ino) for ino in range(6000)] + [InodeKey(KDEV + 1, 0)])
    assert {key.ino: [one.path for one in rows] for key, rows in loaded.items()} == {
        ino: [b"/b%d" % ino, b"/a%d" % ino] for ino in many
    }


def test_a_time_without_a_timezone_is_refused(store):
    with pytest.raises(ValueError, match="timezone"):
        prove(store, found(1, b"/a"), now=T0.replace(tzinfo=None))
    assert list(store.all_mappings()) == []


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE mapping SET source = 'guessed'",
        "UPDATE mapping SET first_seen_at = 'yesterday'",
        "UPDATE mapping SET first_seen_at = 7",
        "UPDATE mapping SET stale_at = '2026-01-01 00:00:00', stale_reason = 'boredom'",
    ],
)
def test_a_row_that_others_wrote_is_an_error_not_a_crash(store, statement):
    prove(store, found(1, b"/a"))
    with closing(sqlite3.connect(os.fsdecode(store.path))) as other, other:
        other.execute(statement)
    with pytest.raises(DatabaseError, match="did not write"):
        list(store.all_mappings())


def test_text_that_others_spoilt_is_read_byte_for_byte(store):
    prove(store, found(1, b"/a"))
    with closing(sqlite3.connect(os.fsdecode(store.path))) as other, other:
        other.execute("UPDATE mapping SET path = CAST(x'2fff' AS TEXT)")
    assert only(store).path == b"/\xff"


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE mapping SET dev = -1",
        "UPDATE mapping SET dev = 4294967296",
        "UPDATE mapping SET dev = 'sda'",
        "UPDATE mapping SET ino = 1.5",
        "UPDATE mapping SET path = NULL",
        "UPDATE mapping SET handle = x'00'",
        "UPDATE mapping SET stale_at = '2026-01-01'",
        "UPDATE mapping SET revalidate = 2",
        (
            "INSERT INTO mapping (dev, ino, path, mntns, revalidate, source, first_seen_at) "
            "SELECT dev, ino, path, mntns, revalidate, source, first_seen_at FROM mapping"
        ),
    ],
)
def test_the_schema_refuses_values_without_sense(store, statement):
    prove(store, found(1, b"/a"))
    with (
        closing(sqlite3.connect(os.fsdecode(store.path))) as other,
        pytest.raises(sqlite3.IntegrityError),
    ):
        other.execute(statement)


def test_the_sqlite3_shell_shows_paths_and_times(store):
    require_program("sqlite3")
    prove(store, found(1, "/ü".encode()), found((1 << 64) - 1, b"/caf\xe9"))
    said = subprocess.run(
        [
            "sqlite3",
            store.path,
            "SELECT dev >> 20, printf('%llu', ino), path, date(first_seen_at) FROM mapping",
        ],
        capture_output=True,
        check=True,
    )
    assert said.stderr == b""
    assert said.stdout.splitlines() == [
        "254|1|/ü|2026-11-23".encode(),
        b"254|18446744073709551615|/caf\xe9|2026-11-23",
    ]


def test_opening_a_database_does_not_wait_for_alembic(tmp_path):
    script = """
import sys
from irmapdb.store.database import Store
for _ in range(2):
    Store.open(sys.argv[1].encode(), create=True).close()
Store.open_readonly(sys.argv[1].encode()).close()
sys.exit("alembic" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", script, tmp_path / "irmap.db"], check=True)
