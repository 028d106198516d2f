"""The answers of btrfs, against a walk over real subvolumes, snapshots and mounts."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from irmapdb.kernel.root import Root
from irmapdb.model import Source
from irmapdb.resolve.btrfs import BtrfsLookup
from tests.support.area import MountArea
from tests.support.every_name import (
    CAP_DAC_READ_SEARCH,
    CAP_SYS_ADMIN,
    Names,
    ask,
    every_name,
    identity_of,
    without,
)
from tests.support.filesystems import btrfs_layout, drop_caches, superblock_kdev
from tests.support.names import ODD_NAMES, deep_file
from tests.support.programs import run
from tests.support.random_changes import SubvolumeGardener
from tests.support.reverse_lookups import (
    assert_needs_no_scan,
    assert_proved_at_once,
    assert_threads_end,
)
from tests.support.watcher import Watcher

pytestmark = pytest.mark.kernel

_ROUNDS = int(os.environ.get("IRMAPDB_RANDOM_ROUNDS", "25"))


# BTRFS_EMPTY_SUBVOL_DIR_OBJECTID: a snapshot has it in the place of a nested subvolume. All such
# places have one number and so one handle, and are no inodes of the tree.
_NO_INODE = 2


def _truth(below: Path, btrfs: Path) -> Names:
    names = every_name(below, superblock_kdev(btrfs))
    return {identity: paths for identity, paths in names.items() if identity.ino != _NO_INODE}


def test_every_name_wherever_a_mount_shows_it(area: MountArea, root: Root) -> None:
    filesystem = area.btrfs()
    top = filesystem.mountpoint
    layout = btrfs_layout(top)
    for name in ODD_NAMES:
        (layout.nested / "dir" / os.fsdecode(name)).write_bytes(b"")
    (layout.sub / "other").mkdir()
    (layout.sub / "other" / "hard").hardlink_to(layout.sub / "dir" / "file")
    (layout.sub / "link").symlink_to("dir/file")
    os.mkfifo(layout.sub / "dir" / "fifo")
    for name in ("bound", "hidden", "below"):
        (area.path / name).mkdir()
    area.mount(filesystem.device, "sub volume\n", "btrfs", "subvol=sub")
    area.mount(filesystem.device, "inner", "btrfs", "subvol=sub/nested")
    area.bind(layout.sub / "dir", area.path / "bound")
    # A file over a file, a mount over a directory, and the same mount on top of itself.
    area.bind(layout.snapshot / "file", layout.sub / "other" / "hard")
    (top / "dir" / "covered").mkdir()
    (top / "dir" / "covered" / "file").write_bytes(b"")
    area.tmpfs("btrfs/dir/covered")
    area.bind(layout.nested, layout.nested)
    truth = _truth(area.path, top)
    # One inode in several mounts, and one inode number in several subvolumes.
    assert max(map(len, truth.values())) > 2
    assert len({identity.ino for identity in truth}) < 2 * len(truth) // 3
    drop_caches()
    names, notes = ask(BtrfsLookup(root), truth)
    assert names == truth
    assert not notes


def test_every_answer_passes_the_proof_at_once(area: MountArea, root: Root) -> None:
    top = area.btrfs().mountpoint
    layout = btrfs_layout(top)
    hard = layout.nested / "dir" / "hard"
    hard.hardlink_to(layout.nested / "dir" / "file")
    wanted = _truth(top, top)
    assert_proved_at_once(root, BtrfsLookup(root), Source.BTRFS, wanted, hard)


def test_a_cold_watch_needs_no_scan(area: MountArea, watcher: Watcher, tmp_path: Path) -> None:
    place = area.place("btrfs-subvol-mount")
    assert_needs_no_scan(watcher, place.directory / "dir", tmp_path, Source.BTRFS)


def test_a_large_batch_is_asked_in_threads_that_end(area: MountArea, root: Root) -> None:
    top = area.btrfs().mountpoint
    run("btrfs", "subvolume", "create", top / "sub")
    for number in range(1500):
        directory = top / ("sub" if number % 2 else ".") / f"{number % 30:02}"
        directory.mkdir(exist_ok=True)
        (directory / f"{number:04}").write_bytes(b"")
    truth = _truth(top, top)
    assert_threads_end(lambda: BtrfsLookup(root), truth)


def test_a_subvolume_that_no_mount_shows(area: MountArea, root: Root) -> None:
    filesystem = area.btrfs()
    layout = btrfs_layout(filesystem.mountpoint)
    inside, outside = identity_of(layout.nested / "file"), identity_of(layout.snapshot / "file")
    shown = area.mount(filesystem.device, "shown", "btrfs", "subvol=sub")
    area.tmpfs("btrfs")  # over the mount of everything
    names, notes = ask(BtrfsLookup(root), [inside, outside])
    assert names == {inside: {os.fsencode(shown / "nested" / "file")}}
    assert notes == {outside: "no mount of this root shows it"}


def test_a_deleted_inode_has_no_name(area: MountArea, root: Root) -> None:
    top = area.btrfs().mountpoint
    layout = btrfs_layout(top)
    file, directory = layout.sub / "file", layout.sub / "empty"
    directory.mkdir()
    gone = [identity_of(path) for path in (file, directory, layout.snapshot / "dir" / "file")]
    held = [os.open(path, os.O_RDONLY) for path in (file, directory)]
    file.unlink()
    directory.rmdir()
    run("btrfs", "subvolume", "delete", "--commit-after", layout.snapshot)
    try:
        names, notes = ask(BtrfsLookup(root), gone)
    finally:
        for fd in held:
            os.close(fd)
    assert not names
    assert set(notes) == set(gone)
    assert "no name" in notes[gone[0]]


def test_more_than_one_answer_holds(area: MountArea, root: Root) -> None:
    top = area.btrfs().mountpoint
    run("btrfs", "subvolume", "create", top / "sub")
    first = top / "sub" / "first"
    first.write_bytes(b"")
    for directory, count in (("many", 800), ("few", 3)):
        (top / "sub" / directory).mkdir()
        for number in range(count):
            (top / "sub" / directory / f"{number:03}{'x' * 200}").hardlink_to(first)
    beyond = deep_file(top / "sub" / "few", length=9000)
    truth = _truth(top, top)
    drop_caches()
    names, notes = ask(BtrfsLookup(root), truth)
    assert names == truth
    assert not notes
    assert len(names[identity_of(first)]) == 804
    assert {beyond} in names.values()


def test_the_names_that_are_found_with_fewer_capabilities(area: MountArea, root: Root) -> None:
    filesystem = area.btrfs()
    layout = btrfs_layout(filesystem.mountpoint)
    area.mount(filesystem.device, "sub", "btrfs", "subvol=sub")
    (area.path / "bound").mkdir()
    area.bind(layout.nested / "dir", area.path / "bound")
    area.tmpfs("btrfs")  # over the mount of everything
    sub, bound = area.path / "sub", area.path / "bound"
    many = sub / "many"
    many.mkdir()
    for number in range(100):
        (many / f"{number:03}{'y' * 100}").hardlink_to(sub / "file")
    wanted = _truth(area.path, sub)
    file, nested, below, inner = (
        identity_of(path)
        for path in (sub / "file", sub / "nested", sub / "nested" / "file", bound / "file")
    )

    with without(CAP_DAC_READ_SEARCH):
        assert ask(BtrfsLookup(root), wanted) == (wanted, {})

    # INO_PATHS alone: no subvolume is looked for below another, and 4 KiB of names.
    with without(CAP_SYS_ADMIN):
        names, notes = ask(BtrfsLookup(root), wanted)
    assert notes == dict.fromkeys((nested, below), "asking the filesystem needs CAP_SYS_ADMIN")
    assert names[inner] == {os.fsencode(bound / "file")}
    assert names[file] < wanted[file]
    assert len(names[file]) > 10
    assert names[identity_of(sub / "dir" / "file")] == {os.fsencode(sub / "dir" / "file")}

    with without(CAP_SYS_ADMIN, CAP_DAC_READ_SEARCH):
        names, notes = ask(BtrfsLookup(root), [file, nested])
    assert not names
    assert set(notes.values()) == {"asking the filesystem needs CAP_SYS_ADMIN"}


def test_an_inode_of_another_filesystem_is_not_asked_for(area: MountArea, root: Root) -> None:
    top = area.ext4().mountpoint
    (top / "file").write_bytes(b"")
    assert ask(BtrfsLookup(root), [identity_of(top / "file")]) == ({}, {})


@pytest.mark.slow
def test_random_trees(area: MountArea, root: Root) -> None:
    seed = random.randrange(1 << 32)
    filesystem = area.btrfs()
    top = filesystem.mountpoint
    (area.path / "bound").mkdir()
    (top / "kept").mkdir()
    area.bind(top / "kept", area.path / "bound")
    gardener = SubvolumeGardener(top, random.Random(seed))
    lookup = BtrfsLookup(root)
    for number in range(_ROUNDS):
        for _ in range(10):
            gardener.change()
        if gardener.chance.random() < 0.2:
            drop_caches()
        truth = _truth(area.path, top)
        names, notes = ask(lookup, truth)
        assert names == truth, f"seed {seed}, round {number}"
        assert not notes, f"seed {seed}, round {number}"
    assert gardener.done > _ROUNDS * 3
