"""A filesystem whose server never answers costs a time budget, not the step."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from irmapdb.checkpoint import scan_paths, steps
from irmapdb.checkpoint.steps import FreezeOptions, StepOptions
from irmapdb.config import Config
from irmapdb.kernel.proc import holders
from irmapdb.resolve import root_search
from tests.support.area import MountArea
from tests.support.filesystems import drop_caches
from tests.support.silent_fuse import SilentFuse
from tests.support.stepping import new_work_dir
from tests.support.watcher import Watcher

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def _server_of(mountpoint: Path) -> int:
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit():
            continue
        try:
            words = (directory / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(b"bindfs") and os.fsencode(mountpoint) in words:
            return int(directory.name)
    raise AssertionError(f"who serves {mountpoint}?")


@pytest.mark.parametrize("name", ["pre-dump", "dump"])
def test_a_fuse_server_that_is_stopped(
    area: MountArea, watcher: Watcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    place = area.place("fuse")
    near = tmp_path / "near"
    near.touch()
    watcher.add_inotify(near)
    watcher.add_inotify(place.directory / "file")
    work = tmp_path / "work"
    work.mkdir()
    options = StepOptions(
        watcher.pid,
        images_dir=work,
        scan_paths=(os.fsencode(place.mountpoint),),
        config=Config(hints=()),
    )
    whole = {row.watch.wd: row.path for row in steps.pre_dump(options).watches}
    assert whole == {1: os.fsencode(near), 2: os.fsencode(place.directory / "file")}

    server = _server_of(place.mountpoint)
    check = scan_paths.check_scan_paths

    def check_and_stop(*arguments: object) -> None:
        # A server that is stopped before that has its path refused, unless the kernel has looked
        # at it in the last second.
        check(*arguments)  # type: ignore[arg-type]
        os.kill(server, signal.SIGSTOP)
        drop_caches()  # so that it has to be asked

    try:
        with monkeypatch.context() as patch:
            patch.setattr(scan_paths, "check_scan_paths", check_and_stop)
            # A server that runs may need longer on a busy machine.
            patch.setattr(root_search, "_PATIENCE_S", 0.5)
            if name == "pre-dump":
                report = steps.pre_dump(options)
            else:
                report = steps.dump(options, FreezeOptions())
    finally:
        os.kill(server, signal.SIGCONT)

    answers = {row.watch.wd: (row.path, row.why) for row in report.watches}
    assert answers[1] == (os.fsencode(near), None)
    assert answers[2][0] is None
    assert "no answer in time" in (answers[2][1] or "")
    assert watcher.state() in "SR"
    # When it answers again, the known paths are found again.
    again = {row.watch.wd: row.path for row in steps.pre_dump(options).watches}
    assert again == whole


def test_the_holder_of_a_deleted_file_of_such_a_server_is_not_looked_for(
    area: MountArea, watcher: Watcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To tell would take one more question, when the child that could be killed has ended."""
    place = area.place("fuse")
    path = place.directory / "file"
    watcher.add_inotify(path)
    watcher.open(path)
    path.unlink()
    server = _server_of(place.mountpoint)
    find = holders.deleted_holders

    def stopped(*arguments: object) -> object:
        os.kill(server, signal.SIGSTOP)
        # It goes on in the end, so that a question ends this test, and not the whole run.
        again = threading.Timer(20, os.kill, (server, signal.SIGCONT))
        again.start()
        try:
            return find(*arguments)  # type: ignore[arg-type]
        finally:
            again.cancel()
            os.kill(server, signal.SIGCONT)

    monkeypatch.setattr(holders, "deleted_holders", stopped)
    options = StepOptions(watcher.pid, images_dir=new_work_dir(tmp_path), config=Config(hints=()))
    (row,) = steps.pre_dump(options).watches
    assert (row.path, row.why) == (None, "handle: deleted")


@pytest.mark.parametrize("scanned", [False, True])
def test_a_server_that_reads_and_never_answers_keeps_no_pipe_open(
    watcher: Watcher, tmp_path: Path, *, scanned: bool
) -> None:
    """The child that asks it cannot be killed; `irmapdb pre-dump … | jq` ends in any case."""
    mountpoint = tmp_path / "silent"
    mountpoint.mkdir()
    with SilentFuse(mountpoint) as server:
        watcher.add_inotify(mountpoint)
        server.silent = True
        command = [sys.executable, "-m", "irmapdb", "pre-dump", "--json"]
        command += ["-t", str(watcher.pid), "-D", str(new_work_dir(tmp_path))]
        command += ["--irmap-scan-path", str(mountpoint)] if scanned else []
        done = subprocess.run(command, capture_output=True, timeout=60, check=False)
        assert server.asked.is_set()
        assert b"no answer in time" in done.stdout + done.stderr
        assert done.returncode == (1 if scanned else 3)
