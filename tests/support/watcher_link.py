"""The driver's end of the line to a watching process: a Unix socket, or two named pipes.

The other end and the form of the lines are in `watcher_task.py`. Sources: unix(7), fifo(7).
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["Link", "PipeLink", "SocketLink", "TaskDiedError"]


_ENDED = "the watching process has ended"


class TaskDiedError(Exception):
    """The process ended, or does not answer, when it should."""


class SocketLink:
    """The driver's end of a task's socket."""

    def __init__(self) -> None:
        self._ours, self.theirs = socket.socketpair()
        # With credentials the first message tells the task's pid as *we* count it.
        self._ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._rest = b""
        self.sender_pid: int | None = None

    def config(self) -> dict[str, Any]:
        return {"socket": self.theirs.fileno()}

    def started(self) -> None:
        self.theirs.close()

    def send(self, request: Mapping[str, Any], attached: Sequence[int]) -> None:
        line = json.dumps(request).encode("ascii") + b"\n"
        try:
            sent = socket.send_fds(self._ours, [line], list(attached))
            self._ours.sendall(line[sent:])
        except BrokenPipeError as error:
            raise TaskDiedError(_ENDED) from error

    def receive(self, timeout_s: float, _pidfd: int) -> bytes:
        self._ours.settimeout(timeout_s)
        while b"\n" not in self._rest:
            try:
                data, control, _, _ = self._ours.recvmsg(1 << 16, socket.CMSG_SPACE(12))
            except ConnectionError:
                data, control = b"", []
            if not data:
                raise TaskDiedError(_ENDED)
            for level, kind, content in control:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                    self.sender_pid = struct.unpack("3i", content)[0]
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def close(self) -> None:
        self._ours.close()
        self.theirs.close()


class PipeLink:
    """The driver's ends of the two named pipes in a directory."""

    sender_pid = None

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self._fds = []
        for name in ("requests", "replies"):
            os.mkfifo(directory / name, 0o600)
            # O_RDWR: opening does not wait for the other side, nor does a restart of it matter.
            self._fds.append(os.open(directory / name, os.O_RDWR))
        self._rest = b""

    def config(self) -> dict[str, Any]:
        return {"pipes": os.fspath(self.directory)}

    def started(self) -> None:
        """Nothing to let go of: the task opens the pipes by name."""

    def send(self, request: Mapping[str, Any], attached: Sequence[int]) -> None:
        # In place of descriptors the task gets names that lead to the same files.
        links = [self.directory / f"attached.{fd}" for fd in attached]
        for fd, link in zip(attached, links, strict=True):
            link.unlink(missing_ok=True)
            link.symlink_to(f"/proc/{os.getpid()}/fd/{fd}")
        line = json.dumps({**request, "attached": [link.name for link in links]})
        data = line.encode("ascii") + b"\n"
        while data:
            data = data[os.write(self._fds[0], data) :]

    def receive(self, timeout_s: float, pidfd: int) -> bytes:
        poll = select.poll()
        poll.register(self._fds[1], select.POLLIN)
        if pidfd >= 0:
            # A pipe that we hold open ourselves does not tell of the end of the other side.
            poll.register(pidfd, select.POLLIN)
        while b"\n" not in self._rest:
            ready = [fd for fd, _ in poll.poll(timeout_s * 1000)]
            if not ready:
                raise TimeoutError
            if self._fds[1] not in ready:
                raise TaskDiedError(_ENDED)
            self._rest += os.read(self._fds[1], 1 << 16)
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()


Link = SocketLink | PipeLink
