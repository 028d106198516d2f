"""A container of podman on its overlay, with watches that a test sets, for checkpoints.

It runs the program of a `Watcher`, like a container of `tests.support.runc`. podman works in a
store of its own, with an image made of a small tar: no registry is needed.

Sources: podman(1), podman-import(1), podman-run(1), podman-container-checkpoint(1),
podman-container-restore(1); the place of CRIU's work dir: as found with podman 4.3.1.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.programs import SYSTEM_PATH, ProgramError
from tests.support.runc import ContainerLink, fill_rootfs_with_app, python_homes
from tests.support.watcher import Task, TaskDiedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["PodmanContainer"]

_IMAGE = "localhost/irmapdb-test:1"


class PodmanContainer(Task):
    """A running container, its runtime runc. A context manager: removes it."""

    def __init__(
        self, directory: Path, path: str = SYSTEM_PATH, options: Sequence[str] = ()
    ) -> None:
        """CRIU is found through `path`; the rootfs has the directory /srv/app with `settings`.

        `options` are further ones of `podman run`.
        """
        self._directory = directory
        self._options = tuple(options)
        self._runroot = tempfile.mkdtemp(prefix="irmapdb-")  # of at most 50 characters
        self._env = {**os.environ, "PATH": path}
        self.name = f"irmapdb-{os.getpid()}-{time.monotonic_ns()}"
        self._make_image(directory / "rootfs")
        self._link_directory = directory / "pipes"
        link = ContainerLink(self._link_directory, self._host_pid)
        try:
            self._run(link)
            super().__init__(link)
        except BaseException:
            link.close()
            self._remove()
            raise

    @property
    def store(self) -> Path:
        """Where podman keeps all it has."""
        return self._directory / "store"

    @property
    def rootfs(self) -> Path:
        """Where the container's overlay is mounted."""
        return Path(self._inspect("{{.GraphDriver.Data.MergedDir}}"))

    @property
    def work(self) -> Path:
        """CRIU's work dir, which podman keeps; the images are in `checkpoint` in it."""
        return self.store / "overlay-containers" / self._inspect("{{.Id}}") / "userdata"

    def checkpoint(self, *options: str) -> None:
        """`podman container checkpoint --keep`; ProgramError where it fails."""
        self._podman("container", "checkpoint", "--keep", *options, self.name)

    def export(self, archive: Path, *options: str) -> None:
        """`podman container checkpoint --export`: the container ends, unless the options say so."""
        self._podman("container", "checkpoint", "--export", str(archive), *options, self.name)

    def save_image(self, archive: Path) -> None:
        """A checkpoint as an image, which `podman save` writes; the container goes on."""
        name = "localhost/irmapdb-checkpoint:1"
        self._podman(
            "container", "checkpoint", "--leave-running", "--create-image", name, self.name
        )
        self._podman("save", "--quiet", "--format", "oci-archive", "--output", str(archive), name)
        self._podman("rmi", "--force", name)

    def restore_from(self, archive: Path, *options: str) -> None:
        """`podman container restore --import`, in place of this container, which has ended.

        ProgramError where it fails; no container is left then.
        """
        self.wait_dead()
        self._podman("rm", "--force", "--time", "0", "--ignore", self.name)
        self._podman("volume", "prune", "--force")  # the archive brings them
        try:
            self._podman("container", "restore", "--import", str(archive), *options)
        except ProgramError:
            self._podman("rm", "--force", "--time", "0", "--ignore", self.name)
            raise
        os.close(self._pidfd)
        self.pid = self._host_pid()
        self._pidfd = os.pidfd_open(self.pid)

    @contextmanager
    def mounted_image(self) -> Iterator[Path]:
        """The root directory of the image, mounted."""
        mounted = Path(self._podman("image", "mount", _IMAGE).splitlines()[-1])
        try:
            yield mounted
        finally:
            self._podman("image", "unmount", _IMAGE)

    def kill(self) -> None:
        """End it at once, and wait until podman knows it."""
        self._podman("kill", self.name)
        self._podman("wait", self.name)

    def restore(self) -> None:
        """`podman container restore`, in place of the container that was checkpointed."""
        self.wait_dead()
        self._podman("container", "restore", "--keep", self.name)
        os.close(self._pidfd)
        self.pid = self._host_pid()
        self._pidfd = os.pidfd_open(self.pid)

    def close(self) -> None:
        self._remove()
        with suppress(TaskDiedError):
            self.wait_dead()
        self._release()

    def _make_image(self, rootfs: Path) -> None:
        fill_rootfs_with_app(rootfs)
        tar = self._directory / "rootfs.tar"
        with tarfile.open(tar, "w") as file:
            file.add(rootfs, arcname=".")
        self._podman("import", "--quiet", str(tar), _IMAGE)

    def _run(self, link: ContainerLink) -> None:
        pipes = str(link.directory)
        volumes = [f"{home}:{home}:ro" for home in python_homes()]
        options = [part for volume in (*volumes, f"{pipes}:{pipes}") for part in ("-v", volume)]
        limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096"]
        python = [os.path.realpath(sys.executable), "-I", "-S", "-W", "ignore"]
        self._podman(
            *("run", "--detach", "--name", self.name, "--network", "none", "--log-driver", "none"),
            *("--cgroup-parent", f"/{self.name}", "--env", "LC_ALL=C.UTF-8"),
            *(*limits, *options, *self._options, _IMAGE),
            *(*python, "/watcher_task.py", json.dumps(link.config())),
        )

    def _podman(self, *arguments: str) -> str:
        command = ["podman", "--root", self.store, "--runroot", self._runroot]
        command += ["--runtime", "runc", "--cgroup-manager", "cgroupfs"]
        command += ["--events-backend", "none", "--storage-driver", "overlay", *arguments]
        # Files, because the processes that podman starts in the background would keep pipes open.
        output = self._directory / "podman.log"
        with output.open("wb") as file:
            code = subprocess.run(
                command,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                check=False,
            ).returncode
        text = output.read_text(errors="replace")
        if code != 0:
            message = f"exit code {code} from podman {' '.join(arguments)}: {text}"
            raise ProgramError(message)
        return text

    def _inspect(self, form: str) -> str:
        return self._podman("inspect", "--format", form, self.name).splitlines()[-1]

    def _host_pid(self) -> int:
        return int(self._inspect("{{.State.Pid}}"))

    def _remove(self) -> None:
        with suppress(ProgramError):
            self._podman("rm", "--force", "--time", "0", self.name)
        with suppress(ProgramError):
            self._podman("rmi", "--force", _IMAGE)
        # podman binds its store onto itself.
        subprocess.run(
            ["umount", "--lazy", self.store / "overlay"], stderr=subprocess.DEVNULL, check=False
        )
        shutil.rmtree(self._runroot, ignore_errors=True)
        groups = Path("/sys/fs/cgroup")
        for group in (*groups.glob(self.name), *groups.glob(f"*/{self.name}")):
            for below, _, _ in os.walk(group, topdown=False):
                with suppress(OSError):
                    os.rmdir(below)
