"""The behaviour of CRIU for one watch, without irmapdb: the hook is built on it.

The table has the measured behaviour of CRIU 4.1.1. If a later CRIU does better, a test fails, and
the table must be changed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.support.criu import Criu, Verdict, write_cache
from tests.support.filesystems import drop_caches, superblock_kdev
from tests.support.notify import FAN_OPEN, IN_OPEN

if TYPE_CHECKING:
    from tests.support.area import MountArea
    from tests.support.watcher import Watcher

PATH, NO_PATH, FAILS = Verdict.PATH, Verdict.NO_PATH, Verdict.FAILS


class Row(NamedTuple):
    """One kind of watched object, and CRIU's verdict on it."""

    place: str
    """A kind of MountArea.place, or the mount point of one that is always there."""
    name: str
    warm: Verdict
    """As it is; with the right entry in irmap-cache every row is dumped with its path."""
    dropped: Verdict
    """After dentries were dropped."""
    forced: Verdict
    """The same with --force-irmap."""
    cached: Verdict
    """The same with the right entry in irmap-cache."""


TABLE = (
    Row("ext4", "dir/file", PATH, NO_PATH, FAILS, PATH),
    Row("ext4", "dir", PATH, PATH, PATH, PATH),
    Row("xfs", "dir/file", PATH, NO_PATH, FAILS, PATH),
    Row("btrfs", "dir/file", PATH, NO_PATH, FAILS, FAILS),
    Row("tmpfs", "dir/file", PATH, PATH, PATH, PATH),
    Row("overlay-lower", "dir/file", FAILS, FAILS, FAILS, PATH),
    Row("overlay-upper", "dir/file", FAILS, FAILS, FAILS, PATH),
    Row("overlay-lower", "dir", FAILS, FAILS, FAILS, PATH),
    Row("/sys", "kernel/uevent_seqnum", FAILS, FAILS, FAILS, PATH),
    # fs/proc/proc_sysctl.c gives a new inode, with a new number, at each lookup of a cold name: the
    # watched inode has lost its path, and the entry is not right any more.
    Row("/proc", "sys/kernel/hostname", FAILS, FAILS, FAILS, FAILS),
)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.place.strip('/')}:{row.name}")
def test_verdict_on_one_watch(
    row: Row, area: MountArea, criu: Criu, target: Watcher, tmp_path: Path
) -> None:
    mountpoint = Path(row.place)
    if not mountpoint.is_absolute():
        mountpoint = area.place(row.place).mountpoint
    watched = target.add_inotify(mountpoint / row.name)

    entry = superblock_kdev(mountpoint), watched.st_ino, watched.path

    verdicts, runs = [], []

    def dump(name: str, *, helped: bool = False, cold: bool = False, forced: bool = False) -> None:
        if helped:
            write_cache(tmp_path / name, [entry])
        if cold:
            drop_caches(mountpoint)
        runs.append(criu.dump(target.pid, tmp_path / name, force_irmap=forced))
        verdicts.append(criu.verdict(runs[-1], watched))

    dump("helped", helped=True)
    dump("warm")
    dump("dropped", cold=True)
    dump("forced", cold=True, forced=True)
    dump("cached", cold=True, forced=True, helped=True)

    assert verdicts == [PATH, row.warm, row.dropped, row.forced, row.cached], runs
    # -R, and a dump that fails, leave the task as it was.
    assert target.state() in "SR"
    assert target.ask("events") == []


@pytest.mark.parametrize("kind", ["ext4", "overlay-lower"])
def test_restored_watches_deliver_events(
    kind: str, area: MountArea, criu: Criu, target: Watcher, tmp_path: Path
) -> None:
    place = area.place(kind)
    file, linked = place.directory / "file", place.directory / "dir" / "file"
    child = target.fork()
    by_inotify = target.add_inotify(file, IN_OPEN)
    in_child = child.add_inotify(linked, IN_OPEN)
    by_fanotify = child.add_fanotify(linked, FAN_OPEN)
    kdev = superblock_kdev(place.mountpoint)
    images = tmp_path / "images"
    write_cache(images, [(kdev, w.st_ino, w.path) for w in (by_inotify, in_child)])

    dumped = criu.dump(target.pid, images, leave_running=False)
    assert dumped.ok, dumped
    paths = [dumped.path for dumped in criu.dumped_watches(images)]
    assert len(paths) == 3
    assert {os.lstat(path).st_ino for path in paths if path} == {by_inotify.st_ino, in_child.st_ino}
    restored = criu.restore(target, images)
    assert restored.ok, restored

    assert target.hears(by_inotify, file.read_bytes)
    assert child.hears(in_child, linked.read_bytes)
    assert child.hears(by_fanotify, linked.read_bytes)


def test_broken_cache_makes_the_dump_fail(criu: Criu, target: Watcher, tmp_path: Path) -> None:
    target.add_inotify(tmp_path)
    cache = write_cache(tmp_path / "images", [])
    assert criu.dump(target.pid, tmp_path / "images").ok
    cache.write_bytes(cache.read_bytes()[:7])
    assert not criu.dump(target.pid, tmp_path / "images").ok


def test_stats_of_a_dump(criu: Criu, target: Watcher, tmp_path: Path) -> None:
    target.add_inotify(tmp_path)
    done = criu.dump(target.pid, tmp_path / "images", work=tmp_path / "work")
    assert criu.stats(done)["frozen_time"] > 0
    assert (tmp_path / "work" / "dump.log").exists()
    assert (tmp_path / "images" / "files.img").exists()


def test_action_script_is_called_without_arguments(
    criu: Criu, target: Watcher, tmp_path: Path
) -> None:
    script, seen = tmp_path / "script", tmp_path / "seen"
    script.write_text(
        f'#!/bin/sh\necho "$CRTOOLS_SCRIPT_ACTION $CRTOOLS_INIT_PID $# $PWD" >> {seen}\n'
    )
    script.chmod(0o755)
    work = tmp_path / "work"
    assert criu.dump(target.pid, tmp_path / "images", work=work, action_script=script).ok
    assert f"pre-dump {target.pid} 0 {work}" in seen.read_text().splitlines()
