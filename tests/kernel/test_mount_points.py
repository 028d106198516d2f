"""Watches on inodes without a name, found by their mount points."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from irmapdb.audit import check as audit
from irmapdb.audit.findings import AuditVerdict
from irmapdb.checkpoint import steps
from irmapdb.checkpoint.steps import FreezeOptions, StepOptions
from irmapdb.criu.check import dump as check
from irmapdb.criu.check.verdicts import WatchVerdict as Prediction
from irmapdb.criu.check.version import CriuVersion
from tests.support.area import MountArea
from tests.support.bind_mounts import Bound
from tests.support.stepping import NO_HINTS, events_of, new_work_dir, options_for
from tests.support.watcher import Watcher

_CRIU = CriuVersion(4, 2)
MS_BIND = 0x1000


@pytest.mark.parametrize("name", ["pre-dump", "dump"])
def test_the_steps_tell_its_mount_point(
    bound: Bound, watcher: Watcher, tmp_path: Path, name: str
) -> None:
    for path in (bound.file, bound.directory):
        watcher.add_inotify(path)
    options = options_for(watcher, new_work_dir(tmp_path))
    steps.pre_dump(options)
    bound.remove()
    assert events_of(watcher, bound.file)  # they are alive

    report = steps.dump(options, FreezeOptions()) if name == "dump" else steps.pre_dump(options)

    assert {row.watch.wd: row.path for row in report.watches} == {
        1: os.fsencode(bound.file),
        2: os.fsencode(bound.directory),
    }


def test_audit_and_check_do_not_say_deleted(bound: Bound, watcher: Watcher, tmp_path: Path) -> None:
    for path in (bound.file, bound.directory):
        watcher.add_inotify(path)
    work = new_work_dir(tmp_path)
    steps.pre_dump(options_for(watcher, work))
    bound.remove()

    found = audit.audit(audit.AuditOptions(work / "irmap.db", config=NO_HINTS)).findings
    # Stored was the one name or the other.
    assert {finding.verdict for finding in found} <= {AuditVerdict.VALID, AuditVerdict.MOVED}
    assert {
        finding.evidence.moved_to[0] if finding.evidence else finding.mapping.path
        for finding in found
    } == {os.fsencode(path) for path in (bound.file, bound.directory)}

    for forced, verdict in ((False, Prediction.NO_RESTORE), (True, Prediction.OPTIONS)):
        said = check.check_dump(
            check.DumpCheckOptions(
                watcher.pid, tmp_path, version=_CRIU, force_irmap=forced, config=NO_HINTS
            )
        )
        assert {one.prediction.path for one in said.watches} == {
            os.fsencode(path) for path in (bound.file, bound.directory)
        }
        for one in said.watches:
            assert one.prediction.verdict is verdict
            assert "no name left but a mount point" in one.prediction.why
    # The paths that the steps found are those that --force-irmap needs.
    steps.pre_dump(options_for(watcher, work))
    said = check.check_dump(
        check.DumpCheckOptions(watcher.pid, work, version=_CRIU, force_irmap=True, config=NO_HINTS)
    )
    assert [one.prediction.verdict for one in said.watches] == [Prediction.CACHE] * 2


def test_in_a_container_whose_host_replaces_the_file(
    area: MountArea, bound: Bound, tmp_path: Path
) -> None:
    rootfs = area.ext4("rootfs").mountpoint
    (rootfs / "etc").mkdir()
    (rootfs / "etc" / "hosts").touch()
    (rootfs / "data").mkdir()
    area.bind(bound.top / "conf" / "hosts", rootfs / "etc" / "hosts")
    area.bind(bound.top / "conf", rootfs / "data")  # through which its handle can be opened
    with Watcher(unshare={"mount"}, rootfs=rootfs) as tenant:
        tenant.add_inotify("/etc/hosts")
        bound.remove()
        report = steps.dump(options_for(tenant, new_work_dir(tmp_path)), FreezeOptions())
    assert [row.path for row in report.watches] == [b"/etc/hosts"]


def test_in_a_nested_mount_namespace(area: MountArea, tmp_path: Path) -> None:
    source, target = area.ext4().mountpoint / "hosts", area.path / "bound"
    source.touch()
    target.touch()
    with Watcher(unshare={"mount"}) as nested:
        mntns = os.stat(f"/proc/{nested.pid}/ns/mnt").st_ino
        nested.mount(source, target, "none", flags=MS_BIND)
        nested.add_inotify(target)
        source.unlink()
        options = StepOptions(os.getpid(), images_dir=new_work_dir(tmp_path), config=NO_HINTS)
        report = steps.dump(options_for(nested, options.images_dir), FreezeOptions())
        assert [row.path for row in report.watches] == [os.fsencode(target)]  # in its own root
        report = steps.pre_dump(options)
        (mine,) = (row for row in report.watches if row.watch.pid == nested.pid)
        said = check.check_dump(
            check.DumpCheckOptions(os.getpid(), tmp_path, version=_CRIU, config=NO_HINTS)
        )
        (one,) = (one for one in said.watches if one.watch.pid == nested.pid)
    assert (mine.path, mine.mntns) == (os.fsencode(target), mntns)
    assert "deleted" not in one.prediction.why
    assert f"{target} in mount namespace {mntns}" in one.prediction.why
