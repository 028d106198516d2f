"""The rows of ps: the process, its container or unit, and each descriptor once."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from irmapdb.config import Config
from irmapdb.errors import TaskError
from irmapdb.kernel.proc import limits
from irmapdb.kernel.proc.limits import LimitKind, sysctl_to_raise
from irmapdb.model import WatchKind
from irmapdb.node import ps
from irmapdb.node.process_places import Place
from irmapdb.node.ps import PsOptions, WatchList, take
from irmapdb.node.ps_groups import sorted_rows
from tests.support.cli import irmapdb
from tests.support.features import require
from tests.support.programs import run
from tests.support.watcher import Watcher
from tests.support.watching import program

if TYPE_CHECKING:
    from collections.abc import Iterator

    from irmapdb.node.ps_groups import GroupRow
    from irmapdb.node.ps_rows import ProcessRow

_NO_HINTS = Config(hints=())


def _take(pid: int | None = None, *processes: str, **rest: object) -> WatchList:
    return take(PsOptions(pid, processes, config=_NO_HINTS, **rest))


def _row(found: WatchList, pid: int) -> ProcessRow:
    (row,) = (row for row in found.processes if row.pid == pid)
    return row


def _group(found: WatchList, name: bytes | None) -> GroupRow:
    (row,) = (row for row in found.groups if row.name == name)
    return row


def _numbers(row: ProcessRow | GroupRow) -> tuple[int, ...]:
    return row.instances, row.watches, row.groups, row.marks


@pytest.fixture
def tree(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / name for name in ("a", "b", "c", "d")]
    for path in paths:
        path.touch()
    return paths


# --- each descriptor once -------------------------------------------------------------------------


def test_a_descriptor_that_exists_twice_is_counted_once(tree: list[Path]) -> None:
    with program("fd = inotify(*sys.argv[1:]); os.dup(fd); os.dup2(fd, 77)", *tree) as one:
        row = _row(_take(), one.pid)
        assert (*_numbers(row), row.shared) == (1, 4, 0, 0, 2)
        assert _take(one.pid).totals[1:] == (1, 4, 0, 0, 2)
        assert len(_take(one.pid).watches) == 4


def test_a_thread_with_descriptors_of_its_own_is_a_part_of_its_process(tree: list[Path]) -> None:
    code = (
        "inotify(sys.argv[1])\n"
        "done = threading.Event()\n"
        "def work():\n"
        "    assert libc.unshare(0x400) == 0  # CLONE_FILES\n"
        "    inotify(*sys.argv[2:])\n"
        "    done.set()\n"
        "    threading.Event().wait()\n"
        "threading.Thread(target=work, daemon=True).start()\n"
        "done.wait()\n"
    )
    with program(code, *tree) as one:
        row = _row(_take(), one.pid)
        assert (*_numbers(row), row.shared) == (2, 4, 0, 0, 1), "the thread has a copy of the first"
        found = _take(one.pid, by="directory", depth=99)
        (group,) = found.groups
        assert (group.name, group.processes) == (os.fsencode(tree[0].parent), 1)
        assert _numbers(group) == (2, 4, 0, 0)


def test_two_thousand_tasks_with_one_descriptor(tree: list[Path]) -> None:
    code = (
        "inotify(*sys.argv[1:])\n"
        "reader, writer = os.pipe()\n"
        "for _ in range(2000):\n"
        "    if os.fork() == 0:\n"
        "        os.close(writer)\n"
        "        os.read(reader, 1)  # until the parent ends\n"
        "        os._exit(0)\n"
    )
    with program(code, *tree) as one:
        found = _take(one.pid)
        assert found.totals == (1, 1, 4, 0, 0, 2000)
        assert len(found.processes) == 2001
        (usage,) = (
            one
            for one in found.users
            if one.account is LimitKind.INOTIFY_INSTANCES and one.uid == 0
        )
        assert usage.used < 2000, "the kernel charges it once"
        out = irmapdb("ps", "-t", one.pid).out
    assert "2,000 more descriptors of the same, by dup or fork: each is counted once" in out
    assert len(out.splitlines()) < 40, "a process without a descriptor of its own takes no line"


def test_tasks_that_end_meanwhile(tree: list[Path]) -> None:
    code = (
        "def storm():\n"
        "    while True:\n"
        "        pid = os.fork()\n"
        "        if pid == 0:\n"
        "            inotify(*sys.argv[1:])\n"
        "            os._exit(0)\n"
        "        os.waitpid(pid, 0)\n"
        "inotify(sys.argv[1])\n"
        "for _ in range(3):\n"
        "    if os.fork() == 0:\n"
        "        libc.prctl(1, 9)  # PR_SET_PDEATHSIG\n"
        "        storm()\n"
    )
    with program(code, *tree) as one:
        for by in ("process", "user", "unit", "container", "directory") * 4:
            row = _row(_take(by=by), one.pid)
            assert (row.instances, row.watches) == (1, 1)


# --- users and units ------------------------------------------------------------------------------


def test_a_row_has_the_command_line(tree: list[Path]) -> None:
    with program("inotify(sys.argv[1])", tree[0], "an argument", b"\xff") as one:
        row = _row(_take(), one.pid)
        assert row.command == Path(f"/proc/{one.pid}/cmdline").read_bytes().rstrip(b"\0").replace(
            b"\0", b" "
        )
        assert row.command.endswith(b" an argument \xff")
        (shown,) = (
            row
            for row in json.loads(irmapdb("ps", "--json").out)["processes"]
            if row["pid"] == one.pid
        )
        assert os.fsencode(shown["command"]) == row.command


def test_a_process_without_arguments_has_its_name(tree: list[Path]) -> None:
    # It has written zeros over its arguments.
    code = (
        "inotify(sys.argv[1])\n"
        "libc.prctl(15, b'renamed')\n"  # PR_SET_NAME
        "fields = open('/proc/self/stat').read().rpartition(')')[2].split()\n"
        "start, end = map(int, fields[45:47])\n"  # arg_start, arg_end
        "ctypes.memset(start, 0, end - start)\n"
    )
    with program(code, tree[0]) as one:
        row = _row(_take(), one.pid)
        assert (row.command, row.shown_command) == (b"", b"[renamed]")
        assert "[renamed]" in irmapdb("ps").out


@pytest.fixture
def unit() -> Iterator[Path]:
    """A cgroup with the name of a service, at the place that systemd would use."""
    for base in (Path("/sys/fs/cgroup/systemd"), Path("/sys/fs/cgroup")):
        made = base / f"irmapdb-test-{os.getpid()}.service"
        try:
            made.mkdir()
            break
        except OSError:
            continue
    else:
        require(condition=False, what="a cgroup hierarchy of systemd")
    yield made
    made.rmdir()


def test_a_row_has_its_unit(unit: Path, tree: list[Path]) -> None:
    with Watcher() as watcher:
        (unit / "cgroup.procs").write_text(str(watcher.pid))
        watcher.add_inotify(tree[0])
        watcher.add_inotify(tree[1])
        found = _take(by="unit")
        row = _row(found, watcher.pid)
        assert row.unit == unit.name
        assert row.container is None
        group = _group(found, os.fsencode(unit.name))
        assert (group.processes, *_numbers(group)) == (1, 1, 2, 0, 0)
        assert unit.stem in irmapdb("ps").out
        assert f"1        2          1  {unit.name}" in irmapdb("ps", "--by", "unit").out
    assert sum(_numbers(one)[1] for one in found.groups) == found.totals.watches


def test_two_users_are_two_rows(tree: list[Path]) -> None:
    code = "os.setuid(int(sys.argv[1])); inotify('/', '/proc'); inotify('/')"
    with program(code, "12345") as one, program(code, "12345") as other, program(code, "12347"):
        found = _take(by="user")
        assert _row(found, one.pid).uid == _row(found, other.pid).uid == 12345
        group = _group(found, b"12345")
        assert (group.uid, group.processes, *_numbers(group)) == (12345, 2, 4, 6, 0, 0)
        assert (_group(found, b"12347").processes, _group(found, b"12347").watches) == (1, 3)
        document = json.loads(irmapdb("ps", "--by", "user", "--json").out)
    assert document["by"] == "user"
    (row,) = (row for row in document["rows"] if row["uid"] == 12345)
    assert (row["processes"], row["instances"], row["watches"]) == (2, 4, 6)


def test_processes_are_chosen_by_pid_and_by_name(tree: list[Path]) -> None:
    code = "inotify(sys.argv[1]); libc.prctl(15, b'irmap-chosen')"
    with program(code, tree[0]) as one, program(code, tree[1]) as other:
        pids = {one.pid, other.pid}
        by_name = _take(None, "map-chos")
        assert {row.pid for row in by_name.processes} == pids
        assert {row.path for row in by_name.watches} == {os.fsencode(path) for path in tree[:2]}
        (row,) = _take(None, str(one.pid)).processes
        assert row.pid == one.pid
        either = _take(None, str(one.pid), "no-process-has-this-name")
        assert [row.pid for row in either.processes] == [one.pid]
        program_name = os.path.basename(sys.executable)
        assert pids <= {row.pid for row in _take(None, program_name).processes}
        assert _take(os.getpid(), "map-chos").totals.processes == 2, "they are our children"
        assert _take(one.pid, str(other.pid)).processes == ()
        done = irmapdb("ps", one.pid)
        assert done.code == 0
        assert str(tree[0]) in done.out
        assert str(tree[1]) not in done.out
    assert _take(None, "map-chos").processes == ()
    with pytest.raises(TaskError, match="is not there"):
        _take(None, str(one.pid))
    assert irmapdb("ps", one.pid).code == 1
    done = irmapdb("ps", "9" * 5000)
    assert done.code == 1
    assert "is not a process id" in done.said
    done = irmapdb("ps", "")
    assert done.code == 2
    assert "PROCESS is empty; give a process id" in done.said


# --- directories ----------------------------------------------------------------------------------


def test_directories_are_added_up(watcher: Watcher, tmp_path: Path) -> None:
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    (tmp_path / "a" / "file").touch()
    for path in ("a", "a/file", "a/b", "a/b/c"):
        watcher.add_inotify(tmp_path / path)
    child = watcher.fork()
    own = child.inotify()
    child.add_inotify(tmp_path / "a" / "b", fd=own)
    watcher.add_fanotify(tmp_path / "a" / "b")
    depth = len(tmp_path.parts) - 1

    def rows(more: int) -> dict[str, tuple[int, ...]]:
        found = _take(watcher.pid, by="directory", depth=depth + more)
        top = os.fsencode(tmp_path)
        assert sum(row.watches for row in found.groups) == found.totals.watches
        return {
            os.fsdecode(row.name.removeprefix(top)): (row.processes, *_numbers(row))
            for row in found.groups
        }

    assert rows(0) == {"": (2, 2, 5, 1, 1)}
    assert rows(1) == {"/a": (2, 2, 5, 1, 1)}
    assert rows(2) == {"/a": (1, 1, 2, 0, 0), "/a/b": (2, 2, 3, 1, 1)}
    assert rows(9) == {
        "/a": (1, 1, 2, 0, 0),
        "/a/b": (2, 2, 2, 1, 1),
        "/a/b/c": (1, 1, 1, 0, 0),
    }
    whole = _take(by="directory", depth=depth + 1)
    assert _numbers(_group(whole, os.fsencode(tmp_path / "a"))) == (2, 5, 1, 1)
    assert whole.watches == (), "of all tasks no path is listed"
    out = irmapdb("ps", "--by", "directory", "--depth", str(depth + 1), "-t", watcher.pid).out
    assert f"2        5          2  {tmp_path}/a\n" in out


def test_a_watch_without_a_path_has_a_row_too(watcher: Watcher, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.touch()
    watcher.add_inotify(gone)
    watcher.open(gone)
    gone.unlink()
    found = _take(watcher.pid, by="directory")
    assert _numbers(_group(found, None)) == (1, 1, 0, 0)
    done = irmapdb("ps", "--by", "directory", "-t", watcher.pid)
    assert "(no path)" in done.out
    assert done.code == 3


# --- limits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("uses", "advised"), [(7, []), (8, ["fs"]), (10, ["fs"])])
def test_a_limit_that_is_nearly_reached_is_advised(
    tree: list[Path], monkeypatch: pytest.MonkeyPatch, uses: int, advised: list[str]
) -> None:
    known = {**limits.read_limits(), LimitKind.INOTIFY_WATCHES: 10}
    monkeypatch.setattr(ps, "read_limits", lambda: known)
    paths = ["/", "/proc", "/sys", "/dev", "/etc", "/usr", *tree]
    with program("inotify(*sys.argv[1:]); os.setuid(12348)", *paths[:uses]) as one:
        found = _take(one.pid)
    assert [one.sysctl.partition(".")[0] for one in found.advice] == advised
    for advice in found.advice:
        assert advice.command == "sysctl -w fs.inotify.max_user_watches=20"
        assert (advice.usage.uid, advice.usage.used) == (12348, uses)


def test_a_user_namespace_has_limits_of_its_own() -> None:
    # There fs.inotify shows the machine's limit, which is not the one that is reached.
    script = 'echo 3 >/proc/sys/user/max_inotify_watches && exec "$0" "$@"'
    before = ["unshare", "--user", "--map-root-user", "sh", "-c", script]
    with program("inotify('/', '/proc', '/sys')", before=before) as one:
        enter = ["nsenter", "--user", "--preserve-credentials", "--target", str(one.pid)]
        command = [*enter, sys.executable, "-m", "irmapdb", "ps", "-t", str(one.pid)]
        document = json.loads(run(*command, "--json"))
        shown = run(*command).decode()
    (advice,) = (a for a in document["advice"] if a["name"] == "fs.inotify.max_user_watches")
    assert advice["sysctl"] == "user.max_inotify_watches"
    assert advice["command"] == "sysctl -w user.max_inotify_watches=6"
    assert "    sysctl -w user.max_inotify_watches=6\n" in shown
    assert sysctl_to_raise(LimitKind.INOTIFY_WATCHES) == "fs.inotify.max_user_watches"


def test_the_limit_of_waiting_events_is_listed(watcher: Watcher, tree: list[Path]) -> None:
    watcher.add_inotify(tree[0])
    known = Path("/proc/sys/fs/inotify/max_queued_events").read_text().strip()
    found = _take(watcher.pid)
    assert found.queues["fs.inotify.max_queued_events"] == int(known)
    line = rf"^ +fs\.inotify\.max_queued_events +{int(known):,}$"
    assert re.search(line, irmapdb("ps").out, re.MULTILINE)
    document = json.loads(irmapdb("ps", "--json").out)
    assert document["limits"]["fs.inotify.max_queued_events"] == int(known)


# --- order ----------------------------------------------------------------------------------------


def test_the_order_of_rows(tree: list[Path]) -> None:
    many = "inotify(*sys.argv[1:]); libc.prctl(15, b'z')"
    two = "inotify(sys.argv[1]); inotify(sys.argv[1]); libc.prctl(15, b'a')"
    with program(many, *tree) as first, program(two, tree[0]) as second:
        pids = {first.pid: "many", second.pid: "two"}

        def order(sort: str, kind: WatchKind | None = None) -> list[str]:
            found = _take(None, *map(str, pids), sort=sort)
            return [pids[row.pid] for row in sorted_rows(found.processes, sort, kind)]

        assert order("watches") == order("watches", WatchKind.INOTIFY) == ["many", "two"]
        assert order("instances") == ["two", "many"]
        commands = sorted((Path(f"/proc/{pid}/cmdline").read_bytes(), pid) for pid in pids)
        assert order("name") == [pids[pid] for _, pid in commands]
        chosen = [str(pid) for pid in pids]
        out = irmapdb("ps", *chosen, "--sort", "instances", "--top", "1").out
        table = out.partition("INOTIFY\n")[2]
        assert str(second.pid) in table
        assert str(first.pid) not in table
        assert "2 processes, 1 shown" in table
        assert "total" in table
        document = json.loads(irmapdb("ps", *chosen, "--top", "1", "--json").out)
        assert [row["pid"] for row in document["processes"]] == [first.pid]
        assert document["totals"]["processes"] == 2
        none = irmapdb("ps", *chosen, "--top", "0").out.partition("INOTIFY\n")[2]
        assert "2 processes, 0 shown" in none


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--depth 2", "--depth without --by directory; add --by directory"),
        ("--interval 2", "--interval without --watch; add --watch"),
        ("--watch --interval nan", "--interval nan: not a number of seconds"),
        ("--watch --interval 0", "--interval 0: not a number of seconds"),
        ("--skip-path /a", "--skip-path without --search; add --search"),
        ("--top -1", "--top"),
        ("--by disk", "--by"),
        ("--sort size", "--sort"),
    ],
)
def test_wrong_usage(words: str, said: str) -> None:
    done = irmapdb("ps", *words.split())
    assert (done.code, done.out) == (2, "")
    assert said in done.said


def test_a_machine_with_many_users(tree: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "for user in range(30):\n"
        "    reader, writer = os.pipe()\n"
        "    if os.fork() == 0:\n"
        "        inotify(sys.argv[1])\n"
        "        os.setuid(20000 + user)\n"
        "        libc.prctl(1, 9)  # PR_SET_PDEATHSIG\n"
        "        os.write(writer, b'x')\n"
        "        threading.Event().wait()\n"
        "    os.read(reader, 1)\n"
    )
    with program(code, tree[0]) as one:
        out = irmapdb("ps", "-t", one.pid).out
        document = json.loads(irmapdb("ps", "-t", one.pid, "--json").out)
    assert out.count("fs.inotify.max_user_instances") <= 20
    assert "and 40 smaller shares: --json has all" in out
    uses = [use for use in document["users"] if use["uid"] >= 20000 and use["used"]]
    assert len(uses) == 60


def test_the_watches_of_a_container_that_ends_are_listed_all_the_same(
    tree: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with program("") as ended:
        pass
    with program("inotify(*sys.argv[1:])", *tree) as one:

        def places(pids: set[int]) -> dict[int, Place]:
            return {pid: Place(root_pid=ended.pid) for pid in pids}

        monkeypatch.setattr(ps, "find_places", places)
        found = _take(None, str(one.pid))
        assert {row.path for row in found.watches} == set(map(os.fsencode, tree))
        found = _take(None, str(one.pid), by="directory", depth=99)
        assert _numbers(_group(found, os.fsencode(tree[0].parent))) == (1, 4, 0, 0)
