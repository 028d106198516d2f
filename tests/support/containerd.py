"""containerd for the tests, and its containers, with watches that a test sets.

The daemon has its own root, state and socket, without the CRI plugin. A container is driven by
`ctr`, its image is a small imported tar: no registry is needed. It runs the
program of a `Watcher`, like a container of `tests.support.runc`; its root is an overlay of
containerd's own snapshotter.

CRIU's configuration file is named by an annotation, so that nothing in /etc is changed. It gives
CRIU a log of its own, because containerd removes CRIU's work dir after each call.

Sources: containerd(8), containerd-config.toml(5), ctr(8) of containerd 1.6; image-spec's
`docker save` form as containerd's "docker.v1.2"; runc's docs/checkpoint-restore.md; criu(8).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.support.features import require_program
from tests.support.programs import SYSTEM_PATH, ProgramError, find_program
from tests.support.runc import ContainerLink, fill_rootfs_with_app, python_homes
from tests.support.watcher import Task, TaskDiedError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "WATCHABLE",
    "ContainerdContainer",
    "ContainerdDaemon",
    "ContainerdTask",
    "require_containerd",
]

WATCHABLE = 60
"""The number of files in /srv of a container: `file0`, `file1`, …"""

_IMAGE = "localhost/irmapdb-test:1"
_TIMEOUT_S = 60.0
_CONFIG = """\
version = 2
root = "{root}"
state = "{state}"
disabled_plugins = ["io.containerd.grpc.v1.cri"]

[grpc]
address = "{address}"

[plugins."io.containerd.internal.v1.opt"]
path = "{root}/opt"
"""
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


def require_containerd() -> None:
    """The programs of a node with containerd."""
    for name in ("containerd", "ctr", "containerd-shim-runc-v2"):
        require_program(name, package="containerd")
    require_program("runc")


class ContainerdDaemon:
    """A running containerd, with one image. A context manager: ends it and all its containers."""

    def __init__(self, directory: Path, path: str = SYSTEM_PATH) -> None:
        """All that it has lies in `directory`, on a disk; runc finds CRIU through `path`."""
        self.directory = directory
        # The kernel takes 108 bytes for the name of a socket.
        self._sockets = Path(tempfile.mkdtemp(prefix="irmapdb-"))
        self.address = self._sockets / "c.sock"
        self._env = {**os.environ, "PATH": path, "CONTAINERD_ADDRESS": str(self.address)}
        directory.mkdir(parents=True, exist_ok=True)
        places = {"root": directory / "root", "state": directory / "state"}
        config = directory / "containerd.toml"
        config.write_text(_CONFIG.format(address=self.address, **places))
        with (directory / "containerd.log").open("wb") as log:
            self._process = subprocess.Popen(
                [str(find_program("containerd")), "--config", config],
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            self._await_up()
            self._import_image()
        except BaseException:
            self.close()
            raise

    def ctr(self, *arguments: str | Path, timeout_s: float = _TIMEOUT_S) -> bytes:
        """The output of `ctr`; ProgramError if it fails, or does not end."""
        # Some calls of ctr wait for ever for a task that could not be restored.
        command = [str(find_program("ctr")), *map(str, arguments)]
        try:
            done = subprocess.run(
                command,
                env=self._env,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            message = f"{' '.join(command)}: no end after {timeout_s} s"
            raise ProgramError(message) from error
        if done.returncode != 0:
            talk = (done.stdout + done.stderr).decode(errors="replace").strip()
            message = f"exit code {done.returncode} from {' '.join(command)}: {talk}"
            raise ProgramError(message)
        return done.stdout

    def _await_up(self) -> None:
        deadline = time.monotonic() + _TIMEOUT_S
        while True:
            with suppress(ProgramError):
                self.ctr("version")
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                log = (self.directory / "containerd.log").read_text(errors="replace")
                message = f"containerd does not answer: {log[-3000:]}"
                raise ProgramError(message)
            time.sleep(0.05)

    def _import_image(self) -> None:
        rootfs = self.directory / "rootfs"
        fill_rootfs_with_app(rootfs)
        for number in range(WATCHABLE):
            (rootfs / "srv" / f"file{number}").touch()
        layer = io.BytesIO()
        with tarfile.open(fileobj=layer, mode="w") as tar:
            tar.add(rootfs, arcname=".")
        digest = f"sha256:{hashlib.sha256(layer.getvalue()).hexdigest()}"
        config = {
            "architecture": _MACHINES.get(platform.machine(), platform.machine()),
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [digest]},
        }
        manifest = [{"Config": "config.json", "RepoTags": [_IMAGE], "Layers": ["layer.tar"]}]
        parts = {
            "config.json": json.dumps(config).encode(),
            "layer.tar": layer.getvalue(),
            "manifest.json": json.dumps(manifest).encode(),
        }
        image = self.directory / "image.tar"
        with tarfile.open(image, "w") as tar:
            for name, content in parts.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
        self.ctr("images", "import", image)

    def close(self) -> None:
        """End the daemon and its shims, and unmount their mounts."""
        self._process.terminate()
        try:
            self._process.wait(_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pid in self._shims():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
            mountpoint = line.split(" ")[1]
            if Path(mountpoint).is_relative_to(self.directory / "state"):
                subprocess.run(["umount", "--lazy", mountpoint], check=False)
        shutil.rmtree(self._sockets, ignore_errors=True)

    def _shims(self) -> list[int]:
        # A shim is no child of the daemon's: it has our socket's name among its words.
        found = []
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                words = file.read_bytes().split(b"\0")
                if b"shim" in words[0] and os.fsencode(self.address) in words:
                    found.append(int(file.parent.name))
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ContainerdContainer:
    """One container of `ctr`, with any program. A context manager: removes it."""

    def __init__(
        self,
        daemon: ContainerdDaemon,
        directory: Path,
        program: Sequence[str],
        *,
        hook: Path | None = None,
    ) -> None:
        """`directory` is seen in it under the same path; CRIU calls `hook` for it.

        `criu_dir` stands for /etc/criu.
        """
        self.daemon = daemon
        self.directory = directory
        self.id = f"irmapdb-{os.getpid()}-{time.monotonic_ns()}"
        directory.mkdir(parents=True, exist_ok=True)
        self.criu_log = directory / "criu.log"
        self.criu_dir = directory / "criu"
        self.criu_dir.mkdir()
        self._config = self.criu_dir / "runc.conf"
        self.call_hook(hook)
        binds = {**dict.fromkeys(python_homes(), "ro"), directory: "rw"}
        mounts = [
            f"--mount=type=bind,src={path},dst={path},options=rbind:{mode}"
            for path, mode in binds.items()
        ]
        try:
            daemon.ctr(
                *("run", "--detach", "--null-io", "--cgroup", f"/{self.id}"),
                *("--annotation", f"org.criu.config={self._config}", "--env", "LC_ALL=C.UTF-8"),
                *(*mounts, _IMAGE, self.id, *program),
            )
        except BaseException:
            self.close()
            raise

    def call_hook(self, hook: Path | None) -> None:
        """Make CRIU call this script from now on."""
        script = "" if hook is None else f"action-script {hook}\n"
        self._config.write_text(f"log-file {self.criu_log}\n{script}")

    @property
    def rootfs(self) -> Path:
        """Where its overlay is mounted."""
        bundles = self.daemon.directory / "state" / "io.containerd.runtime.v2.task"
        return bundles / "default" / self.id / "rootfs"

    @property
    def pid(self) -> int:
        """Its first task as the host counts; ProgramError where it does not run."""
        for line in self.daemon.ctr("tasks", "list").decode().splitlines()[1:]:
            name, pid, _ = line.split()
            if name == self.id and pid != "0":
                return int(pid)
        message = f"{self.id} does not run"
        raise ProgramError(message)

    def log(self) -> str:
        """CRIU's log of its last call."""
        return self.criu_log.read_text(errors="replace") if self.criu_log.exists() else ""

    def checkpoint(self, name: str) -> None:
        """`ctr c checkpoint --rw --task`: the container continues; `name` has images and files."""
        self.daemon.ctr("containers", "checkpoint", "--rw", "--task", self.id, name)

    def images(self, name: str, into: Path) -> Path:
        """CRIU's images out of a checkpoint, in the directory `into`."""
        into.mkdir()
        for line in self.daemon.ctr("images", "list").decode().splitlines()[1:]:
            words = line.split()
            if words[0] == name:
                index = json.loads(self.daemon.ctr("content", "get", words[2]))
                (images,) = (
                    part["digest"]
                    for part in index["manifests"]
                    if "criu.checkpoint.criu.tar" in part["mediaType"]
                )
                tar = self.daemon.ctr("content", "get", images)
                with tarfile.open(fileobj=io.BytesIO(tar)) as file:
                    file.extractall(into, filter="data")
                return into
        message = f"no checkpoint {name}"
        raise ProgramError(message)

    def export(self, name: str, archive: Path) -> None:
        """`ctr images export`: the checkpoint as one file, in the layout of OCI."""
        self.daemon.ctr("images", "export", "--skip-manifest-json", archive, name)

    def kill(self) -> None:
        """End it, and remove it from containerd; its checkpoints stay."""
        with suppress(ProgramError):
            self.daemon.ctr("tasks", "kill", "--signal", "SIGKILL", self.id)
        self._await_stopped()
        self.daemon.ctr("tasks", "delete", self.id)
        self.daemon.ctr("containers", "delete", self.id)

    def restore(self, name: str) -> None:
        """`ctr c restore --rw --live` of the killed container."""
        self.daemon.ctr("containers", "restore", "--rw", "--live", self.id, name)

    def _await_stopped(self) -> None:
        deadline = time.monotonic() + _TIMEOUT_S
        while f"{self.id} " in self.daemon.ctr("tasks", "list").decode():
            listed = self.daemon.ctr("tasks", "list").decode().splitlines()
            if any(line.startswith(self.id) and line.endswith("STOPPED") for line in listed):
                return
            if time.monotonic() > deadline:
                message = f"containerd does not see the end of {self.id}"
                raise ProgramError(message)
            time.sleep(0.02)

    def close(self) -> None:
        """Remove it in any state: running, paused, stopped or restored."""
        self._end_tasks()
        with suppress(ProgramError):
            self.kill()
        for group in _cgroups(self.id):
            with suppress(OSError):
                group.rmdir()

    def _end_tasks(self) -> None:
        # containerd cannot end the tasks of a pause that was broken off, or of a failed restore.
        for group in _cgroups(self.id):
            for name, word in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
                if (group / name).exists():
                    (group / name).write_text(word)
            with suppress(OSError):
                for pid in (group / "cgroup.procs").read_text().split():
                    os.kill(int(pid), signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _cgroups(name: str) -> list[Path]:
    # In the one hierarchy of cgroup v2, or in each of v1.
    top = Path("/sys/fs/cgroup")
    return [*top.glob(name), *top.glob(f"*/{name}")]


class ContainerdTask(Task):
    """The first task of a container, which runs the program of a `Watcher`.

    A context manager: removes the container.
    """

    def __init__(
        self, daemon: ContainerdDaemon, directory: Path, *, hook: Path | None = None
    ) -> None:
        directory.mkdir(parents=True)
        link = ContainerLink(directory / "pipes", lambda: self.container.pid)
        python = (os.path.realpath(sys.executable), "-I", "-S", "-W", "ignore")
        program = (*python, "/watcher_task.py", json.dumps(link.config()))
        try:
            self.container = ContainerdContainer(daemon, directory, program, hook=hook)
        except BaseException:
            link.close()
            raise
        try:
            super().__init__(link)
        except BaseException:
            link.close()
            self.container.close()
            raise

    def restore(self, name: str) -> None:
        """Kill the container, restore it from a checkpoint, and drive it again."""
        self.container.kill()
        self.wait_dead()
        self.container.restore(name)
        os.close(self._pidfd)
        self.pid = self.container.pid
        self._pidfd = os.pidfd_open(self.pid)

    def close(self) -> None:
        self.container.close()
        with suppress(TaskDiedError):
            self.wait_dead()
        self._release()
