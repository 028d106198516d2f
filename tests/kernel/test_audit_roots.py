"""The root in which the audit looks up paths: a directory, a container, a nested namespace."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from irmapdb.audit import check, fix
from irmapdb.checkpoint import steps
from irmapdb.checkpoint.steps import StepOptions
from irmapdb.config import Config
from irmapdb.errors import FileError, UsageError
from irmapdb.kernel.directory import open_directory_root
from irmapdb.kernel.proof import identify
from irmapdb.kernel.root import open_root
from irmapdb.model import (
    ChangeKind,
)
from irmapdb.store.database import Store
from tests.support.area import MountArea
from tests.support.audit_files import NO_HINTS, Garden, store_row
from tests.support.cli import irmapdb
from tests.support.watcher import Watcher

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


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
                assert root.mounts.of_path(within).kdev == kdev
                assert root.mounts.of_device(kdev)
                with open(path, "rb") as file:
                    link = os.fsencode(os.readlink(f"/proc/self/fd/{file.fileno()}"))
                assert root.strip(link) == within
            assert {mount.kdev for mount in root.mounts.all} == {
                os.major(one.stat().st_dev) << 20 | os.minor(one.stat().st_dev)
                for one in (rootfs, inner)
            }
            with pytest.raises(OSError, match="symbolic"):
                root.open(b"/" + os.fsencode((rootfs / "a/out/passwd").relative_to(directory)))


def test_a_file_outside_of_the_directory_has_not_moved(garden: Garden) -> None:
    """Paths of the machine, looked for in an unpacked image on the same filesystem."""
    image = garden.top / "image"
    within = image / garden.top.relative_to("/")
    paths = {name: garden.make(name) for name in ("replaced", "gone")}
    within.mkdir(parents=True)
    (within / "replaced").touch()
    for path in paths.values():
        garden.watch(path)
    garden.step()

    def verdicts(root: Path, *, search: bool = False) -> dict[str, tuple[str, str]]:
        found = garden.audit(root=os.fsencode(root), search=search)
        return {
            name: (found[os.fsencode(path)].verdict.value, found[os.fsencode(path)].evidence.note)
            for name, path in paths.items()
        }

    blind = verdicts(image)
    assert {name: verdict for name, (verdict, _) in blind.items()} == {
        "replaced": "replaced",
        "gone": "gone",
    }
    for _, note in blind.values():
        assert f"on its device, but at no known path below {image} (" in note
        assert "outside of this root" in note
        assert note.endswith("a search scans for it")
    searched = verdicts(image, search=True)
    assert [verdict for verdict, _ in searched.values()] == ["replaced", "gone"]
    assert all("scan: not found" in note for _, note in searched.values())
    # The directory shows the whole device: the files have moved, with or without a cached name.
    assert {verdict for verdict, _ in verdicts(garden.top).values()} == {"moved"}


def test_a_container_from_outside(area: MountArea, tmp_path: Path) -> None:
    rootfs = area.ext4("rootfs").mountpoint
    (rootfs / "etc").mkdir()
    (rootfs / "proc").mkdir()
    (rootfs / "etc" / "conf").touch()
    work = tmp_path / "work"
    work.mkdir()
    with Watcher(unshare={"mount"}, rootfs=rootfs) as task:
        task.add_inotify("/etc/conf")
        steps.pre_dump(StepOptions(task.pid, images_dir=work, config=NO_HINTS))
        options = check.AuditOptions(work / "irmap.db", config=NO_HINTS)

        def verdicts(**kwargs: object) -> set[str]:
            told = check.AuditOptions(options.database, config=NO_HINTS, **kwargs)
            return {one.verdict.value for one in check.audit(told).findings}

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
        steps.pre_dump(StepOptions(watcher.pid, images_dir=work, config=NO_HINTS))
        store_row(database, identity, far.path, mntns)

        def verdicts(pid: int | None) -> tuple[dict[bytes, str], int]:
            told: list[tuple[int, int]] = []
            report = check.audit(
                check.AuditOptions(
                    database, pid=pid, config=NO_HINTS, on_checked=lambda *at: told.append(at)
                )
            )
            assert told[-1] == (len(report.findings) - report.unseen, 2), "of all namespaces"
            found = {one.mapping.path: one.verdict.value for one in report.findings}
            assert (report.lost, report.unseen) == (0, int(pid is None))
            return found, report.left_out

        assert verdicts(None) == ({near.path: "valid", far.path: "unreachable"}, 0)
        assert verdicts(other.pid) == ({far.path: "valid"}, 1)
        assert verdicts(watcher.pid) == ({near.path: "valid"}, 1), "it is in no tree of its own"
        assert verdicts(os.getpid()) == ({near.path: "valid", far.path: "valid"}, 0), "in its tree"

        command = irmapdb("audit", "-t", str(watcher.pid), "-W", work)
        assert (command.code, command.err.count("\n")) == (0, 1)
        assert command.err.startswith(
            "1 mapping of mount namespaces that this tree is not in left out"
        )
        command = irmapdb("audit", "-t", str(os.getpid()), "-W", work)
        assert (command.code, command.err) == (0, "")
        assert f"checked in the root of process {os.getpid()} and another" in command.out


def test_a_file_that_moved_in_a_nested_namespace_is_mended_there(
    area: MountArea, tmp_path: Path
) -> None:
    hidden = area.path / "hidden"
    hidden.mkdir()
    work = tmp_path / "work"
    work.mkdir()
    database = work / "irmap.db"
    with Watcher(unshare={"mount"}) as other:
        other.mount("tmpfs", hidden, "tmpfs")
        other.write(hidden / "old")
        steps.pre_dump(StepOptions(other.pid, images_dir=work, config=NO_HINTS))
        with open_root(other.pid) as root:
            old = os.fsencode(hidden / "old")
            identity, mntns = identify(root, old), root.mntns
            store_row(database, identity, old, mntns)
            inside = Path(f"/proc/{other.pid}/root")
            new = hidden / "new"
            (inside / os.path.relpath(old, b"/").decode()).rename(inside / new.relative_to("/"))

        done = fix.mend(check.AuditOptions(database, pid=os.getpid(), config=NO_HINTS, search=True))

        (change,) = done.changes
        assert (change.kind, change.mntns) == (ChangeKind.MOVED, mntns)
        assert (change.old_path, change.path) == (old, os.fsencode(new))
        with Store.open_readonly(database) as store:
            rows = {row.path: (row.stale, row.mntns) for row in store.all_mappings()}
        assert rows == {old: (True, mntns), os.fsencode(new): (False, mntns)}


def test_a_file_that_moved_in_two_namespaces_is_mended_in_both(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    (tmp_path / "work").mkdir()
    database = tmp_path / "work" / "irmap.db"
    with Watcher(unshare={"mount"}) as other:
        with open_root(other.pid) as root:
            identity, mntns = identify(root, os.fsencode(tmp_path / "x")), root.mntns
        with Store.open(database, create=True):
            pass
        for namespace in (0, mntns):
            store_row(database, identity, os.fsencode(tmp_path / "x"), namespace)
        (tmp_path / "x").rename(tmp_path / "y")
        options = check.AuditOptions(
            database,
            pid=os.getpid(),
            search=True,
            config=Config(hints=(os.fsencode(tmp_path),)),
        )
        told = fix.mend(options).changes
        assert fix.mend(options).changes == ()
    moved = os.fsencode(tmp_path / "y")
    assert {(one.kind, one.mntns, one.path) for one in told} == {
        (ChangeKind.MOVED, 0, moved),
        (ChangeKind.MOVED, mntns, moved),
    }
    with Store.open_readonly(database) as store:
        live = {(row.mntns, row.path) for row in store.all_mappings() if not row.stale}
    assert live == {(0, moved), (mntns, moved)}
