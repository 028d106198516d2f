"""The places that the audit reads, the filesystems that it asks, and the rows that it writes."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from irmapdb.audit import check as audit
from irmapdb.audit import fix, root_audit
from irmapdb.audit.findings import AuditVerdict, Selection
from irmapdb.checkpoint import steps
from irmapdb.checkpoint.steps import StepOptions
from irmapdb.criu.check import dump as check
from irmapdb.criu.check.verdicts import WatchVerdict as Prediction
from irmapdb.criu.check.version import CriuVersion
from irmapdb.kernel.fs.inode_state import InodeState, fates
from irmapdb.kernel.proof import identify
from irmapdb.kernel.root import open_root
from irmapdb.model import (
    CacheEntry,
    ChangeKind,
    StaleReason,
)
from irmapdb.store.database import Store
from tests.support.area import MountArea
from tests.support.audit_files import NO_HINTS, Garden, live, replayed, store_row
from tests.support.filesystems import drop_caches
from tests.support.kernel_paths import served
from tests.support.programs import run
from tests.support.watcher import Watcher

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


# The places


def test_a_moved_file_without_a_cached_name_is_scanned_for_with_search(
    garden: Garden, tmp_path: Path
) -> None:
    path = garden.make("d/file")
    garden.watch(path)
    garden.step()
    moved = garden.rename(path, garden.make("e/x").with_name("file"))
    garden.watcher.remove(garden.watches[garden.names[moved]])  # it holds the inode, and the name
    garden.forget()

    blind = garden.audit()[os.fsencode(path)]
    assert (blind.verdict, blind.evidence.moved_to) == (AuditVerdict.MOVED, ())
    assert "a search scans for it" in blind.evidence.note
    copy = tmp_path / "copy.db"
    shutil.copy(garden.database, copy)
    (lost,) = fix.mend(audit.AuditOptions(copy, config=NO_HINTS)).changes
    assert (lost.kind, lost.reason) == (ChangeKind.STALE, StaleReason.MOVED)
    seen = garden.audit(search=True)[os.fsencode(path)]
    assert (seen.verdict, seen.evidence.moved_to) == (AuditVerdict.MOVED, (os.fsencode(moved),))

    garden.forget()
    mended = fix.mend(garden.options(search=True))
    assert [(change.kind, change.path) for change in mended.changes] == [
        (ChangeKind.MOVED, os.fsencode(moved))
    ]
    (row,) = (one for one in garden.mappings() if not one.stale)
    assert (row.path, row.last_used_at) == (os.fsencode(moved), None)
    # So irmap-cache will have it too.
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
    steps.pre_dump(StepOptions(watcher.pid, images_dir=work, config=NO_HINTS))
    watcher.remove(watched)
    with Store.open_readonly(work / "irmap.db") as store:
        (known,) = (row.path for row in store.all_mappings())
    moved = os.fsencode(place.directory / "moved")
    os.rename(known, moved)
    run("sync")
    drop_caches()

    (lost,) = audit.audit(audit.AuditOptions(work / "irmap.db", config=NO_HINTS)).findings

    assert (lost.mapping.path, lost.verdict) == (known, AuditVerdict.MOVED)
    assert set(lost.evidence.moved_to) == names - {known} | {moved}


def test_without_handles_no_file_is_called_deleted(
    area: MountArea, tmp_path: Path, watcher: Watcher
) -> None:
    place = area.place("overlay-upper")
    old, new = place.directory / "dir" / "one", place.directory / "moved"
    old.touch()
    database = _audited_by_name(tmp_path, watcher, old)
    old.rename(new)

    (blind,) = audit.audit(audit.AuditOptions(database, config=NO_HINTS)).findings
    assert blind.verdict is AuditVerdict.GONE
    assert "cannot open handles" in blind.evidence.note
    assert "a search scans for it" in blind.evidence.note
    (seen,) = audit.audit(audit.AuditOptions(database, search=True, config=NO_HINTS)).findings
    assert (seen.verdict, seen.evidence.moved_to) == (AuditVerdict.MOVED, (os.fsencode(new),))
    new.unlink()
    (seen,) = audit.audit(audit.AuditOptions(database, search=True, config=NO_HINTS)).findings
    assert seen.verdict is AuditVerdict.GONE
    assert "scan: not found" in seen.evidence.note


def _audited_by_name(tmp_path: Path, watcher: Watcher, path: Path) -> Path:
    # A database with the path, which no task watches any more.
    work = tmp_path / "work"
    work.mkdir()
    watched = watcher.add_inotify(path)
    options = StepOptions(
        watcher.pid, images_dir=work, scan_paths=(os.fsencode(path.parent),), config=NO_HINTS
    )
    steps.pre_dump(options)
    watcher.remove(watched)
    return work / "irmap.db"


@pytest.mark.parametrize(
    ("path", "fate"),
    [
        (b"/proc/version", InodeState.UNKNOWN),
        (b"/sys/kernel", InodeState.UNKNOWN),
        (b"/dev/pts/ptmx", InodeState.UNKNOWN),
        (None, InodeState.NAMED),
    ],
)
def test_the_state_of_an_inode_is_known_only_if_handles_open(
    area: MountArea, path: bytes | None, fate: InodeState
) -> None:
    path = os.fsencode(area.ext4().mountpoint) if path is None else path
    with open_root(os.getpid()) as root:
        there = identify(root, path)
        assert fates(root, there.kdev, [there.handle]) == {there.handle: fate}


def test_links_and_hidden_mounts(garden: Garden, area: MountArea) -> None:
    inside, outside = garden.make("d/file"), garden.make("plain")
    garden.watch(inside)
    garden.watch(outside)
    garden.step()
    directory = inside.parent
    directory.rename(garden.top / "real")
    directory.symlink_to("real")

    moved = garden.audit()[os.fsencode(inside)]
    assert (moved.verdict, moved.evidence.reason) == (AuditVerdict.MOVED, StaleReason.SYMLINK)
    assert moved.evidence.moved_to == (os.fsencode(garden.top / "real" / "file"),)

    area.mount("tmpfs", "ext4", "tmpfs")  # upon the ext4 itself
    hidden = garden.audit()
    assert {one.verdict for one in hidden.values()} == {AuditVerdict.UNMOUNTED}
    assert "hidden" in hidden[os.fsencode(outside)].evidence.note


def test_a_file_hidden_by_an_empty_mount_is_not_replaced(garden: Garden, area: MountArea) -> None:
    moves, dies = garden.make("moves"), garden.make("dies")
    for path in (moves, dies):
        garden.watch(path)
    garden.step()
    garden.remove(dies)
    other = area.path / "other"
    other.mkdir()
    area.bind(garden.top, other)
    area.mount("tmpfs", "ext4", "tmpfs")  # upon the first mount: nothing of these names in it

    found = garden.audit()

    assert found[os.fsencode(moves)].evidence.moved_to == (os.fsencode(other / "moves"),)
    dead = found[os.fsencode(dies)]
    assert (dead.verdict, dead.evidence.found, dead.evidence.unseen) == (
        AuditVerdict.DELETED,
        None,
        "",
    )
    changes = fix.mend(garden.options()).changes
    assert {change.reason for change in changes if change.kind is ChangeKind.STALE} == {
        StaleReason.DELETED
    }
    assert StaleReason.REPLACED not in {change.reason for change in changes}


def test_a_place_that_is_mounted_no_more_while_the_device_is(
    garden: Garden, area: MountArea
) -> None:
    path, elsewhere = garden.make("file"), area.path / "elsewhere"
    entry = CacheEntry(_kdev(path), garden.names[path].ino, os.fsencode(elsewhere / "file"))
    elsewhere.mkdir()
    run("mount", "--bind", garden.top, elsewhere)
    with Store.open(garden.database, create=True) as store, store.step() as tx:
        tx.import_entries([entry], datetime.now(UTC))

    def verdict() -> tuple[AuditVerdict, tuple[bytes, ...], str]:
        found = garden.audit()[entry.path]
        evidence = found.evidence
        assert evidence is not None
        assert evidence.reason is StaleReason.UNMOUNTED
        return found.verdict, evidence.moved_to, evidence.note

    assert garden.audit()[entry.path].verdict is AuditVerdict.VALID
    run("umount", elsewhere)
    by_number = verdict()
    assert by_number[:2] == (AuditVerdict.UNMOUNTED, ())
    assert "is mounted elsewhere, not at the path; no handle was stored" in by_number[2]

    with open_root(os.getpid()) as root:
        identity = identify(root, os.fsencode(path))
    store_row(garden.database, identity, entry.path, 0)
    holding = os.open(path, os.O_RDONLY)
    assert verdict()[:2] == (AuditVerdict.MOVED, (os.fsencode(path),))
    garden.remove(path)
    os.close(holding)
    assert verdict()[:2] == (AuditVerdict.DELETED, ())


def test_a_server_that_never_answers(
    area: MountArea, tmp_path: Path, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
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
            StepOptions(
                watcher.pid,
                images_dir=work,
                scan_paths=(os.fsencode(far.parent),),
                config=NO_HINTS,
            )
        )
        named = NO_HINTS._replace(scan_paths=(os.fsencode(far.parent),))
        options = audit.AuditOptions(work / "irmap.db", config=named)
        before = {one.mapping.path: one.verdict for one in audit.audit(options).findings}
        with server.silent(), monkeypatch.context() as patch:
            patch.setattr(root_audit, "_PATIENCE_S", 0.5)
            found = {one.mapping.path: one for one in audit.audit(options).findings}
            assert fix.mend(options).run_id is None
    assert before[os.fsencode(far)] is AuditVerdict.VALID
    assert found[os.fsencode(near)].verdict is AuditVerdict.VALID
    assert found[os.fsencode(far)].verdict is AuditVerdict.UNREACHABLE
    assert "no answer in time" in found[os.fsencode(far)].evidence.unseen


def test_a_stopped_server_above_a_mount_does_not_block(
    area: MountArea, watcher: Watcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A filesystem of the kernel's own, below a mount of a server that has stopped."""
    (tmp_path / "source" / "below").mkdir(parents=True)
    work = tmp_path / "work"
    work.mkdir()
    place = area.path / "served" / "below"
    options = audit.AuditOptions(work / "irmap.db", config=NO_HINTS)
    with served(tmp_path / "source", place.parent) as server:
        run("mount", "-t", "tmpfs", "below", place)
        (place / "file").touch()
        watcher.add_inotify(place / "file")
        steps.pre_dump(StepOptions(watcher.pid, images_dir=work, config=NO_HINTS))
        (mapping,) = (one.mapping for one in audit.audit(options).findings)
        with server.silent(), monkeypatch.context() as patch:
            for module in (root_audit, check):
                patch.setattr(module, "_PATIENCE_S", 0.5)
            (found,) = audit.audit(options).findings
            (row,) = check.check_dump(
                check.DumpCheckOptions(watcher.pid, work, version=CriuVersion(4, 1))
            ).watches
            # Also where a row of a device that is gone leads there.
            with closing(sqlite3.connect(work / "irmap.db")) as raw, raw:
                raw.execute("UPDATE mapping SET dev = 999")
            (lost,) = audit.audit(options).findings
        run("umount", place)
    assert (found.mapping.path, found.verdict) == (mapping.path, AuditVerdict.UNREACHABLE)
    assert found.evidence.unseen.startswith("fuse: no answer")
    assert row.prediction.verdict is Prediction.UNKNOWN
    assert "its fuse gave no answer" in row.prediction.why
    assert lost.verdict is AuditVerdict.UNMOUNTED
    assert lost.evidence.unseen == "fuse may not answer"


# Inodes that are known by their number alone


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
    assert (valid.verdict, valid.by_number) == (AuditVerdict.VALID, True)
    assert (lost.verdict, lost.evidence.moved_to) == (AuditVerdict.GONE, ())
    assert "no handle" in lost.evidence.note


def _kdev(path: Path) -> int:
    st_dev = path.stat().st_dev
    return os.major(st_dev) << 20 | os.minor(st_dev)


# The written rows


def test_a_row_that_changes_between_audit_and_writing_is_left_alone(
    garden: Garden, monkeypatch: pytest.MonkeyPatch
) -> None:
    back, mended = garden.make("back"), garden.make("mended")
    for path in (back, mended):
        garden.watch(path)
    garden.step()
    away = [garden.rename(path, path.with_suffix(".old")) for path in (back, mended)]
    look = audit.Audit.report

    def report_then_change(self: audit.Audit) -> audit.AuditReport:
        report = look(self)
        garden.rename(away[0], back)
        garden.step()
        return report

    monkeypatch.setattr(audit.Audit, "report", report_then_change)
    result = fix.mend(garden.options())
    assert result.report.lost == 2
    assert (result.run_id, result.changes) == (None, ())
    assert live(garden) == replayed(garden)


def test_a_stale_path_that_is_right_again_is_live_again(garden: Garden) -> None:
    path = garden.make("file")
    garden.watch(path)
    garden.step()
    away = garden.rename(path, path.with_name("away"))
    garden.step()
    garden.rename(away, path)
    (change,) = fix.mend(garden.options()).changes
    assert (change.kind, change.old_path) == (ChangeKind.MOVED, os.fsencode(away))
    assert live(garden) == replayed(garden)

    # Stale for another reason, but the path is right.
    now = datetime.now(UTC)
    with Store.open(garden.database, create=False) as store, store.step() as tx:
        (row,) = (one for one in tx.all_mappings() if not one.stale)
        tx.mark_stale([(row, StaleReason.UNMOUNTED)], now)
    assert garden.audit()[row.path].verdict is AuditVerdict.VALID
    (change,) = fix.mend(garden.options()).changes
    assert (change.kind, change.path) == (ChangeKind.REVIVED, row.path)
    assert {path for _, path in live(garden)} == {row.path}


def test_an_inode_that_the_audit_found_deleted_is_not_scanned_for(garden: Garden) -> None:
    paths = {name: garden.make(name) for name in ("stays", "moves", "dies", "replaced", "hidden")}
    for path in paths.values():
        garden.watch(path)
    garden.step()
    garden.rename(paths["moves"], garden.top / "moved")
    garden.remove(paths["dies"])
    garden.rename(garden.make("spare"), paths["replaced"])
    garden.rename(paths["hidden"], garden.make("d/x").with_name("unknown"))
    for name in ("moved", "d/unknown"):
        garden.watcher.remove(garden.watches[garden.names[garden.top / name]])
    garden.unpin(garden.top / "d/unknown")
    drop_caches()

    def asked(statement: str) -> list[tuple[str, ...]]:
        with closing(sqlite3.connect(garden.database)) as plain:
            return plain.execute(statement).fetchall()

    assert asked("SELECT * FROM next_scan") == [], "it does not look at the filesystem"
    fix.mend(garden.options())
    top = os.fspath(garden.top)
    assert dict(asked("SELECT path, stale_reason FROM stale_mappings")) == {
        f"{top}/moves": "gone",
        f"{top}/dies": "deleted",
        f"{top}/replaced": "replaced",
        f"{top}/hidden": "moved",
    }
    assert asked("SELECT last_path, why FROM next_scan") == [(f"{top}/hidden", "stale: moved")]


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
        report = audit.audit(garden.options(select=Selection(**kwargs)))
        return {one.mapping.path.rpartition(b"/")[2] for one in report.shown}

    everything = {b"a", b"b", b"c", b"caf\xe9\n"}
    assert chosen() == chosen(kdevs=frozenset({kdev, 1})) == everything
    assert chosen(kdevs=frozenset({kdev + 1})) == set()
    assert chosen(paths=(b"*/a", b"*caf\xe9?")) == {b"a", b"caf\xe9\n"}
    assert chosen(verdicts=frozenset({AuditVerdict.DELETED})) == {b"a"}
    proved = garden.mappings()[0].validated_at
    assert chosen(unproved_since=proved) == set()
    assert chosen(unproved_since=proved.replace(year=proved.year + 1)) == everything


def test_a_database_that_was_copied_elsewhere(garden: Garden, tmp_path: Path) -> None:
    garden.watch(garden.make("file"))
    garden.step()
    lonely = tmp_path / "lonely"
    lonely.mkdir()
    shutil.copy(garden.database, lonely / "irmap.db")
    (finding,) = audit.audit(audit.AuditOptions(lonely / "irmap.db")).findings
    assert finding.verdict is AuditVerdict.VALID
