"""A watch whose path no system call takes costs no other watch its answer, in any command."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from irmapdb.audit import check
from irmapdb.audit.findings import AuditVerdict
from irmapdb.checkpoint import steps
from irmapdb.checkpoint.steps import FreezeOptions
from irmapdb.criu.check.dump import DumpCheckOptions, check_dump
from irmapdb.criu.check.facts import Look
from irmapdb.criu.check.observe import Observer
from irmapdb.criu.check.verdicts import CriuOutcome, WatchVerdict
from irmapdb.criu.check.version import CriuVersion
from irmapdb.node import ps
from tests.support.filesystems import drop_caches
from tests.support.names import deep_file
from tests.support.stepping import new_work_dir, options_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from irmapdb.criu.check.facts import Facts
    from tests.support.area import MountArea
    from tests.support.watcher import Watcher


@pytest.fixture
def paths(watcher: Watcher, area: MountArea) -> list[bytes]:
    """A file near the top, one and its directory beyond PATH_MAX, all watched."""
    top = area.ext4().mountpoint
    near = os.fsencode(top / "near")
    Path(os.fsdecode(near)).touch()
    deep = deep_file(top, length=5000)
    watched = [near, deep, os.path.dirname(deep)]
    for path in watched:
        watcher.add_inotify(path)
    return watched


@pytest.mark.parametrize("cold", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_step(
    paths: list[bytes], watcher: Watcher, tmp_path: Path, *, cold: bool, frozen: bool
) -> None:
    options = options_for(watcher, new_work_dir(tmp_path), Path(os.fsdecode(paths[0])).parent)
    if cold:
        drop_caches()
    done = steps.dump(options, FreezeOptions()) if frozen else steps.pre_dump(options)
    found = {row.watch.wd: row.path for row in done.watches}
    assert found == dict(enumerate(paths, 1))


def test_an_audit_and_ps(paths: list[bytes], watcher: Watcher, tmp_path: Path) -> None:
    options = options_for(watcher, new_work_dir(tmp_path), Path(os.fsdecode(paths[0])).parent)
    steps.pre_dump(options)
    shown = ps.take(
        ps.PsOptions(watcher.pid, search=True, scan_paths=options.scan_paths, config=options.config)
    )
    assert {row.path for row in shown.watches} == set(paths)
    database = options.images_dir / "irmap.db"
    findings = check.audit(check.AuditOptions(database=database, pid=watcher.pid)).findings
    assert {one.mapping.path for one in findings} == set(paths)
    assert {one.verdict for one in findings} == {AuditVerdict.VALID}


@pytest.mark.parametrize("forced", [False, True])
def test_check(paths: list[bytes], watcher: Watcher, tmp_path: Path, *, forced: bool) -> None:
    said = check_dump(
        DumpCheckOptions(watcher.pid, tmp_path, version=CriuVersion(4, 1), force_irmap=forced)
    ).watches
    found = {one.watch.wd: one.prediction for one in said}
    assert (found[1].verdict, found[1].path) == (WatchVerdict.PATH, paths[0])
    for wd in (2, 3):
        assert found[wd].verdict is (WatchVerdict.FAILS if forced else WatchVerdict.NO_RESTORE)
        assert "4,095" in found[wd].why


def test_an_error_while_one_watch_is_looked_at(
    paths: list[bytes], watcher: Watcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Any other error of any look: those above are expected.
    identities = {}

    def readlink(path: str) -> str:
        name = os.fspath(path)
        if name.startswith("/proc/self/fd/") and os.stat(name).st_ino == identities["bad"]:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path)

    real = os.readlink
    identities["bad"] = watcher.watched[1].st_ino
    monkeypatch.setattr("irmapdb.criu.check.looks.handle.os.readlink", readlink)
    said = check_dump(DumpCheckOptions(watcher.pid, tmp_path, version=CriuVersion(4, 1))).watches
    found = {one.watch.wd: one.prediction for one in said}
    assert found[1].verdict is WatchVerdict.PATH
    assert (found[2].verdict, found[2].outcome) == (WatchVerdict.UNKNOWN, CriuOutcome.UNKNOWN)
    assert "Input/output error" in found[2].why
    assert found[3].verdict is WatchVerdict.NO_RESTORE


def test_an_error_of_a_look_for_all(
    watcher: Watcher, area: MountArea, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = area.place("overlay-lower")
    watcher.add_inotify(place.directory / "file")
    warm = area.place("tmpfs").directory / "file"
    watcher.add_inotify(warm)
    take = Observer.take

    def failing(self: Observer, look: Look, batch: Sequence[Facts]) -> Iterator[Facts]:
        if look is Look.SCAN:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return take(self, look, batch)

    monkeypatch.setattr(Observer, "take", failing)
    report = check_dump(DumpCheckOptions(watcher.pid, tmp_path, version=CriuVersion(4, 1)))
    found = {one.watch.wd: one.prediction.verdict for one in report.watches}
    assert found == {1: WatchVerdict.UNKNOWN, 2: WatchVerdict.PATH}
    assert report.uncertain
    assert not report.fails
    assert not report.right
