"""The processes and their watches, beside those that the test made as users of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from irmapdb.commands.ps import ps
from irmapdb.config import Config
from irmapdb.errors import TaskError
from irmapdb.kernel.proc import limits
from irmapdb.kernel.proc.limits import LimitKind
from irmapdb.model import Watch
from irmapdb.node.ps import PsOptions, WatchList, take
from irmapdb.node.ps_rows import ProcessRow
from tests.support.area import MountArea
from tests.support.filesystems import drop_caches
from tests.support.kernel_paths import as_nobody
from tests.support.programs import run
from tests.support.watcher import Watcher

_NO_HINTS = Config(hints=())
_SYS_FS = Path("/proc/sys/fs")


def _take(pid: int | None = None, **kwargs: object) -> WatchList:
    return take(PsOptions(pid, config=_NO_HINTS, **kwargs))


def _row(found: WatchList, pid: int) -> ProcessRow:
    (row,) = (row for row in found.processes if row.pid == pid)
    return row


def _used(found: WatchList, uid: int | None = 0) -> dict[LimitKind, int]:
    return {one.account: one.used for one in found.users if one.uid == uid and one.used}


@pytest.fixture
def tree(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / name for name in ("a", "b", "c", "d")]
    for path in paths:
        path.touch()
    return paths


def test_instances_watches_groups_and_marks(watcher: Watcher, tree: list[Path]) -> None:
    for path in tree[:3]:
        watcher.add_inotify(path)
    second = watcher.inotify()
    watcher.add_inotify(tree[0], fd=second)
    watcher.add_fanotify(tree[3])
    watcher.add_fanotify(tree[3], what="mount")
    watcher.add_fanotify(tree[3], what="filesystem")

    found = _take()

    row = _row(found, watcher.pid)
    assert row[3:8] == (2, 4, 1, 3, 0)
    assert row.uid == 0
    assert _used(found).keys() == set(LimitKind)
    sizes = [one.watches + one.marks for one in found.processes]
    assert sizes == sorted(sizes, reverse=True)


def test_a_shared_descriptor_is_counted_once(watcher: Watcher, tree: list[Path]) -> None:
    watcher.add_inotify(tree[0])
    child = watcher.fork()
    child.add_inotify(tree[1])  # the same instance
    own = child.inotify()
    child.add_inotify(tree[2], fd=own)

    found = _take(watcher.pid)

    assert [(row.pid, row[3:8]) for row in found.processes] == [
        (watcher.pid, (1, 2, 0, 0, 0)),
        (child.pid, (1, 1, 0, 0, 1)),
    ]


def test_the_limits_are_the_kernels(watcher: Watcher, tree: list[Path]) -> None:
    watcher.add_inotify(tree[0])
    found = _take(watcher.pid)
    assert found.limits == {
        account: min(
            int((_SYS_FS / account).read_text()),
            int(Path("/proc/sys/user", f"max_{account.replace('/max_user', '')}").read_text()),
        )
        for account in LimitKind
    }
    for one in found.users:
        assert one.limit == found.limits[one.account]
    assert {one.account for one in found.users} == set(LimitKind), "also those without any use"
    shares = [one.used / one.limit for one in found.users]
    assert shares == sorted(shares, reverse=True)


def test_a_user_namespace_is_charged_to_its_owner(tree: list[Path]) -> None:
    with Watcher(unshare={"user"}) as inside:
        inside.add_inotify(tree[0])
        assert limits.payer_of(inside.pid) == (0, True)
        found = _take(inside.pid)
    below = {one.account: one.below for one in found.users}
    assert below[LimitKind.INOTIFY_INSTANCES] >= 1
    assert below[LimitKind.INOTIFY_WATCHES] >= 1
    assert limits.payer_of(os.getpid()) == (os.geteuid(), False)
    assert limits.payer_of(inside.pid) == (None, False), "it is gone"


def test_another_user_has_an_account_of_its_own(tree: list[Path]) -> None:
    program = (
        "import ctypes, os, sys\n"
        "os.setuid(12345)\n"
        "libc = ctypes.CDLL(None)\n"
        "fd = libc.inotify_init1(0)\n"
        "assert libc.inotify_add_watch(fd, b'/', 2) > 0\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        found = _take(other.pid)
        other.communicate()
    assert _used(found, 12345) == {LimitKind.INOTIFY_INSTANCES: 1, LimitKind.INOTIFY_WATCHES: 1}
    assert {one.uid for one in found.users} == {12345}, "the other users were not read"


@pytest.mark.parametrize(("flags", "charged"), [(0, 1), (0x20, 0)])  # FAN_UNLIMITED_MARKS
def test_marks_without_a_limit_are_not_charged(tree: list[Path], flags: int, charged: int) -> None:
    # A user of its own: other programs of this machine may set marks as root meanwhile.
    program = (
        "import ctypes, os, sys\n"
        "libc = ctypes.CDLL(None)\n"
        f"fd = libc.fanotify_init({flags}, 0)\n"
        "mask, path = ctypes.c_uint64(2), os.fsencode(sys.argv[1])\n"
        "assert libc.fanotify_mark(fd, 1, mask, -100, path) == 0\n"
        "os.setuid(12346)\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", program, tree[0]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        found = _take(other.pid)
        other.communicate()
    assert _row(found, other.pid).marks == 1
    assert _used(found, 12346).get(LimitKind.FANOTIFY_MARKS, 0) == charged
    assert _used(found, 12346)[LimitKind.FANOTIFY_GROUPS] == 1


def test_a_tree_has_paths(watcher: Watcher, tree: list[Path]) -> None:
    watched = [watcher.add_inotify(path) for path in tree]
    watcher.add_fanotify(tree[0], what="mount")
    found = _take(watcher.pid)
    paths = {(one.watch.wd, one.path) for one in found.watches if isinstance(one.watch, Watch)}
    assert paths == {(one.wd, one.path) for one in watched}
    (mark,) = (one for one in found.watches if not isinstance(one.watch, Watch))
    assert os.path.ismount(os.fsdecode(mark.path))
    assert _take().watches == ()


def test_nothing_is_scanned_unless_asked(area: MountArea, watcher: Watcher) -> None:
    tree = [area.ext4().mountpoint / "file"]
    tree[0].touch()
    watcher.add_inotify(tree[0])
    run("sync")
    drop_caches()
    paths = (os.fsencode(tree[0].parent),)
    (blind,) = _take(watcher.pid, scan_paths=paths).watches
    assert blind.path is None
    assert "scan" not in blind.why
    (found,) = _take(watcher.pid, search=True, scan_paths=paths).watches
    assert found.path == os.fsencode(tree[0])


def test_tasks_that_may_not_be_read_are_counted(watcher: Watcher, tree: list[Path]) -> None:
    watcher.add_inotify(tree[0])
    whole = _take()
    with as_nobody():
        found = _take()
        with pytest.raises(TaskError):
            _take(watcher.pid)
    assert len(found.hidden) > len(whole.hidden)
    assert watcher.pid in {task.pid for task in found.hidden}
    assert watcher.pid in {task.pid for task in found.denied}
    assert watcher.pid not in {row.pid for row in found.processes}
    assert 2 not in {task.pid for task in found.denied}, "kernel threads have no descriptors"


def test_the_command(watcher: Watcher, tree: list[Path], tmp_path: Path) -> None:
    watcher.add_inotify(tree[0])

    def shown_by(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "irmapdb", "ps", *words],
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    for limit in ("max_user_instances", "max_user_groups", "max_user_marks"):
        assert limit in shown_by("-t", str(watcher.pid))
    with Watcher() as idle:
        shown = shown_by("-t", str(idle.pid))
        assert all(f"any   fs.{limit.replace('/', '.')}" in shown for limit in LimitKind)
    pid = str(watcher.pid)
    assert str(tree[0]) in shown_by("-t", pid)
    table = shown_by()
    assert pid in table
    assert "fs.inotify.max_user_watches" in table
    document = json.loads(shown_by("-t", pid, "--json"))
    assert [one["path"] for one in document["watches"]] == [os.fspath(tree[0])]
    assert [(one["pid"], one["watches"]) for one in document["processes"]] == [(watcher.pid, 1)]
    assert document["limits"]["fs.inotify.max_user_instances"] > 0
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c", "d"], "a file was made"


def test_a_search_needs_a_tree_and_a_scan_path_a_search() -> None:
    done = _command("--search")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--search without -t; name the root" in done.stderr
    done = _command("-t", str(os.getpid()), "--irmap-scan-path", "/srv")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--irmap-scan-path without --search; add --search" in done.stderr


def test_tasks_that_may_not_be_read_are_named(
    watcher: Watcher, capsys: pytest.CaptureFixture[str]
) -> None:
    del watcher  # is one of them
    with as_nobody():
        ps()  # exit code 0: some task is hidden nearly everywhere, from root too
    said = capsys.readouterr().err
    assert re.search(r"\d+ processes could not be read \(\d+ \S.*\); run as root to see them", said)


def test_a_watch_without_a_path_is_a_finding(
    area: MountArea, watcher: Watcher, tmp_path: Path
) -> None:
    pid = str(watcher.pid)
    cold, gone = area.ext4().mountpoint / "cold", tmp_path / "gone"
    for path in (cold, gone):
        path.touch()
        watcher.add_inotify(path)
    assert _command("-t", pid).returncode == 0

    gone.unlink()  # a watch does not keep it: the next one is of an open file
    gone.touch()
    watcher.add_inotify(gone)
    held = watcher.open(gone)
    gone.unlink()
    deleted = _command("-t", pid)
    assert deleted.returncode == 3
    assert f"it was {gone}; task {pid} holds it as fd {held}" in deleted.stdout
    assert "1 watch without a path (1 of deleted files)\n" in deleted.stderr
    assert _command("-t", pid, "--json").returncode == 3

    run("sync")
    drop_caches()
    both = _command("-t", pid)
    assert both.returncode == 3
    assert "2 watches without a path (1 of deleted files): --search scans\n" in both.stderr
    searched = _command("-t", pid, "--search", "--irmap-scan-path", os.fspath(cold.parent))
    assert searched.returncode == 3
    assert searched.stderr == deleted.stderr


def _command(*words: str, **kwargs: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "irmapdb", "ps", *words]
    return subprocess.run(command, check=False, capture_output=True, text=True, **kwargs)
