"""Programs to be frozen, the ways to freeze them, and their state in /proc."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import mmap
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from irmapdb.kernel.own_freezer.cgroup import is_frozen, open_freezer
from tests.support.features import require

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

TARGET = Path(__file__).with_name("freeze_target.py")
PATIENCE_S = 60.0
HELD = set("tT")

_libc = ctypes.CDLL(None, use_errno=True)


# The state in /proc, read apart from the code under test.


def stat_fields(pid: int, tid: int | None = None) -> list[str]:
    """The fields of /proc/PID/task/TID/stat from the state on."""
    try:
        text = Path(f"/proc/{pid}/task/{tid or pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ["gone"] * 50
    return text.rpartition(")")[2].split()


def state(pid: int, tid: int | None = None) -> str:
    """The letter of its state, or "gone"."""
    return stat_fields(pid, tid)[0]


def threads(pid: int) -> list[int]:
    """The thread ids of a process; none where it is gone."""
    with contextlib.suppress(FileNotFoundError):
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    return []


def states(pids: Iterable[int]) -> set[str]:
    """The states of all threads of these processes."""
    return {state(pid, tid) for pid in pids for tid in threads(pid)} - {"gone"}


def descendants(root: int) -> set[int]:
    """By the parents that all tasks of the machine name; zombies left out."""
    parents = {
        int(name): int(fields[1])
        for name in os.listdir("/proc")
        if name.isdecimal() and (fields := stat_fields(int(name)))[0] not in ("gone", "Z", "X")
    }
    found = {root}
    while more := {pid for pid, ppid in parents.items() if ppid in found} - found:
        found |= more
    return found


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for a condition; fail if it does not become true."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"never came true: {what}"
        time.sleep(0.001)


# Real tasks and cgroups.


@dataclass
class Target:
    """One program of freeze_target.py."""

    process: subprocess.Popen[bytes]
    cells: memoryview
    told: dict = field(default_factory=dict)

    @property
    def pid(self) -> int:
        return self.process.pid

    def hear(self) -> dict:
        line = self.process.stdout.readline()
        assert line, f"the target ended with {self.process.wait()}"
        return json.loads(line)

    def end(self) -> dict:
        """Close its stdin, and read its result."""
        self.process.stdin.close()
        return self.hear()

    def runs(self, cells: Iterable[int] = range(1)) -> None:
        before = [self.cells[n] for n in cells]
        until(
            lambda: all(self.cells[n] > old for n, old in zip(cells, before, strict=True)),
            f"all of {self.pid} count on from {before}",
        )


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Target]]:
    """Start one of the programs of freeze_target.py."""
    started: list[Target] = []

    def start(*argv: object) -> Target:
        file = tmp_path / f"counters-{len(started)}"
        file.write_bytes(bytes(mmap.PAGESIZE))
        process = subprocess.Popen(
            [sys.executable, "-SE", TARGET, *map(str, argv)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "COUNTERS": str(file)},
            start_new_session=True,
        )
        with file.open("r+b") as opened:
            cells = memoryview(mmap.mmap(opened.fileno(), 0)).cast("Q")
        target = Target(process, cells)
        started.append(target)
        target.told = target.hear()
        return target

    yield start
    for target in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(target.pid, signal.SIGKILL)
        with target.process:
            pass


@pytest.fixture(scope="session")
def hierarchies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path | None]]:
    """The mount points of cgroup v2 and of the v1 freezer, mounted for us if they are not."""
    found: dict[str, Path | None] = {"v1": None, "v2": None}
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, fstype, options, *_ = line.split()
        if fstype == "cgroup2":
            found["v2"] = Path(where)
        elif fstype == "cgroup" and "freezer" in options.split(","):
            found["v1"] = Path(where)
    mounted = []
    for version, options in (("v1", ["cgroup", "-o", "freezer"]), ("v2", ["cgroup2"])):
        if found[version] is None:
            where = tmp_path_factory.mktemp(version)
            if (
                subprocess.run(["mount", "-t", *options, "none", where], check=False).returncode
                == 0
            ):
                mounted.append(where)
                found[version] = where
    yield found
    for where in mounted:
        subprocess.run(["umount", where], check=True)


@dataclass(frozen=True)
class Cgroup:
    """A cgroup of ours and its freezer."""

    path: Path

    @property
    def control(self) -> Path:
        return next(
            file
            for name in ("cgroup.freeze", "freezer.state")
            if (file := self.path / name).exists()
        )

    def put(self, *pids: int) -> None:
        for pid in pids:
            (self.path / "cgroup.procs").write_text(str(pid))

    def freeze(self) -> None:
        self.control.write_text("FROZEN" if self.control.name == "freezer.state" else "1")
        until(lambda: is_frozen(open_freezer(self.path)), f"{self.path} is frozen")

    def thaw(self) -> None:
        self.control.write_text("THAWED" if self.control.name == "freezer.state" else "0")

    def removed(self) -> bool:
        """Kill all its tasks, and remove it when they have ended."""
        for pid in (self.path / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        try:
            self.path.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            return False
        return True

    @property
    def thawed(self) -> bool:
        return self.control.read_text().strip() in ("THAWED", "0")


@pytest.fixture
def make_cgroup(
    hierarchies: dict[str, Path | None],
) -> Iterator[Callable[[str], Cgroup]]:
    """Make a cgroup of version "v1" or "v2"."""
    made: list[Cgroup] = []

    def make(version: str) -> Cgroup:
        base = hierarchies[version]
        require(base, f"the cgroup freezer {version}")
        cgroup = Cgroup(base / f"irmapdb-test-{os.getpid()}")
        cgroup.path.mkdir()
        made.append(cgroup)
        return cgroup

    yield make
    for cgroup in made:
        cgroup.thaw()
        until(cgroup.removed, f"{cgroup.path} is empty")


@pytest.fixture(params=["ptrace", "v1", "v2"])
def way(
    request: pytest.FixtureRequest, make_cgroup: Callable[[str], Cgroup]
) -> Callable[..., dict]:
    """A way to freeze: moves the pids into their cgroup, and gives the arguments for frozen()."""
    if request.param == "ptrace":
        return lambda *_pids: {}
    cgroup = make_cgroup(request.param)

    def put(*pids: int) -> dict:
        cgroup.put(*pids)
        return {"cgroup": cgroup.path}

    return put
