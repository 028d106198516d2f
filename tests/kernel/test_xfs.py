"""The answers of an xfs with parent pointers, against a walk over real trees and mounts."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from irmapdb.kernel.root import Root
from irmapdb.model import Source
from irmapdb.resolve.xfs import XfsParents
from tests.support.area import MountArea
from tests.support.every_name import CAP_SYS_ADMIN, ask, every_name, identity_of, without
from tests.support.filesystems import drop_caches, superblock_kdev
from tests.support.names import ODD_NAMES, deep_file
from tests.support.random_changes import Gardener
from tests.support.reverse_lookups import (
    assert_needs_no_scan,
    assert_proved_at_once,
    assert_threads_end,
)
from tests.support.watcher import Watcher

pytestmark = pytest.mark.kernel

_ROUNDS = int(os.environ.get("IRMAPDB_RANDOM_ROUNDS", "25"))


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
    # A file over a file, a mount over a directory, and one on top of itself.
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
    assert_proved_at_once(root, XfsParents(root), Source.XFS, wanted, hard)


def test_a_cold_watch_needs_no_scan(area: MountArea, watcher: Watcher, tmp_path: Path) -> None:
    place = area.place("xfs-parents")
    assert_needs_no_scan(watcher, place.directory / "dir", tmp_path, Source.XFS)


def test_a_large_batch_is_asked_in_threads_that_end(area: MountArea, root: Root) -> None:
    top = area.xfs_with_parent_pointers().mountpoint
    for number in range(1500):
        directory = top / f"{number % 3}" / f"{number % 30:02}"
        directory.mkdir(exist_ok=True, parents=True)
        (directory / f"{number:04}").write_bytes(b"")
    truth = every_name(top, superblock_kdev(top))
    assert_threads_end(lambda: XfsParents(root), truth)


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
    assert len(names[identity_of(first)]) == 501
    assert {beyond} in names.values()


def test_an_inode_without_a_name(area: MountArea, root: Root) -> None:
    top = area.xfs_with_parent_pointers().mountpoint
    file = top / "file"
    file.write_bytes(b"")
    deleted, replaced = identity_of(file), identity_of(top)
    # The same number with another generation: so looks a number that was used again.
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


def test_a_file_that_no_mount_shows(area: MountArea, root: Root) -> None:
    filesystem = area.xfs_with_parent_pointers()
    top = filesystem.mountpoint
    (top / "shown").mkdir()
    for path in (top / "outside", top / "shown" / "inside"):
        path.write_bytes(b"")
    outside, inside = identity_of(top / "outside"), identity_of(top / "shown" / "inside")
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
    files = [identity_of(plain / f"{number}") for number in range(100)]
    assert ask(XfsParents(root), files) == (
        {},
        dict.fromkeys(files, "this filesystem keeps no parent pointers"),
    )
    files = [identity_of(telling / f"{number}") for number in range(100)]
    with without(CAP_SYS_ADMIN):
        answer = ask(XfsParents(root), files)
    assert answer == ({}, dict.fromkeys(files, "asking the filesystem needs CAP_SYS_ADMIN"))


def test_the_same_handle_type_elsewhere_is_left_alone(area: MountArea, root: Root) -> None:
    # procfs has handles of the same type number.
    on_proc = identity_of(Path("/proc/sys/kernel/ostype"))
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
