"""Real processes that watch real files, driven from a test, the demo or the benchmark.

    with Watcher() as watcher:
        watched = watcher.add_inotify(path, IN_MODIFY)
        child = watcher.fork()

`Watched` is the truth to compare with: the path of the request, and its lstat(2) when the watch was
added. It comes from the watching process itself, in its own root and namespaces; no code of irmapdb
takes part. The process is a Python program (`watcher_task.py`) that answers requests over a socket.
It ends with the socket, so none outlives the driver.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import struct
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tests.support.notify import (
    FAN_MODIFY,
    FAN_OPEN,
    IN_ATTRIB,
    IN_MODIFY,
    FanotifyEvent,
    InotifyEvent,
    Watched,
)
from tests.support.watcher_link import PipeLink, SocketLink, TaskDiedError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from tests.support.watcher_link import Link

__all__ = ["Task", "TaskDiedError", "WatchLimitError", "Watched", "Watcher"]

_IN_NONBLOCK = os.O_NONBLOCK
_FAN_NONBLOCK = 0x02

_PROGRAM = Path(__file__).with_name("watcher_task.py")
_PYTHON_FLAGS = ("-I", "-S", "-W", "ignore")
_TIMEOUT_S = 60.0
_ANSWER = struct.Struct("<iQQ")

AnyPath = bytes | str | os.PathLike[str] | os.PathLike[bytes]


class WatchLimitError(Exception):
    """The kernel's limit on watches or instances is reached; the message names the sysctl."""


@contextmanager
def _limit(code: int, name: str) -> Iterator[None]:
    """Turn an OSError of `code` into one that names the limit `name` below /proc/sys/fs."""
    try:
        yield
    except OSError as error:
        if error.errno != code:
            raise
        value = Path("/proc/sys/fs", name).read_text().strip()
        message = f"fs.{name.replace('/', '.')} = {value} is used up, by all tasks of this user"
        raise WatchLimitError(message) from error


def _latin(path: AnyPath) -> str:
    return os.fsencode(path).decode("latin-1")


class Task:
    """One process under control: its pid, its requests, its truth."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._pidfd = -1
        self._instance: dict[str, int] = {}
        self.own_pid: int = self._reply(_TIMEOUT_S)
        """The pid as its own pid namespace counts."""
        self.pid = link.sender_pid or self.own_pid
        """The pid as we count."""
        self._pidfd = os.pidfd_open(self.pid)
        self.children: list[Task] = []
        self.watched: list[Watched] = []
        """The truth: every watch added through this object, in order."""

    def _reply(self, timeout_s: float) -> Any:  # noqa: ANN401  # each request has its own type
        reply = json.loads(self._link.receive(timeout_s, self._pidfd))
        if "errno" in reply:
            code = reply["errno"]
            raise OSError(code, os.strerror(code), reply["about"])
        return reply["ok"]

    def ask(
        self,
        do: str,
        /,
        *,
        attached: Sequence[int] = (),
        timeout_s: float = _TIMEOUT_S,
        **rest: object,
    ) -> Any:  # noqa: ANN401  # each request has its own type
        """Send one request of watcher_task.py and return its value; OSError as the task got it."""
        self._link.send({"do": do, **rest}, attached)
        try:
            return self._reply(timeout_s)
        except TimeoutError as error:
            message = f"task {self.pid} (state {self.state()}) gave no answer to {do}"
            raise TaskDiedError(message) from error

    # Watches

    def inotify(self, *, flags: int = _IN_NONBLOCK) -> int:
        """A further inotify instance; its descriptor in the task."""
        with _limit(errno.EMFILE, "inotify/max_user_instances"):
            return int(self.ask("inotify_init", flags=flags))

    def fanotify(self, *, flags: int = 0, event_flags: int = os.O_RDONLY) -> int:
        """A further fanotify group; its descriptor in the task."""
        flags |= _FAN_NONBLOCK
        with _limit(errno.EMFILE, "fanotify/max_user_groups"):
            return int(self.ask("fanotify_init", flags=flags, event_flags=event_flags))

    def _usual(self, kind: str, make: Callable[[], int]) -> int:
        if kind not in self._instance:
            self._instance[kind] = make()
        return self._instance[kind]

    def add_inotify(
        self, path: AnyPath, mask: int = IN_MODIFY | IN_ATTRIB, *, fd: int | None = None
    ) -> Watched:
        """Watch a path of any length; on the task's usual instance, or on `fd`."""
        fd = self._usual("inotify", self.inotify) if fd is None else fd
        with _limit(errno.ENOSPC, "inotify/max_user_watches"):
            wd, st_dev, st_ino = self.ask("add_inotify", fd=fd, path=_latin(path), mask=mask)
        watched = Watched("inotify", fd, wd, os.fsencode(path), mask, st_dev, st_ino)
        self.watched.append(watched)
        return watched

    def add_fanotify(
        self,
        path: AnyPath,
        mask: int = FAN_MODIFY | FAN_OPEN,
        what: str = "inode",
        *,
        fd: int | None = None,
        flags: int = 0,
    ) -> Watched:
        """Mark an inode, a "mount" or a "filesystem"; `flags` instead of FAN_MARK_ADD."""
        fd = self._usual("fanotify", self.fanotify) if fd is None else fd
        with _limit(errno.ENOSPC, "fanotify/max_user_marks"):
            wd, st_dev, st_ino = self.ask(
                "mark_fanotify", fd=fd, path=_latin(path), mask=mask, kind=what, flags=flags
            )
        watched = Watched("fanotify", fd, wd, os.fsencode(path), mask, st_dev, st_ino, what)
        self.watched.append(watched)
        return watched

    def add_many(
        self, paths: Iterable[AnyPath], mask: int = IN_MODIFY, *, fd: int | None = None
    ) -> list[Watched]:
        """inotify watches on many paths in one request: 100,000 take about a second.

        Not for symbolic links, nor for paths of PATH_MAX bytes and more. After an error the
        watches before the path that it names are there, but are not recorded.
        """
        fd = self._usual("inotify", self.inotify) if fd is None else fd
        names = [os.fsencode(path) for path in paths]
        if not names:
            return []
        listed, answers = os.memfd_create("paths"), os.memfd_create("answers")
        with open(listed, "r+b") as list_file, open(answers, "r+b") as answer_file:
            list_file.write(b"\0".join(names))
            list_file.flush()
            list_file.seek(0)
            with _limit(errno.ENOSPC, "inotify/max_user_watches"):
                self.ask("add_many", fd=fd, mask=mask, attached=(listed, answers), timeout_s=600)
            answer_file.seek(0)
            numbers = _ANSWER.iter_unpack(answer_file.read())
        added = [
            Watched("inotify", fd, wd, name, mask, st_dev, st_ino)
            for name, (wd, st_dev, st_ino) in zip(names, numbers, strict=True)
        ]
        self.watched += added
        return added

    def remove(self, watched: Watched) -> None:
        """Remove an inotify watch."""
        self.ask("remove_inotify", fd=watched.fd, wd=watched.wd)
        self.watched.remove(watched)

    def events(self) -> list[InotifyEvent | FanotifyEvent]:
        """Everything that its watches saw since the last time."""
        found: list[InotifyEvent | FanotifyEvent] = []
        for event in self.ask("events"):
            if "wd" in event:
                found.append(InotifyEvent(**event | {"name": event["name"].encode("latin-1")}))
            else:
                found.append(FanotifyEvent(**event | {"info": event["info"].encode("latin-1")}))
        return found

    def hears(self, watched: Watched, act: Callable[[], object]) -> bool:
        """Whether `watched`, and no other watch of its instance, reports an event of `act`."""
        self.events()
        act()
        events = [event for event in self.events() if event.fd == watched.fd]
        if watched.kind == "inotify":
            return {e.wd for e in events if isinstance(e, InotifyEvent)} == {watched.wd}
        return {e.st_ino for e in events if isinstance(e, FanotifyEvent)} == {watched.st_ino}

    def hears_any(self, fd: int, act: Callable[[], object]) -> bool:
        """Whether an instance reports anything when `act` is done."""
        self.events()
        act()
        return any(event.fd == fd for event in self.events())

    # Files, as the process sees them

    def open(self, path: AnyPath, flags: int = os.O_RDONLY) -> int:
        """Keep a file open; its descriptor in the task."""
        return int(self.ask("open", path=_latin(path), flags=flags))

    def close_fd(self, fd: int) -> None:
        """Close any descriptor of the task."""
        self.ask("close", fd=fd)
        self._instance = {kind: own for kind, own in self._instance.items() if own != fd}
        self.watched = [watched for watched in self.watched if watched.fd != fd]

    def rename(self, old: AnyPath, new: AnyPath) -> None:
        self.ask("rename", old=_latin(old), new=_latin(new))

    def unlink(self, path: AnyPath) -> None:
        """Remove a file or an empty directory."""
        self.ask("unlink", path=_latin(path))

    def write(self, path: AnyPath, data: bytes = b"x") -> None:
        """Write into a file from its beginning; it is made where needed."""
        self.ask("write", path=_latin(path), data=data.decode("latin-1"))

    def mkdir(self, path: AnyPath) -> None:
        self.ask("mkdir", path=_latin(path))

    def chroot(self, path: AnyPath) -> None:
        """Change root and working directory; open files stay open."""
        self.ask("chroot", path=_latin(path))

    def chdir(self, path: AnyPath) -> None:
        self.ask("chdir", path=_latin(path))

    def mount(
        self, source: AnyPath, target: AnyPath, fstype: str, *, flags: int = 0, data: str = ""
    ) -> None:
        """mount(2) in the task's mount namespace."""
        self.ask(
            "mount",
            source=_latin(source),
            target=_latin(target),
            fstype=fstype,
            flags=flags,
            data=data,
        )

    def unmount(self, target: AnyPath) -> None:
        """umount2(2) with MNT_DETACH in the task's mount namespace."""
        self.ask("unmount", target=_latin(target))

    def unshare_mounts(self) -> None:
        """A mount namespace of its own, from which nothing spreads."""
        self.ask("unshare_mounts")

    # Processes

    def threads(self, count: int) -> list[int]:
        """Start threads that sleep; their ids as the task's pid namespace counts."""
        return list(self.ask("threads", count=count))

    def fork(self) -> Task:
        """A child, which inherits all descriptors and so shares all instances."""
        link = self._child_link()
        pipes = None
        attached: tuple[int, ...] = ()
        if isinstance(link, SocketLink):
            attached = (link.theirs.fileno(),)
        else:
            pipes = os.fspath(link.directory)
        self.ask("fork", pipes=pipes, attached=attached)
        link.started()
        child = Task(link)
        child._instance = dict(self._instance)
        child.watched = list(self.watched)
        self.children.append(child)
        return child

    def _child_link(self) -> Link:
        if isinstance(self._link, SocketLink):
            return SocketLink()
        return PipeLink(self._link.directory / f"child-{len(self.children)}")

    def exec(self) -> None:
        """Start its program anew under the same pid: another memory, the same watches."""
        self.ask("exec")

    def state(self) -> str:
        """The letter of /proc/PID/stat: R, S, T, t, Z…; X where it is gone."""
        try:
            text = Path(f"/proc/{self.pid}/stat").read_text(errors="replace")
        except FileNotFoundError:
            return "X"
        return text.rpartition(") ")[2][0]

    def signal(self, number: int) -> None:
        """Send a signal; nothing happens where the task is gone."""
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            return

    def wait_dead(self, timeout_s: float = _TIMEOUT_S) -> None:
        """Wait until the process has ended; as a zombie it has."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        if not poll.poll(timeout_s * 1000):
            message = f"task {self.pid} (state {self.state()}) did not end"
            raise TaskDiedError(message)

    def kill(self) -> None:
        """End this process, and those forked from it through this object."""
        for task in self._tree():
            task.signal(signal.SIGKILL)
        for task in self._tree():
            task.wait_dead()

    def close(self) -> None:
        """kill(), and close the driver's end."""
        self.kill()
        self._release()

    def _tree(self) -> Iterator[Task]:
        yield self
        for child in self.children:
            yield from child._tree()

    def _release(self) -> None:
        for task in self._tree():
            task._link.close()
            os.close(task._pidfd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Watcher(Task):
    """A new process without watches.

    `unshare` is of "user", "mount" and "pid"; `rootfs` is a directory to pivot_root into (with
    "mount"), with the directories `binds` bound there under their own paths; `chroot` is one to
    chroot into; `cwd` is looked up there; `children` are forked at once.
    With `pipes`, a directory, the process has no socket, just two named pipes in it: CRIU can
    dump such a one. It is a session leader and has no terminal.
    """

    def __init__(
        self,
        *,
        unshare: Collection[str] = (),
        rootfs: AnyPath | None = None,
        binds: Iterable[AnyPath] = (),
        chroot: AnyPath | None = None,
        cwd: AnyPath | None = None,
        children: int = 0,
        pipes: Path | None = None,
    ) -> None:
        if pipes is not None and "pid" in unshare:
            # Over a pipe it can only tell its own idea of its pid: 1, which here is init.
            raise ValueError("a process in a pid namespace of its own needs a socket")
        link = SocketLink() if pipes is None else PipeLink(pipes)
        config = {**link.config(), "unshare": sorted(unshare), "binds": list(map(_latin, binds))}
        for name, path in (("rootfs", rootfs), ("chroot", chroot), ("cwd", cwd)):
            if path is not None:
                config[name] = _latin(path)
        self.process = subprocess.Popen(
            # Not the one of an environment: it is started again where there is none.
            [os.path.realpath(sys.executable), *_PYTHON_FLAGS, _PROGRAM, json.dumps(config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=None if pipes is None else subprocess.DEVNULL,
            pass_fds=(link.theirs.fileno(),) if isinstance(link, SocketLink) else (),
            start_new_session=True,
        )
        self._restored = False
        link.started()
        try:
            super().__init__(link)
        except BaseException:
            link.close()
            self.process.kill()
            self.process.wait()
            raise
        for _ in range(children):
            self.fork()

    def kill(self) -> None:
        super().kill()
        self._reap()

    def _reap(self) -> None:
        self.process.wait()
        if self._restored:
            with suppress(ChildProcessError):
                os.waitpid(self.pid, 0)

    def await_dumped(self) -> None:
        """Wait until CRIU has ended this process and its children, so that their pids are free."""
        for task in self._tree():
            task.wait_dead()
        self._reap()
        # The children are reaped by whom they were left to (init), which nothing reports.
        deadline = time.monotonic() + _TIMEOUT_S
        while any(task.state() != "X" for task in self._tree()):
            if time.monotonic() > deadline:
                message = f"no process reaps the children of {self.pid}"
                raise TaskDiedError(message)
            time.sleep(0.001)

    def not_restored(self) -> None:
        """Reap the task that a failed `criu restore --restore-sibling` may have left."""
        with suppress(ChildProcessError):
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)  # is it a child?
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def restored(self) -> None:
        """Continue with the tasks of `criu restore --restore-sibling`, under the same pids.

        OSError where one of the processes is not there.
        """
        self._restored = True
        for task in self._tree():
            os.close(task._pidfd)
            task._pidfd = os.pidfd_open(task.pid)
