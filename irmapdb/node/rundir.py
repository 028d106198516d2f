"""Manages the files of the service in /run/irmapdb, a directory for root only.

warm.lock            held while a service runs
warm.pid             its `PID STARTTIME`
warm.fifo            for the requests of the hook's script
status.json          for `irmapdb warm --status`
image-PID-STARTTIME  the irmap-cache that was proved last for the container of that root task
work-PID-STARTTIME/  for making the next one
reply-…              FIFOs of the hook's script, each for one reply
hook-…               marks of the hook's script, each for a dump that has been served
hook.log             the last runs of the hook; irmapdb.criu.hook_runs
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import stat
import time

from irmapdb import files
from irmapdb.criu.hook_script import RUN_DIRECTORY
from irmapdb.errors import FileError
from irmapdb.model import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path
    from typing import Any

    from irmapdb.kernel.proc.containers import Container

__all__ = ["RUN_DIRECTORY", "RunDirectory", "make_private"]

_STATUS = "status.json"
_OF_CONTAINER = re.compile(r"(?:image|work)-(\d+)-(\d+)")
_REPLY = re.compile(r"reply-\d+-\d+")
_OF_SCRIPTS = re.compile(r"reply-\d+-\d+|hook-\d+-\d+-\d+")
_OF_SCRIPTS_AGE_S = 60.0
_PRIVATE = 0o700
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_STATUS_LIMIT_BYTES = 64 << 20


def make_private(path: Path) -> None:
    """Make a directory only for us, or check that it is one. FileError if others can use it."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        message = f"cannot make {printable(path)}: {error.strerror}"
        raise FileError(message, advice="run as root") from error
    if not stat.S_ISDIR(found.st_mode):
        raise FileError(f"{printable(path)}: no directory", advice="move it away")
    if found.st_uid != os.geteuid():
        raise FileError(
            f"{printable(path)}: belongs to user {found.st_uid}",
            advice="remove it, or run as its owner",
        )
    if found.st_mode & _WRITABLE_BY_OTHERS:
        raise FileError(
            f"{printable(path)}: others may write to it",
            advice="look at its content, and remove it",
        )
    if stat.S_IMODE(found.st_mode) != _PRIVATE:
        path.chmod(_PRIVATE)  # a kubelet makes it readable for all users


class RunDirectory:
    """The directory, for one service or for its readers."""

    def __init__(self, path: Path, *, make: bool = True) -> None:
        if make:
            make_private(path)
        self.path = path

    def is_waiting(self, name: str) -> bool:
        """Whether a script still waits at its FIFO."""
        try:
            os.close(self.open_reply(name))
        except (OSError, ValueError):
            return False
        return True

    def open_reply(self, name: str) -> int:
        """Open the FIFO of a script. ValueError, OSError: it does not belong to a script."""
        if not _REPLY.fullmatch(name):
            raise ValueError(f"{name[:80]!r} is no name for a reply")
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(self.path / name, flags)  # ENXIO: the script does not wait any more
        if not stat.S_ISFIFO(os.fstat(fd).st_mode):
            os.close(fd)
            raise ValueError(f"{name} is no FIFO")
        return fd

    def remove_reply(self, name: str) -> None:
        """Remove the FIFO of `open_reply`: the script, which has it open, need not."""
        (self.path / name).unlink(missing_ok=True)

    def image(self, pid: int, starttime: int) -> Path:
        """The irmap-cache that was proved last for the container of a root task."""
        return self.path / f"image-{pid}-{starttime}"

    @contextlib.contextmanager
    def work(self, container: Container) -> Iterator[Path]:
        """An empty directory to work in, which is removed at the end."""
        path = self.path / f"work-{container.pid}-{container.starttime}"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(mode=0o700)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def remove_work(self) -> None:
        """Remove the directories of `work` that a killed process has left. No other may work."""
        for path in self.path.glob("work-*"):
            shutil.rmtree(path, ignore_errors=True)

    def clean(self, alive: Collection[tuple[int, int]]) -> None:
        """Remove the files of ended root tasks, and old files of scripts."""
        for name in os.listdir(self.path):
            path = self.path / name
            if found := _OF_CONTAINER.fullmatch(name):
                if (int(found[1]), int(found[2])) in alive:
                    continue
            elif not (_OF_SCRIPTS.fullmatch(name) and _is_older(path, _OF_SCRIPTS_AGE_S)):
                continue
            with contextlib.suppress(OSError):
                if name.startswith("work-"):
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)

    def write_status(self, document: dict[str, Any]) -> None:
        """Replace the status for `--status`."""
        files.replace_whole(self.path / _STATUS, json.dumps(document).encode() + b"\n")

    def read_status(self) -> dict[str, Any] | None:
        """The last written status; None if there is none."""
        data = files.read_if_there(self.path / _STATUS, limit_bytes=_STATUS_LIMIT_BYTES)
        if data is None:
            return None
        try:
            document = json.loads(data)
        except ValueError as error:
            message = f"{printable(self.path / _STATUS)}: not JSON: {error}"
            raise FileError(message, advice="remove it") from error
        return document if isinstance(document, dict) else None


def _is_older(path: Path, age_s: float) -> bool:
    try:
        return time.time() - path.lstat().st_mtime > age_s
    except OSError:
        return False
