"""Uses the cgroup freezer, `cgroup.freeze` (v2) or `freezer.state` (v1), and restores its state.

Facts: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/freezer-subsystem.rst;
kernel/cgroup/freezer.c and legacy_freezer.c. A root cgroup has no freezer.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from pathlib import Path

from irmapdb.errors import FreezeError, UsageError
from irmapdb.kernel.proc.mountinfo import read_mountinfo
from irmapdb.kernel.proc.procfs import read_file
from irmapdb.kernel.proc.tasks import leader_of
from irmapdb.model import printable
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "Freezer",
    "Guard",
    "find_frozen",
    "guarded",
    "is_frozen",
    "is_held",
    "members",
    "open_freezer",
]


class Freezer(Record):
    """One cgroup whose tasks can be frozen."""

    path: Path
    v2: bool

    @property
    def name(self) -> str:
        """Its name in messages."""
        return printable(self.path)

    @property
    def control(self) -> Path:
        """The file that freezes and thaws."""
        return self.path / ("cgroup.freeze" if self.v2 else "freezer.state")

    @property
    def on(self) -> bytes:
        return b"1" if self.v2 else b"FROZEN"

    @property
    def off(self) -> bytes:
        return b"0" if self.v2 else b"THAWED"


def open_freezer(path: Path) -> Freezer:
    """The freezer of the cgroup at `path`. UsageError if that is no cgroup with a freezer."""
    for freezer in (Freezer(path, v2=True), Freezer(path, v2=False)):
        if freezer.control.exists():
            return freezer
    if not path.is_dir():
        raise UsageError(
            f"{printable(path)} is not a directory", advice="give the directory of a cgroup"
        )
    raise UsageError(
        f"{printable(path)} has neither cgroup.freeze nor freezer.state",
        advice="give a cgroup below the root of cgroup v2, or of the v1 freezer hierarchy",
    )


def is_held(freezer: Freezer) -> bool:
    """Whether another process has frozen it, or is freezing it.

    The freeze of an ancestor counts only with v1: there the state shows both in the same way, and
    thawing this cgroup would do nothing.
    """
    return _read(freezer.control) != freezer.off


def is_frozen(freezer: Freezer) -> bool:
    """Whether all tasks are frozen. With v1 the kernel checks this when the file is read."""
    if freezer.v2:
        return b"frozen 1" in _read(freezer.path / "cgroup.events").splitlines()
    return _read(freezer.control) == freezer.on


def find_frozen(pid: int) -> Path | None:
    """The v1 cgroup that keeps a task frozen, its own or an ancestor. None: not found.

    A task that is frozen by v1 cannot reach a ptrace stop; with v2 it can.
    """
    try:
        # By newlines alone: the name of a cgroup may hold a carriage return.
        lines = read_file(f"/proc/{pid}/cgroup").split(b"\n")[:-1]
        mounts = read_mountinfo("self")
    except OSError:
        return None
    for _, controllers, path in (line.split(b":", 2) for line in lines):
        if b"freezer" not in controllers.split(b","):
            continue
        for mount in mounts:
            if b"freezer" in mount.super_options.split(b",") and path.startswith(mount.root):
                below = os.fsdecode(path[len(mount.root) :]).lstrip("/")
                if found := _frozen_upward(Path(os.fsdecode(mount.mountpoint)), below):
                    return found
    return None


def _frozen_upward(top: Path, below: str) -> Path | None:
    # freezer.state also reports the freeze of an ancestor. This file reports only its own.
    for path in (top / below, *(top / below).parents):
        with contextlib.suppress(OSError):
            if (path / "freezer.self_freezing").read_bytes().strip() == b"1":
                return path
        if path == top:
            break
    return None


def members(freezer: Freezer) -> tuple[int, ...]:
    """The processes in the cgroup and below it, each once, without those that have no pid here."""
    pids: dict[int, None] = {}
    for directory, _, _ in os.walk(freezer.path):
        pids.update(dict.fromkeys(_processes(directory)))
    pids.pop(0, None)  # of a pid namespace that is not ours
    return tuple(pids)


def _processes(directory: str) -> list[int]:
    try:
        return _numbers(f"{directory}/cgroup.procs")
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:  # a threaded cgroup
            return [leader_of(tid) or 0 for tid in _numbers(f"{directory}/cgroup.threads")]
        if error.errno in (errno.ENOENT, errno.ENODEV):
            return []
        name = printable(os.fsencode(directory))
        raise FreezeError(f"cannot list the tasks of {name}: {error.strerror}") from error


def _numbers(path: str) -> list[int]:
    with open(path, "rb") as file:
        return [int(line) for line in file]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes().strip()
    except OSError as error:
        raise FreezeError(f"cannot read {printable(path)}: {error.strerror}") from error


class Guard:
    """Freezes a cgroup; thaws it when asked, and also when this process is killed."""

    def __init__(self, freezer: Freezer, line: int) -> None:
        self._freezer = freezer
        self._line = line  # to the helper, which thaws if this pipe closes without a message
        self._on = False

    def freeze(self) -> None:
        """Request the freeze; `is_frozen` reports when it is complete. May be repeated."""
        self._on = True
        self._write(self._freezer.on)

    def thaw(self) -> None:
        """Undo `freeze`. May be repeated, and called from any thread."""
        if self._on:
            self._write(self._freezer.off)
            self._on = False
            self.dismiss()

    def dismiss(self) -> None:
        """End the guard: from now on, only other processes freeze the cgroup."""
        with contextlib.suppress(BrokenPipeError):  # it is gone already
            os.write(self._line, b"over\n")

    def _write(self, word: bytes) -> None:
        path = self._freezer.control
        try:
            path.write_bytes(word)
        except OSError as error:
            raise FreezeError(
                f"cannot write {word.decode()} to {printable(path)}: {error.strerror}",
                advice="check that you may write to the cgroup",
            ) from error


# It writes to a descriptor that is open from the start, and so needs no path later. No
# terminal signal, and no signal that can be blocked, ends it before us.
_HELPER = 'trap "" HUP INT TERM; read -r over || printf %s "$1"'


@contextlib.contextmanager
def guarded(freezer: Freezer) -> Iterator[Guard]:
    """A guard for a freezer that is not in use. It is always thawed at the end."""
    try:
        with freezer.control.open("wb", buffering=0) as control:
            helper = subprocess.Popen(  # noqa: S603 - fixed words
                ["/bin/sh", "-c", _HELPER, "irmapdb-guard", freezer.off.decode()],
                stdin=subprocess.PIPE,
                stdout=control,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                cwd="/",
                start_new_session=True,
            )
    except OSError as error:
        raise FreezeError(
            f"cannot guard {freezer.name}: {error.strerror} ({error.filename!r})"
        ) from error
    with helper:  # at the end: closes the pipe and waits for the helper
        assert helper.stdin is not None  # noqa: S101 - a pipe was asked for
        guard = Guard(freezer, helper.stdin.fileno())
        try:
            yield guard
        finally:
            guard.thaw()
            guard.dismiss()
