"""A database with the rows that some runs on a small tree of tasks would have written.

Times and inode numbers are chosen, so that docs/sql.md can show the answers of queries. Every
kind of row is in it, a name that is no UTF-8 and an inode number above 2^63 among them.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from irmapdb.model import (
    CacheEntry,
    Change,
    ChangeKind,
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

if TYPE_CHECKING:
    from pathlib import Path

    from irmapdb.store.write import Step

__all__ = ["write_scenario"]

_DAY = datetime(2026, 11, 16, 6, 0, tzinfo=UTC)
_EXT4 = 254 << 20
_BTRFS = 38
_OVERLAY = 41

_MODIFY, _CLOSE_WRITE, _MOVED, _CREATE, _DELETE, _ALL = 0x2, 0x8, 0xC0, 0x100, 0x200, 0xFFF


def _ext4(ino: int, generation: int = 0x5EED0001) -> Identity:
    data = ino.to_bytes(4, "little") + generation.to_bytes(4, "little")
    return Identity(_EXT4, ino, FileHandle(1, data))


def _btrfs(ino: int, root: int) -> Identity:
    data = ino.to_bytes(8, "little") + root.to_bytes(8, "little") + (7).to_bytes(4, "little")
    return Identity(_BTRFS, ino, FileHandle(0x4D, data))


_DATA = _ext4(700)
_IN_CSV = _ext4(739)
_OLD_CONF = _ext4(741)
_NEW_CONF = _ext4(760)
_CAFE = _ext4(742)
_AUDIT_LOG = _ext4(745)
_LOST = _ext4(900)
_DELETED = _ext4(901)
_STATE = Identity(_OVERLAY, (1 << 64) - 6, FileHandle(0xF8, bytes.fromhex("00fb210004")))
_SUB = _btrfs(257, 256)
_SNAP = _btrfs(257, 259)

_IMAGE = [
    CacheEntry(_EXT4, 19, b"/etc"),
    CacheEntry(_EXT4, 812, b"/srv/report.csv"),
    CacheEntry(_EXT4, 739, b"/srv/data/in.csv"),
]
_TRIED = (
    Tried("handle", "the kernel has no name cached for it"),
    Tried("open-files", "no task has it open"),
    Tried("scan", "not found in 1,204,331 entries"),
)


def _inotify(pid: int, fd: int, wd: int, identity: Identity, mask: int) -> Watch:
    return Watch(pid, fd, WatchKind.INOTIFY, wd, identity, mask, 0, 0)


def _fanotify(pid: int, fd: int, identity: Identity, mask: int) -> Watch:
    return Watch(pid, fd, WatchKind.FANOTIFY, -1, identity, mask, 0, 0)


def _unresolved(watch: Watch, comm: bytes, tried: tuple[Tried, ...]) -> WatchRow:
    why = "; ".join(f"{one.resolver}: {one.note}" for one in tried)
    return WatchRow(watch, comm, None, why, tried=tried)


def _watches(in_csv: bytes, conf: Identity) -> list[WatchRow]:
    changed = _MODIFY | _CLOSE_WRITE
    return [
        WatchRow(
            _inotify(4242, 5, 1, _DATA, _CREATE | _DELETE | _MOVED), b"sync", b"/srv/data", None
        ),
        WatchRow(_inotify(4242, 5, 2, _IN_CSV, changed), b"sync", in_csv, None),
        WatchRow(_inotify(4242, 5, 3, _CAFE, changed), b"sync", b"/srv/data/caf\xe9.txt", None),
        WatchRow(_inotify(4242, 5, 4, conf, _ALL), b"sync", b"/etc/app.conf", None),
        WatchRow(_inotify(4243, 4, 1, _IN_CSV, changed), b"worker", in_csv, None),
        WatchRow(_fanotify(4243, 7, _AUDIT_LOG, changed), b"worker", b"/srv/data/audit.log", None),
        _unresolved(_inotify(4243, 4, 2, _LOST, changed), b"worker", _TRIED),
        _unresolved(
            _inotify(4243, 4, 3, _DELETED, changed), b"worker", (Tried("handle", "deleted"),)
        ),
    ]


def _backup_watches() -> list[WatchRow]:
    return [
        WatchRow(_inotify(4250, 3, 1, _SUB, _ALL), b"backup", b"/sub/db/journal", None),
        WatchRow(_inotify(4250, 3, 2, _SNAP, _ALL), b"backup", b"/snap/db/journal", None),
        WatchRow(_inotify(4250, 3, 3, _STATE, _MODIFY), b"backup", b"/var/lib/app/state", None),
    ]


def _run(
    step: Step, event: Event, at: datetime, took_ms: int, watches: list[WatchRow], stats: RunStats
) -> int:
    run_id = step.add_run(
        event,
        pid=4242,
        comm=b"sync",
        started_at=at,
        finished_at=at + timedelta(milliseconds=took_ms),
        stats=stats,
        outcome=f"{stats.unresolved} unresolved" if stats.unresolved else "done",
    )
    step.add_watches(run_id, watches)
    return run_id


def _stale(store: Store, step: Step, path: bytes, reason: StaleReason, at: datetime) -> None:
    step.mark_stale([(one, reason) for one in store.all_mappings() if one.path == path], at)


def write_scenario(path: Path) -> None:
    """An import, a pre-dump, a dump that stood still for two seconds, and a pre-dump."""
    with Store.open(path, create=True) as store:
        with store.step() as step:
            step.import_entries(_IMAGE, _DAY)
            step.add_run(
                Event.IMPORT,
                pid=None,
                comm=None,
                started_at=_DAY,
                finished_at=_DAY + timedelta(milliseconds=2),
                stats=RunStats(),
                outcome="3 entries from /var/lib/ckpt/irmap-cache",
            )
        _first_pre_dump(store, _DAY + timedelta(hours=1))
        _dump(store, _DAY + timedelta(days=7, hours=1))
        _last_pre_dump(store, _DAY + timedelta(days=7, hours=2))


def _first_pre_dump(store: Store, at: datetime) -> None:
    watches = [*_watches(b"/srv/data/in.csv", _OLD_CONF), *_backup_watches()]
    with store.step() as step:
        step.flag_all()
        found = [
            Resolved(_DATA, b"/srv/data", Source.HANDLE),
            Resolved(_IN_CSV, b"/srv/data/in.csv", Source.STORED),
            Resolved(_CAFE, b"/srv/data/caf\xe9.txt", Source.HANDLE),
            Resolved(_OLD_CONF, b"/etc/app.conf", Source.SCAN),
            Resolved(
                _AUDIT_LOG, b"/srv/data/audit.log", Source.OPEN_FILES, (b"/srv/backup/audit.log",)
            ),
            Resolved(_SUB, b"/sub/db/journal", Source.BTRFS),
            Resolved(_SNAP, b"/snap/db/journal", Source.BTRFS),
            Resolved(_STATE, b"/var/lib/app/state", Source.SCAN),
        ]
        step.prove(found, at)
        run_id = _run(
            step,
            Event.PRE_DUMP,
            at,
            1210,
            watches,
            RunStats(
                resolve_us=1_187_302,
                watches=11,
                resolved=9,
                unresolved=2,
                hits=1,
                scanned=1_204_331,
                sources={"btrfs": 2, "handle": 2, "open-files": 1, "scan": 2, "stored": 1},
            ),
        )
        step.add_changes(
            run_id,
            [
                Change(ChangeKind.FOUND, one.identity, one.path)
                for one in found
                if one.source is not Source.STORED
            ],
            at,
        )


def _dump(store: Store, at: datetime) -> None:
    # in.csv was rotated and app.conf replaced in the moment before the freeze, by a job that
    # renamed so much else that the monitor of renames could not follow.
    watches = [*_watches(b"/srv/data/in.csv.1", _NEW_CONF), *_backup_watches()]
    with store.step() as step:
        step.flag_all()
        _stale(store, step, b"/srv/data/in.csv", StaleReason.GONE, at)
        _stale(store, step, b"/etc/app.conf", StaleReason.REPLACED, at)
        step.prove(
            [
                Resolved(_DATA, b"/srv/data", Source.STORED),
                Resolved(_IN_CSV, b"/srv/data/in.csv.1", Source.HANDLE),
                Resolved(_CAFE, b"/srv/data/caf\xe9.txt", Source.STORED),
                Resolved(_NEW_CONF, b"/etc/app.conf", Source.SCAN),
                Resolved(_AUDIT_LOG, b"/srv/data/audit.log", Source.STORED),
                Resolved(_SUB, b"/sub/db/journal", Source.STORED),
                Resolved(_SNAP, b"/snap/db/journal", Source.STORED),
                Resolved(_STATE, b"/var/lib/app/state", Source.STORED),
            ],
            at,
        )
        run_id = _run(
            step,
            Event.DUMP,
            at,
            3342,
            watches,
            RunStats(
                freezing_us=412,
                frozen_us=2_013_377,
                resolve_us=3_204_118,
                watches=11,
                resolved=9,
                unresolved=2,
                hits=6,
                stale=2,
                scanned=2_408_662,
                tasks_frozen=3,
                reread_us=1_204,
                reparsed=1,
                confirm_us=38_120,
                reproved=8,
                reproved_why="queue overflow 8",
                frozen_resolve_us=1_971_530,
                sources={"handle": 1, "scan": 1, "stored": 6},
            ),
        )
        step.add_changes(
            run_id,
            [
                Change(
                    ChangeKind.MOVED,
                    _IN_CSV,
                    b"/srv/data/in.csv.1",
                    b"/srv/data/in.csv",
                    StaleReason.GONE,
                ),
                Change(ChangeKind.FOUND, _NEW_CONF, b"/etc/app.conf"),
                Change(ChangeKind.STALE, _OLD_CONF, b"/etc/app.conf", reason=StaleReason.REPLACED),
            ],
            at,
        )
        step.set_image(
            [
                CacheEntry(_BTRFS, 257, b"/sub/db/journal"),
                CacheEntry(_EXT4, 700, b"/srv/data"),
                CacheEntry(_EXT4, 742, b"/srv/data/caf\xe9.txt"),
                CacheEntry(_EXT4, 745, b"/srv/backup/audit.log"),
                CacheEntry(_EXT4, 745, b"/srv/data/audit.log"),
                CacheEntry(_EXT4, 739, b"/srv/data/in.csv.1"),
            ]
        )


def _last_pre_dump(store: Store, at: datetime) -> None:
    # backup has ended, and so no task watches the btrfs and overlayfs files.
    with store.step() as step:
        step.flag_all()
        step.prove(
            [
                Resolved(_DATA, b"/srv/data", Source.STORED),
                Resolved(_IN_CSV, b"/srv/data/in.csv.1", Source.STORED),
                Resolved(_CAFE, b"/srv/data/caf\xe9.txt", Source.STORED),
                Resolved(_NEW_CONF, b"/etc/app.conf", Source.STORED),
                Resolved(_AUDIT_LOG, b"/srv/data/audit.log", Source.STORED),
            ],
            at,
        )
        _run(
            step,
            Event.PRE_DUMP,
            at,
            1155,
            _watches(b"/srv/data/in.csv.1", _NEW_CONF),
            RunStats(
                resolve_us=1_140_870,
                watches=8,
                resolved=6,
                unresolved=2,
                hits=5,
                scanned=1_204_340,
                sources={"stored": 5},
            ),
        )
