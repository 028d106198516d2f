"""The audit beside the truth: what became of every file, kept by the test while it did it.

An inode is told from another one by what ext4 counts itself, FS_IOC_GETVERSION: its number and
its generation. Nothing of irmapdb is asked for that.
"""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import struct
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest

from irmapdb import audit, mend, steps
from irmapdb.audit import Finding, Selection, Verdict
from irmapdb.config import Config
from irmapdb.errors import FileError, UsageError
from irmapdb.kernel.directory import open_directory_root
from irmapdb.kernel.identity import identify
from irmapdb.kernel.root import open_root
from irmapdb.model import (
    CacheEntry,
    Change,
    ChangeKind,
    Event,
    Identity,
    Mapping,
    Resolved,
    Source,
    StaleReason,
)
from irmapdb.steps import FreezeOptions, Options
from irmapdb.store import Store
from tests.kernel.truth import served
from tests.support.area import MountArea
from tests.support.filesystems import drop_caches
from tests.support.notify import Watched
from tests.support.programs import run
from tests.support.watcher import Watcher

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

_NO_HINTS = Config(hints=())
_FS_IOC_GETVERSION = 0x80087601


class File(NamedTuple):
    """One inode of an ext4, for as long as it lives and after."""

    ino: int
    generation: int

    @classmethod
    def at(cls, path: Path) -> File:
        fd = os.open(path, os.O_RDONLY)
        try:
            answer = fcntl.ioctl(fd, _FS_IOC_GETVERSION, bytes(8))
            return cls(os.fstat(fd).st_ino, struct.unpack_from("=I", answer)[0])
        finally:
            os.close(fd)

    @classmethod
    def of(cls, identity: Identity) -> File:
        """From the handle (fs/libfs.c, FILEID_INO32_GEN): number and generation."""
        assert identity.handle is not None
        assert identity.handle.type == 1
        return cls(*struct.unpack("=II", identity.handle.data))


class Garden:
    """Files below a directory, what they are called, and what is watched."""

    def __init__(self, top: Path, work: Path, watcher: Watcher) -> None:
        self.top, self.work, self.watcher = top, work, watcher
        self.names: dict[Path, File] = {}
        self.pins: dict[Path, int] = {}
        """Descriptors that keep the kernel from forgetting a name."""
        self.watches: dict[File, Watched] = {}
        work.mkdir()

    @property
    def database(self) -> Path:
        return self.work / "irmap.db"

    def make(self, name: str) -> Path:
        path = self.top / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        self.names[path] = File.at(path)
        self.pins[path] = os.open(path, os.O_PATH)
        return path

    def watch(self, path: Path) -> None:
        self.watches[self.names[path]] = self.watcher.add_inotify(path)

    def rename(self, old: Path, new: Path) -> Path:
        old.rename(new)
        if old != new and self.names.get(new) != self.names[old]:
            # Of two names of one inode, rename(2) does nothing.
            self.unpin(new)
            self.names[new] = self.names.pop(old)
            self.pins[new] = self.pins.pop(old)
        return new

    def link(self, old: Path, new: Path) -> None:
        new.hardlink_to(old)
        self.names[new] = self.names[old]
        self.pins[new] = os.open(new, os.O_PATH)

    def remove(self, path: Path) -> None:
        self.unpin(path)
        path.unlink()
        del self.names[path]

    def unpin(self, path: Path) -> None:
        if path in self.pins:
            os.close(self.pins.pop(path))

    def forget(self) -> None:
        """Have the kernel forget every name."""
        for path in list(self.pins):
            self.unpin(path)
        drop_caches()

    def names_of(self, file: File) -> set[bytes]:
        return {os.fsencode(path) for path, one in self.names.items() if one == file}

    def step(self, *, freeze: bool = False) -> steps.Report:
        options = Options(self.watcher.pid, images_dir=self.work, config=_NO_HINTS)
        return steps.dump(options, FreezeOptions()) if freeze else steps.pre_dump(options)

    def options(self, **kwargs: object) -> audit.Options:
        return audit.Options(self.database, config=_NO_HINTS, **kwargs)

    def audit(self, **kwargs: object) -> dict[bytes, Finding]:
        return {
            finding.mapping.path: finding
            for finding in audit.audit(self.options(**kwargs)).findings
        }

    def truth(self, mapping: Mapping) -> Verdict:
        file, path = File.of(mapping.identity), mapping.path
        if path in self.names_of(file):
            return Verdict.VALID
        if self.names_of(file):
            return Verdict.MOVED
        other = self.names.get(Path(os.fsdecode(path)))
        if other is None:
            return Verdict.DELETED
        return Verdict.REUSED if other.ino == file.ino else Verdict.REPLACED

    def mappings(self) -> list[Mapping]:
        with Store.open_readonly(self.database) as store:
            return list(store.all_mappings())

    def changes(self) -> list[tuple[int | None, Change]]:
        with Store.open_readonly(self.database) as store:
            return [(row.run_id, row.change) for row in store.changes()]


@pytest.fixture
def garden(area: MountArea, tmp_path: Path, watcher: Watcher) -> Iterator[Garden]:
    """An ext4 of its own: small, so that inode numbers are used again at once."""
    made = Garden(area.ext4().mountpoint, tmp_path / "work", watcher)
    yield made
    for path in list(made.pins):
        made.unpin(path)


def _contents(directory: Path) -> dict[str, bytes]:
    return {one.name: one.read_bytes() for one in directory.iterdir()}


def _check(garden: Garden, **kwargs: object) -> dict[bytes, Finding]:
    before = _contents(garden.work)
    findings = audit.audit(garden.options(**kwargs)).findings
    assert _contents(garden.work) == before, "the audit wrote"
    assert [one.mapping for one in findings] == garden.mappings()
    for one in findings:
        assert (one.mapping.path, one.verdict) == (one.mapping.path, garden.truth(one.mapping))
        if one.verdict is Verdict.MOVED:
            assert one.evidence.moved_to
            assert set(one.evidence.moved_to) <= garden.names_of(File.of(one.mapping.identity))
        if one.verdict in {Verdict.REPLACED, Verdict.REUSED}:
            there = garden.names[Path(os.fsdecode(one.mapping.path))]
            assert File.of(one.evidence.found) == there
    return {one.mapping.path: one for one in findings}


def _again_with_its_number(garden: Garden, path: Path) -> None:
    # ext4 gives the lowest free number: others are made until it is the one that came free.
    file = garden.names[path]
    garden.remove(path)
    for number in range(32):
        made = garden.make(f"filler-{number}")
        if garden.names[made].ino == file.ino:
            garden.rename(made, path)
            break
    assert garden.names[path].ino == file.ino, "ext4 did not use the number again"
    assert garden.names[path].generation != file.generation


def test_the_whole_story(garden: Garden) -> None:
    names = ("stays", "moves", "linked", "replaced", "dies", "again", "swap-a", "swap-b")
    paths = {name: garden.make(name) for name in names}
    raw = {name: os.fsencode(path) for name, path in paths.items()}
    for path in paths.values():
        garden.watch(path)
    garden.step()
    assert {one.verdict for one in _check(garden).values()} == {Verdict.VALID}

    garden.rename(paths["moves"], garden.top / "moved")
    garden.link(paths["linked"], garden.top / "other")
    garden.remove(paths["linked"])
    garden.make("spare")
    garden.rename(garden.top / "spare", paths["replaced"])
    garden.remove(paths["dies"])
    _again_with_its_number(garden, paths["again"])
    for old, new in (("swap-a", "x"), ("swap-b", "swap-a"), ("x", "swap-b")):
        garden.rename(garden.top / old, garden.top / new)

    found = _check(garden)
    assert {path.decode().rpartition("/")[2]: one.verdict.value for path, one in found.items()} == {
        "stays": "valid",
        "moves": "moved",
        "linked": "moved",
        "replaced": "replaced",
        "dies": "deleted",
        "again": "reused",
        "swap-a": "moved",
        "swap-b": "moved",
    }
    for name in ("moves", "dies"):
        at = found[raw[name]].evidence.changed_at.timestamp()
        assert abs(at - garden.top.stat().st_mtime) < 1e-3

    garden.watch(paths["again"])  # the new one
    garden.step(freeze=True)
    _check(garden)

    story = [
        (run_id, change.kind, change.path.rpartition(b"/")[2].decode(), change.reason)
        for run_id, change in garden.changes()
    ]
    assert sorted(story[: len(names)]) == sorted((1, "found", name, None) for name in names)
    assert sorted(story[len(names) :], key=lambda one: one[2]) == [
        (2, "stale", "again", StaleReason.REUSED),
        (2, "found", "again", None),
        (2, "moved", "moved", StaleReason.GONE),
        (2, "moved", "other", StaleReason.GONE),
        (2, "moved", "swap-a", StaleReason.REPLACED),
        (2, "moved", "swap-b", StaleReason.REPLACED),
    ]

    # Nobody watches these two any more, so no step has looked; the audit does.
    mended = mend.mend(garden.options())
    assert {(change.kind, change.path, change.reason) for change in mended.changes} == {
        (ChangeKind.STALE, raw["replaced"], StaleReason.REPLACED),
        (ChangeKind.STALE, raw["dies"], StaleReason.GONE),
    }
    with Store.open_readonly(garden.database) as store:
        (*_, last) = store.runs()
    assert (last.id, last.event, last.outcome) == (3, Event.AUDIT_FIX, "2 stale")
    assert not any(one.is_news for one in _check(garden).values())
    assert mend.mend(garden.options()).run_id is None, "there was nothing left to do"
    assert _live(garden) == _replayed(garden)


def test_a_remount_on_another_device(garden: Garden, area: MountArea, tmp_path: Path) -> None:
    filesystem = area.ext4("other")
    there = Garden(filesystem.mountpoint, tmp_path / "there", garden.watcher)
    path, here = there.make("file"), garden.make("file")
    there.watch(path)
    garden.watch(here)
    there.step()
    there.unpin(path)
    garden.watcher.remove(there.watches[there.names[path]])
    filesystem.remount_on_another_device()

    found = there.audit()

    gone = found[os.fsencode(path)]
    assert (gone.verdict, gone.evidence.reason) == (Verdict.UNMOUNTED, StaleReason.UNMOUNTED)
    assert gone.evidence.found.kdev != gone.mapping.identity.kdev
    assert File.of(gone.evidence.found) == File.of(gone.mapping.identity)
    assert "its handle at the path" in gone.evidence.note
    assert found[os.fsencode(here)].verdict is Verdict.VALID
    (change,) = mend.mend(there.options()).changes
    assert (change.kind, change.reason) == (ChangeKind.STALE, StaleReason.UNMOUNTED)


def _live(garden: Garden) -> set[tuple[Identity, bytes]]:
    return {(one.identity, one.path) for one in garden.mappings() if not one.stale}


def _replayed(garden: Garden) -> set[tuple[Identity, bytes]]:
    """The live mappings as the `change` table alone tells them, read from top to bottom."""
    live: set[tuple[Identity, bytes]] = set()
    for _, change in garden.changes():
        here = (change.identity, change.path)
        if change.kind is ChangeKind.STALE:
            live.remove(here)
            continue
        if change.kind is ChangeKind.MOVED:
            live.remove((change.identity, change.old_path))
        assert here not in live
        live.add(here)
    return live


class _Chance:
    """One random change after the other, done to the files and to the truth."""

    def __init__(self, garden: Garden, seed: int) -> None:
        self.garden = garden
        self.random = random.Random(seed)

    def step(self) -> None:
        what = self.random.choice(
            ["make", "make", "rename", "rename", "over", "link", "remove", "again", "watch"]
        )
        getattr(self, what)()

    def _any(self) -> Path | None:
        names = sorted(self.garden.names)
        return self.random.choice(names) if names else None

    def _free(self) -> Path:
        while True:
            path = self.garden.top / self.random.choice("de") / self.random.choice("abcdefgh")
            path.parent.mkdir(exist_ok=True)
            if path not in self.garden.names:
                return path

    def make(self) -> None:
        if len(self.garden.names) < 12:
            self.garden.make(os.fspath(self._free().relative_to(self.garden.top)))

    def rename(self) -> None:
        if path := self._any():
            self.garden.rename(path, self._free())

    def over(self) -> None:
        old, new = self._any(), self._any()
        if old and new:
            self.garden.rename(old, new)

    def link(self) -> None:
        path = self._any()
        if path and len(self.garden.names) < 12:
            self.garden.link(path, self._free())

    def remove(self) -> None:
        if path := self._any():
            self.garden.remove(path)

    def again(self) -> None:
        if path := self._any():
            self.garden.remove(path)
            self.garden.make(os.fspath(path.relative_to(self.garden.top)))

    def watch(self) -> None:
        if path := self._any():
            self.garden.watch(path)


@pytest.mark.parametrize("seed", range(4))
def test_random_stories(garden: Garden, seed: int) -> None:
    chance = _Chance(garden, seed)
    for number in range(12):
        for _ in range(10):
            chance.step()
        if number % 4 == 3:
            mend.mend(garden.options())
        else:
            garden.step(freeze=number % 3 == 2)
        _check(garden)
        assert _live(garden) == _replayed(garden)
    assert {change.kind for _, change in garden.changes()} >= set(ChangeKind) - {"revived"}


# Where to


def test_what_nobody_knows_is_scanned_for_where_asked(garden: Garden) -> None:
    path = garden.make("d/file")
    garden.watch(path)
    garden.step()
    moved = garden.rename(path, garden.make("e/x").with_name("file"))
    garden.watcher.remove(garden.watches[garden.names[moved]])  # it holds the inode, and the name
    garden.forget()

    blind = garden.audit()[os.fsencode(path)]
    assert (blind.verdict, blind.evidence.moved_to) == (Verdict.MOVED, ())
    assert "--search" in blind.evidence.note
    seen = garden.audit(search=True)[os.fsencode(path)]
    assert (seen.verdict, seen.evidence.moved_to) == (Verdict.MOVED, (os.fsencode(moved),))

    garden.forget()
    mended = mend.mend(garden.options(search=True))
    assert [(change.kind, change.path) for change in mended.changes] == [
        (ChangeKind.MOVED, os.fsencode(moved))
    ]
    (row,) = (one for one in garden.mappings() if not one.stale)
    assert (row.path, row.last_used_at) == (os.fsencode(moved), None)
    # And so it is in what irmap-cache is made of.
    with Store.open_readonly(garden.database) as store:
        assert [entry.path for entry in store.image_entries()] == [os.fsencode(moved)]


@pytest.mark.parametrize("kind", ["btrfs-subvolume", "xfs-parents"])
def test_filesystems_that_know(
    area: MountArea, tmp_path: Path, watcher: Watcher, kind: str
) -> None:
    place = area.place(kind)
    work = tmp_path / "work"
    work.mkdir()
    names = {os.fsencode(place.directory / "dir" / name) for name in ("file", "hard")}
    watched = watcher.add_inotify(place.directory / "dir" / "file")
    steps.pre_dump(Options(watcher.pid, images_dir=work, config=_NO_HINTS))
    watcher.remove(watched)
    with Store.open_readonly(work / "irmap.db") as store:
        (known,) = (row.path for row in store.all_mappings())
    moved = os.fsencode(place.directory / "moved")
    os.rename(known, moved)
    run("sync")
    drop_caches()

    (lost,) = audit.audit(audit.Options(work / "irmap.db", config=_NO_HINTS)).findings

    assert (lost.mapping.path, lost.verdict) == (known, Verdict.MOVED)
    assert set(lost.evidence.moved_to) == names - {known} | {moved}


def test_links_and_hidden_mounts(garden: Garden, area: MountArea) -> None:
    inside, outside = garden.make("d/file"), garden.make("plain")
    garden.watch(inside)
    garden.watch(outside)
    garden.step()
    directory = inside.parent
    directory.rename(garden.top / "real")
    directory.symlink_to("real")

    moved = garden.audit()[os.fsencode(inside)]
    assert (moved.verdict, moved.evidence.reason) == (Verdict.MOVED, StaleReason.SYMLINK)
    assert moved.evidence.moved_to == (os.fsencode(garden.top / "real" / "file"),)

    area.mount("tmpfs", "ext4", "tmpfs")  # upon the ext4 itself
    hidden = garden.audit()
    assert {one.verdict for one in hidden.values()} == {Verdict.UNMOUNTED}
    assert "hidden" in hidden[os.fsencode(outside)].evidence.note


def test_a_server_that_never_answers(
    area: MountArea, tmp_path: Path, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "_PATIENCE_S", 0.5)
    source = tmp_path / "source"
    source.mkdir()
    near, far = tmp_path / "near", area.path / "far" / "file"
    near.touch()
    (source / "file").touch()
    work = tmp_path / "work"
    work.mkdir()
    with served(source, far.parent) as server:
        watcher.add_inotify(near)
        watcher.add_inotify(far)
        steps.pre_dump(
            Options(
                watcher.pid,
                images_dir=work,
                scan_paths=(os.fsencode(far.parent),),
                config=_NO_HINTS,
            )
        )
        options = audit.Options(work / "irmap.db", config=_NO_HINTS)
        before = {one.mapping.path: one.verdict for one in audit.audit(options).findings}
        with server.silent():
            found = {one.mapping.path: one for one in audit.audit(options).findings}
            assert mend.mend(options).run_id is None
    assert before[os.fsencode(far)] is Verdict.VALID
    assert found[os.fsencode(near)].verdict is Verdict.VALID
    assert found[os.fsencode(far)].verdict is Verdict.UNREACHABLE
    assert "no answer in time" in found[os.fsencode(far)].evidence.note


# Whose root


def test_a_directory_as_the_root(area: MountArea, tmp_path: Path) -> None:
    rootfs = area.ext4("rootfs").mountpoint
    (rootfs / "a" / "mnt").mkdir(parents=True)
    (rootfs / "a" / "file").touch()
    (rootfs / "a" / "out").symlink_to("/etc")
    inner = area.mount("tmpfs", "rootfs/a/mnt", "tmpfs")
    (inner / "deep").touch()
    for directory in (rootfs, rootfs / "a"):
        with open_directory_root(os.fsencode(directory)) as root:
            for path in (rootfs / "a" / "file", inner / "deep"):
                within = b"/" + os.fsencode(path.relative_to(directory))
                found = identify(root, within)
                status = path.stat()
                kdev = os.major(status.st_dev) << 20 | os.minor(status.st_dev)
                assert (found.kdev, found.ino) == (kdev, status.st_ino)
                assert root.mount_of(within).kdev == kdev
                assert root.mounts_of(kdev)
                with open(path, "rb") as file:
                    link = os.fsencode(os.readlink(f"/proc/self/fd/{file.fileno()}"))
                assert root.strip(link) == within
            assert {mount.kdev for mount in root.mounts} == {
                os.major(one.stat().st_dev) << 20 | os.minor(one.stat().st_dev)
                for one in (rootfs, inner)
            }
            with pytest.raises(OSError, match="symbolic"):
                root.open(b"/" + os.fsencode((rootfs / "a/out/passwd").relative_to(directory)))


def test_a_container_from_outside(area: MountArea, tmp_path: Path) -> None:
    rootfs = area.ext4("rootfs").mountpoint
    (rootfs / "etc").mkdir()
    (rootfs / "proc").mkdir()
    (rootfs / "etc" / "conf").touch()
    work = tmp_path / "work"
    work.mkdir()
    with Watcher(unshare={"mount"}, rootfs=rootfs) as task:
        task.add_inotify("/etc/conf")
        steps.pre_dump(Options(task.pid, images_dir=work, config=_NO_HINTS))
        options = audit.Options(work / "irmap.db", config=_NO_HINTS)

        def verdicts(**kwargs: object) -> set[str]:
            told = audit.Options(options.database, config=_NO_HINTS, **kwargs)
            return {one.verdict.value for one in audit.audit(told).findings}

        assert verdicts(pid=task.pid) == {"valid"}
        assert verdicts(root=os.fsencode(rootfs)) == {"valid"}
        # In our own root the same path is another file's, and the file has another path.
        assert verdicts() == {"moved"}
        with pytest.raises(FileError, match="another mount namespace"):
            verdicts(root=f"/proc/{task.pid}/root".encode())
        with pytest.raises(UsageError):
            verdicts(pid=task.pid, root=b"/")


def test_a_nested_namespace_is_audited_where_it_is_named(
    area: MountArea, tmp_path: Path, watcher: Watcher
) -> None:
    hidden = area.path / "hidden"
    hidden.mkdir()
    (tmp_path / "near").touch()
    work = tmp_path / "work"
    work.mkdir()
    database = work / "irmap.db"
    near = watcher.add_inotify(tmp_path / "near")
    with Watcher(unshare={"mount"}) as other:
        other.mount("tmpfs", hidden, "tmpfs")
        other.write(hidden / "far")
        far = other.add_inotify(hidden / "far")
        with open_root(other.pid) as root:
            identity, mntns = identify(root, far.path), root.mntns
        steps.pre_dump(Options(watcher.pid, images_dir=work, config=_NO_HINTS))
        _store(database, identity, far.path, mntns)

        def verdicts(pid: int | None) -> dict[bytes, str]:
            options = audit.Options(database, pid=pid, config=_NO_HINTS)
            return {one.mapping.path: one.verdict.value for one in audit.audit(options).findings}

        assert verdicts(None) == {near.path: "valid", far.path: "unreachable"}
        assert verdicts(other.pid) == {near.path: "unreachable", far.path: "valid"}


def _store(database: Path, identity: Identity, path: bytes, mntns: int) -> None:
    with Store.open(database, create=False) as store, store.step() as tx:
        tx.prove([Resolved(identity, path, Source.SCAN, mntns=mntns)], datetime.now(UTC))


# What is known by its number alone


def test_imported_mappings_are_compared_by_number(garden: Garden) -> None:
    path, gone = garden.make("file"), garden.make("gone")
    entries = [
        CacheEntry(_kdev(one), garden.names[one].ino, os.fsencode(one)) for one in (path, gone)
    ]
    garden.remove(gone)
    with Store.open(garden.database, create=True) as store, store.step() as tx:
        tx.import_entries(entries, datetime.now(UTC))
    found = garden.audit(search=True)
    valid, lost = found[os.fsencode(path)], found[os.fsencode(gone)]
    assert (valid.verdict, valid.by_number) == (Verdict.VALID, True)
    assert (lost.verdict, lost.evidence.moved_to) == (Verdict.GONE, ())
    assert "no handle" in lost.evidence.note


def _kdev(path: Path) -> int:
    st_dev = path.stat().st_dev
    return os.major(st_dev) << 20 | os.minor(st_dev)


# What is written


def test_what_changes_between_audit_and_writing_is_left_alone(
    garden: Garden, monkeypatch: pytest.MonkeyPatch
) -> None:
    back, mended = garden.make("back"), garden.make("mended")
    for path in (back, mended):
        garden.watch(path)
    garden.step()
    away = [garden.rename(path, path.with_suffix(".old")) for path in (back, mended)]
    look = audit.Audit.report

    def report_then_change(self: audit.Audit) -> audit.Report:
        report = look(self)
        garden.rename(away[0], back)
        garden.step()
        return report

    monkeypatch.setattr(audit.Audit, "report", report_then_change)
    result = mend.mend(garden.options())
    assert result.report.news == 2
    assert (result.run_id, result.changes) == (None, ())
    assert _live(garden) == _replayed(garden)


def test_what_holds_again_is_live_again(garden: Garden) -> None:
    path = garden.make("file")
    garden.watch(path)
    garden.step()
    away = garden.rename(path, path.with_name("away"))
    garden.step()
    garden.rename(away, path)
    (change,) = mend.mend(garden.options()).changes
    assert (change.kind, change.old_path) == (ChangeKind.MOVED, os.fsencode(away))
    assert _live(garden) == _replayed(garden)

    # Stale, whatever for, and true all the same.
    now = datetime.now(UTC)
    with Store.open(garden.database, create=False) as store, store.step() as tx:
        (row,) = (one for one in tx.all_mappings() if not one.stale)
        tx.mark_stale([(row, StaleReason.UNMOUNTED)], now)
    assert garden.audit()[row.path].verdict is Verdict.VALID
    (change,) = mend.mend(garden.options()).changes
    assert (change.kind, change.path) == (ChangeKind.REVIVED, row.path)
    assert {path for _, path in _live(garden)} == {row.path}


def test_selections(garden: Garden) -> None:
    paths = [garden.make(name) for name in ("a", "b", "c")]
    odd = os.fsencode(garden.top) + b"/caf\xe9\n"
    os.close(os.open(odd, os.O_CREAT))
    for path in paths:
        garden.watch(path)
    garden.watcher.add_inotify(odd)
    report = garden.step()
    kdev = report.watches[0].watch.identity.kdev
    garden.remove(paths[0])

    def chosen(**kwargs: object) -> set[bytes]:
        return {path.rpartition(b"/")[2] for path in garden.audit(select=Selection(**kwargs))}

    everything = {b"a", b"b", b"c", b"caf\xe9\n"}
    assert chosen() == chosen(kdevs=frozenset({kdev, 1})) == everything
    assert chosen(kdevs=frozenset({kdev + 1})) == set()
    assert chosen(paths=(b"*/a", b"*caf\xe9?")) == {b"a", b"caf\xe9\n"}
    assert chosen(verdicts=frozenset({Verdict.DELETED})) == {b"a"}
    proved = garden.mappings()[0].validated_at
    assert chosen(unproved_since=proved) == set()
    assert chosen(unproved_since=proved.replace(year=proved.year + 1)) == everything


def test_without_its_database_beside_it(garden: Garden, tmp_path: Path) -> None:
    garden.watch(garden.make("file"))
    garden.step()
    lonely = tmp_path / "lonely"
    lonely.mkdir()
    shutil.copy(garden.database, lonely / "irmap.db")
    (finding,) = audit.audit(audit.Options(lonely / "irmap.db")).findings
    assert finding.verdict is Verdict.VALID
