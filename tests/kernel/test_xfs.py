"""What an xfs with parent pointers tells, against a walk over real trees and mounts."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path

import pytest

from irmapdb.checkpoint import steps
from irmapdb.checkpoint.steps import StepOptions
from irmapdb.config import Config
from irmapdb.kernel.proof import disproof
from irmapdb.kernel.root import Root
from irmapdb.model import Identity, Source
from irmapdb.resolve import engine
from irmapdb.resolve.xfs import XfsParents
from tests.support.area import MountArea
from tests.support.every_name import CAP_SYS_ADMIN, ask, every_name, identity_at, without
from tests.support.filesystems import drop_caches, superblock_kdev
from tests.support.kernel_paths import open_descriptors
from tests.support.names import ODD_NAMES, deep_file
from tests.support.random_changes import Gardener
from tests.support.watcher import Watcher

pytestmark = pytest.mark.kernel

_ROUNDS = int(os.environ.get("IRMAPDB_RANDOM_ROUNDS", "25"))


def _identity(path: Path) -> Identity:
    fd = os.open(path.parent, os.O_RDONLY)
    try:
        return identity_at(fd, os.fsencode(path.name))
    finally:
        os.close(fd)


def test_every_name_wherever_a_mount_shows_it(area: MountArea, root: Root) -> None:
    filesystem = area.xfs_with_parent_pointers()
    top = filesystem.mountpoint
    for directory in ("dir", "other/inner", "covered"):
        (top / directory).mkdir(parents=True)
        (top / directory / "file").write_bytes(b"")
    for name in ODD_NAMES:
        (top / "other" / "inner" / os.fsdecode(name)).write_bytes(b"")
    (top / "other" / "hard").hardlink_to(top / "dir" / "file")
    (top / "other" / "link").symlink_to("../dir/file")
    os.mkfifo(top / "dir" / "fifo")
    (area.path / "bound here\n").mkdir()
    area.bind(top / "other", area.path / "bound here\n")
    area.mount(filesystem.device, "again", "xfs")
    # A file over a file, something else over a directory, and one on top of itself.
    area.bind(top / "dir" / "fifo", top / "other" / "hard")
    area.tmpfs("xfs-parents/covered")
    area.bind(top / "dir", top / "dir")
    truth = every_name(area.path, superblock_kdev(top))
    assert max(map(len, truth.values())) > 2
    drop_caches()
    names, notes = ask(XfsParents(root), truth)
    assert names == truth
    assert not notes


def test_every_answer_passes_the_proof_at_once(area: MountArea, root: Root) -> None:
    top = area.xfs_with_parent_pointers().mountpoint
    (top / "dir").mkdir()
    (top / "dir" / "file").write_bytes(b"")
    hard = top / "hard"
    hard.hardlink_to(top / "dir" / "file")
    wanted = every_name(top, superblock_kdev(top))
    drop_caches()
    outcome = engine.resolve(
        wanted, [XfsParents(root)], lambda identity, path: disproof(root, identity, path)
    )
    assert not outcome.disproved
    assert not outcome.unresolved
    found = outcome.resolved[_identity(hard)]
    assert found.source is Source.XFS
    assert {found.path, *found.other_paths} == wanted[found.identity]
    assert len(found.other_paths) == 1


def test_a_cold_watch_needs_no_scan(area: MountArea, watcher: Watcher, tmp_path: Path) -> None:
    place = area.place("xfs-parents")
    file = os.fsencode(place.directory / "dir" / "file")
    watched = watcher.add_inotify(file)
    drop_caches()
    options = StepOptions(watcher.pid, images_dir=tmp_path, config=Config(hints=()))
    report = steps.pre_dump(options)
    assert report.stats.sources == {"xfs": 1}
    assert report.stats.scanned == 0
    (row,) = report.watches
    names = {file, os.fsencode(place.directory / "dir" / "hard")}
    assert row.watch.wd == watched.wd
    assert row.path in names


def test_a_large_batch_is_asked_in_threads_that_end(area: MountArea, root: Root) -> None:
    top = area.xfs_with_parent_pointers().mountpoint
    for number in range(1500):
        directory = top / f"{number % 3}" / f"{number % 30:02}"
        directory.mkdir(exist_ok=True, parents=True)
        (directory / f"{number:04}").write_bytes(b"")
    truth = every_name(top, superblock_kdev(top))
    drop_caches()
    before = open_descriptors(), threading.active_count()
    names, notes = ask(XfsParents(root), truth)
    assert names == truth
    assert not notes
    asked = XfsParents(root)(truth.keys())
    next(asked)
    asked.close()
    assert (open_descriptors(), threading.active_count()) == before


def test_more_than_one_answer_holds(area: MountArea, root: Root) -> None:
    top = area.xfs_with_parent_pointers().mountpoint
    first = top / "first"
    first.write_bytes(b"")
    (top / "many").mkdir()
    for number in range(500):
        (top / "many" / f"{number:03}{'x' * 200}").hardlink_to(first)
    beyond = deep_file(top / "many", length=9000)
    truth = every_name(top, superblock_kdev(top))
    drop_caches()
    names, notes = ask(XfsParents(root), truth)
    assert names == truth
    assert not notes
    assert len(names[_identity(first)]) == 501
    assert {beyond} in names.values()


def test_what_has_no_name(area: MountArea, root: Root) -> None:
    top = area.xfs_with_parent_pointers().mountpoint
    file = top / "file"
    file.write_bytes(b"")
    deleted, replaced = _identity(file), _identity(top)
    # The same number, another generation: what a number that was used again looks like.
    assert replaced.handle is not None
    kind, data = replaced.handle
    replaced = replaced._replace(handle=replaced.handle._replace(data=data[:-1] + b"\x7f"))
    held = os.open(file, os.O_RDONLY)
    file.unlink()
    unlinked = ask(XfsParents(root), [deleted])
    os.close(held)
    drop_caches()
    no_name = {deleted: "the filesystem has no name for it"}
    assert unlinked == ({}, no_name)
    assert ask(XfsParents(root), [deleted]) == ({}, no_name)
    names, notes = ask(XfsParents(root), [replaced])
    assert (names, list(notes.values())) == ({}, ["the filesystem has no name for it"])
    assert kind == 0x81


def test_what_no_mount_shows(area: MountArea, root: Root) -> None:
    filesystem = area.xfs_with_parent_pointers()
    top = filesystem.mountpoint
    (top / "shown").mkdir()
    for path in (top / "outside", top / "shown" / "inside"):
        path.write_bytes(b"")
    outside, inside = _identity(top / "outside"), _identity(top / "shown" / "inside")
    (area.path / "bound").mkdir()
    area.bind(top / "shown", area.path / "bound")
    area.tmpfs("xfs-parents")  # over the mount of everything
    names, notes = ask(XfsParents(root), [outside, inside])
    assert names == {inside: {os.fsencode(area.path / "bound" / "inside")}}
    assert notes == {outside: "no mount of this root shows it"}


def test_where_the_filesystem_cannot_tell_there_is_one_note(area: MountArea, root: Root) -> None:
    plain, telling = area.xfs().mountpoint, area.xfs_with_parent_pointers().mountpoint
    for top in (plain, telling):
        for number in range(100):
            (top / f"{number}").write_bytes(b"")
    files = [_identity(plain / f"{number}") for number in range(100)]
    assert ask(XfsParents(root), files) == (
        {},
        dict.fromkeys(files, "this filesystem keeps no parent pointers"),
    )
    files = [_identity(telling / f"{number}") for number in range(100)]
    with without(CAP_SYS_ADMIN):
        answer = ask(XfsParents(root), files)
    assert answer == ({}, dict.fromkeys(files, "asking the filesystem needs CAP_SYS_ADMIN"))


def test_the_same_handle_type_elsewhere_is_left_alone(area: MountArea, root: Root) -> None:
    # procfs has handles of the same type number.
    on_proc = _identity(Path("/proc/sys/kernel/ostype"))
    assert on_proc.handle is not None
    assert on_proc.handle.type == 0x81
    area.xfs_with_parent_pointers()
    assert ask(XfsParents(root), [on_proc]) == ({}, {})


@pytest.mark.slow
def test_random_trees(area: MountArea, root: Root) -> None:
    seed = random.randrange(1 << 32)
    top = area.xfs_with_parent_pointers().mountpoint
    (area.path / "bound").mkdir()
    (top / "kept").mkdir()
    area.bind(top / "kept", area.path / "bound")
    gardener = Gardener(top, random.Random(seed))
    lookup = XfsParents(root)
    for number in range(_ROUNDS):
        for _ in range(20):
            gardener.change()
        if gardener.chance.random() < 0.2:
            drop_caches()
        truth = every_name(area.path, superblock_kdev(top))
        names, notes = ask(lookup, truth)
        assert names == truth, f"seed {seed}, round {number}"
        assert not notes, f"seed {seed}, round {number}"
    assert gardener.done > _ROUNDS * 5
