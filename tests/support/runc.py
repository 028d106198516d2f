"""A container of runc, with watches that a test sets, for checkpoints.

It runs the program of a `Watcher`. Python and its libraries are bound into the rootfs, and so is
the directory with the program's two named pipes, under the path that it has outside: the driver
continues with the tasks that runc has restored.

Sources: runc(8), runc-checkpoint(8), runc-restore(8); config.md and config-linux.md of the OCI
runtime specification 1.0.2; proc_pid_status(5), proc_tid_children(5).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.support.programs import SYSTEM_PATH, ProgramError, run
from tests.support.watcher import Task, TaskDiedError
from tests.support.watcher_link import PipeLink

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = [
    "Container",
    "ContainerLink",
    "RuncRun",
    "fill_rootfs",
    "fill_rootfs_with_app",
    "python_homes",
]

_PROGRAM = Path(__file__).with_name("watcher_task.py")
_TIMEOUT_S = 60.0
_USR_LINKS = ("bin", "lib", "lib32", "lib64", "sbin")


def python_homes() -> list[Path]:
    """The directories that the Python of this process needs, without the links to them."""
    wanted = [Path("/usr"), Path(sys.base_prefix), *(Path("/", name) for name in _USR_LINKS)]
    return [path for path in dict.fromkeys(wanted) if path.is_dir() and not path.is_symlink()]


def fill_rootfs(directory: Path) -> None:
    """Make the files that a rootfs itself needs: the program, and /lib and the like as links."""
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copy(_PROGRAM, directory / _PROGRAM.name)
    for name in _USR_LINKS:
        if Path("/", name).is_symlink():
            (directory / name).symlink_to(Path("/", name).readlink())


def fill_rootfs_with_app(directory: Path) -> None:
    """The same with a file to watch, /srv/app/settings, and with /var/run as a link to /run."""
    fill_rootfs(directory)
    (directory / "var").mkdir()
    (directory / "var" / "run").symlink_to("../run")
    (directory / "srv" / "app").mkdir(parents=True)
    (directory / "srv" / "app" / "settings").write_text("from the image")


class RuncRun(NamedTuple):
    """One call of runc that has ended."""

    ok: bool
    log: str


class ContainerLink(PipeLink):
    """Pipes of a task that counts its pid otherwise than we do."""

    def __init__(self, directory: Path, find_pid: Callable[[], int]) -> None:
        super().__init__(directory)
        self._find_pid = find_pid

    @property
    def sender_pid(self) -> int:  # type: ignore[override]  # a class attribute there, None
        return self._find_pid()


class Container(Task):
    """A running container; `fork` makes a child in it. A context manager: deletes it."""

    def __init__(
        self,
        directory: Path,
        rootfs: Path,
        binds: Mapping[Path, str],
        path: str = SYSTEM_PATH,
        *,
        tmpfs: Sequence[str] = (),
    ) -> None:
        """`binds` are directories or files to be seen in it; runc finds CRIU through `path`.

        `tmpfs` are places in it that get a tmpfs each.
        """
        self._directory = directory
        self._path = path
        self.id = f"irmapdb-{os.getpid()}-{time.monotonic_ns()}"
        link = ContainerLink(directory / "pipes", self._host_pid)
        self._bundle = directory / "bundle"
        self._bundle.mkdir(parents=True)
        config = self._config(rootfs, binds, tmpfs, link.config())
        (self._bundle / "config.json").write_text(json.dumps(config))
        try:
            self._run()
            super().__init__(link)
        except BaseException:
            link.close()
            self._runc("delete", "--force", self.id)
            raise

    def _config(
        self,
        rootfs: Path,
        binds: Mapping[Path, str],
        tmpfs: Sequence[str],
        link: Mapping[str, Any],
    ) -> dict[str, Any]:
        pipes = Path(link["pipes"])
        bound = {**{home: str(home) for home in python_homes()}, pipes: str(pipes), **binds}
        program = [os.path.realpath(sys.executable), "-I", "-S", "-W", "ignore"]
        return {
            "ociVersion": "1.0.2",
            "root": {"path": str(rootfs)},
            "process": {
                "cwd": "/",
                "user": {"uid": 0, "gid": 0},
                "args": [*program, f"/{_PROGRAM.name}", json.dumps(link)],
                "env": ["LC_ALL=C.UTF-8"],
            },
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                *({"destination": inside, "type": "tmpfs", "source": "tmpfs"} for inside in tmpfs),
                *(
                    {
                        "destination": inside,
                        "type": "bind",
                        "source": str(outside),
                        "options": ["bind", "rw" if outside in {pipes, *binds} else "ro"],
                    }
                    for outside, inside in bound.items()
                ),
            ],
            "linux": {
                "cgroupsPath": f"/{self.id}",
                "namespaces": [{"type": name} for name in ("mount", "pid", "ipc", "uts")],
                "resources": {"devices": [{"allow": True, "access": "rwm"}]},
            },
        }

    def _run(self) -> None:
        started = self._runc("run", "--detach", "--bundle", self._bundle, self.id)
        if not started.ok:
            raise ProgramError(started.log)

    def _runc(self, *arguments: str | Path) -> RuncRun:
        log = self._directory / "log"
        log.unlink(missing_ok=True)
        # The container gets runc's own stdio, and CRIU can dump it only with /dev/null.
        done = subprocess.run(
            ["runc", "--root", self._directory / "state", "--log", log, *arguments],
            env={**os.environ, "PATH": self._path},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        return RuncRun(done.returncode == 0, log.read_text() if log.exists() else "")

    def _host_pid(self) -> int:
        state = run("runc", "--root", self._directory / "state", "state", self.id)
        return int(json.loads(state)["pid"])

    def _host_pid_of_child(self, index: int) -> int:
        init = self._host_pid()
        children = Path(f"/proc/{init}/task/{init}/children").read_text().split()
        return int(children[index])

    def _child_link(self) -> ContainerLink:
        index = len(self.children)
        directory = self._directory / "pipes" / f"child-{index}"
        return ContainerLink(directory, lambda: self._host_pid_of_child(index))

    def pause(self) -> None:
        """`runc pause`: its cgroup is frozen."""
        done = self._runc("pause", self.id)
        if not done.ok:
            raise ProgramError(done.log)

    def resume(self) -> None:
        """`runc resume`, if it is paused."""
        self._runc("resume", self.id)

    def checkpoint(self, images: Path, work: Path) -> RuncRun:
        """`runc checkpoint`: ok where the container is on disk, and has ended."""
        images.mkdir(parents=True, exist_ok=True)
        work.mkdir(parents=True, exist_ok=True)
        return self._runc("checkpoint", "--image-path", images, "--work-path", work, self.id)

    def restore(self, images: Path, work: Path) -> RuncRun:
        """`runc restore` in place of the container that was checkpointed."""
        for task in self._tree():
            task.wait_dead()
        self._await_deleted()
        places = ("--image-path", images, "--work-path", work, "--bundle", self._bundle)
        done = self._runc("restore", "--detach", *places, self.id)
        if done.ok:
            pids = [self._host_pid(), *map(self._host_pid_of_child, range(len(self.children)))]
            for task, pid in zip(self._tree(), pids, strict=True):
                os.close(task._pidfd)
                task.pid, task._pidfd = pid, os.pidfd_open(pid)
        return done

    def _await_deleted(self) -> None:
        deadline = time.monotonic() + _TIMEOUT_S
        while (self._directory / "state" / self.id).exists():
            if time.monotonic() > deadline:
                message = f"runc keeps {self.id}"
                raise TaskDiedError(message)
            time.sleep(0.01)

    def close(self) -> None:
        self._runc("delete", "--force", self.id)
        for task in self._tree():
            with suppress(TaskDiedError):
                task.wait_dead()
        self._release()
