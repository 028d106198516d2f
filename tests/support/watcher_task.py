"""The program of a watching process: holds inotify watches and fanotify marks, answers requests.

`watcher.py` runs it as `python -I -S watcher_task.py CONFIG`, and never imports it. It must
continue in a root without Python, and after a restore by CRIU, with the modules in its memory. It
uses only the standard library.

Requests and replies are lines of JSON in ASCII; bytes (paths, names) are strings of Latin-1, so
that every byte comes through. A request is `{"do": NAME, ...}` and its reply `{"ok": VALUE}` or
`{"errno": N, "about": TEXT}`. They travel over a Unix socket, or over a pair of named pipes
(`requests`, `replies` in a directory), because CRIU can dump a process with those.

Sources: inotify(7), fanotify(7), fanotify_mark(2), unshare(2), pivot_root(2), mount(2),
user_namespaces(7); include/uapi/linux/inotify.h, fanotify.h, sched.h of Linux 6.18.
"""

from __future__ import annotations

import array
import ctypes
import json
import os
import signal
import socket
import stat
import struct
import sys
import threading
from typing import Any

_IN_DONT_FOLLOW = 0x02000000
_FAN_MARK_ADD = 0x01
_FAN_MARK_DONT_FOLLOW = 0x04
_FAN_MARK_KIND = {"inode": 0x00, "mount": 0x10, "filesystem": 0x100, "mntns": 0x110}
_FAN_NOFD = -1
_FAN_Q_OVERFLOW = 0x4000

_CLONE_NEWNS = 0x00020000
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWPID = 0x20000000
_MS_BIND = 0x1000
_MS_REC = 0x4000
_MS_PRIVATE = 0x40000
_MNT_DETACH = 2
_SYS_PIVOT_ROOT = 155 if os.uname().machine == "x86_64" else 41

# fs/namei.c: a path is given to the kernel in at most PATH_MAX bytes, the NUL included.
_PATH_MAX = 4096

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fanotify_mark.argtypes = (
    ctypes.c_int,
    ctypes.c_uint,
    ctypes.c_uint64,
    ctypes.c_int,
    ctypes.c_char_p,
)


def _checked(result: int, about: bytes | str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), about)
    return result


class SocketChannel:
    """Lines and descriptors over a connected Unix stream socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._rest = b""

    def receive(self) -> tuple[dict[str, Any], list[int]]:
        """The next request and the descriptors that came with it; EOFError at the end."""
        fds = array.array("i")
        while b"\n" not in self._rest:
            data, control, _, _ = self._sock.recvmsg(1 << 16, socket.CMSG_SPACE(4 * 4))
            for level, kind, content in control:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    fds.frombytes(content[: len(content) // 4 * 4])
            if not data:
                raise EOFError
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return json.loads(line), fds.tolist()

    def send(self, reply: dict[str, Any]) -> None:
        self._sock.sendall(json.dumps(reply).encode("ascii") + b"\n")

    def close(self) -> None:
        self._sock.close()

    def state(self) -> dict[str, Any]:
        """The configuration for a new program that continues with this channel after execve(2)."""
        self._sock.set_inheritable(True)
        return {"socket": self._sock.fileno()}


class PipeChannel:
    """Lines over two named pipes; `attached` files instead of descriptors."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        # O_RDWR: neither end ever sees an end of file, so the driver may open and close.
        self._requests = os.open(os.path.join(directory, "requests"), os.O_RDWR)
        self._replies = os.open(os.path.join(directory, "replies"), os.O_RDWR)
        self._rest = b""

    def receive(self) -> tuple[dict[str, Any], list[int]]:
        while b"\n" not in self._rest:
            self._rest += os.read(self._requests, 1 << 16)
        line, _, self._rest = self._rest.partition(b"\n")
        request = json.loads(line)
        names = request.get("attached", ())
        return request, [os.open(os.path.join(self._directory, n), os.O_RDWR) for n in names]

    def send(self, reply: dict[str, Any]) -> None:
        data = json.dumps(reply).encode("ascii") + b"\n"
        while data:
            data = data[os.write(self._replies, data) :]

    def close(self) -> None:
        os.close(self._requests)
        os.close(self._replies)

    def state(self) -> dict[str, Any]:
        return {"pipes": self._directory}


Channel = SocketChannel | PipeChannel


def _at(path: bytes) -> tuple[int | None, bytes]:
    """A directory descriptor and a name that lead to `path`; (None, path) where it is short.

    Paths beyond PATH_MAX are walked in pieces; the caller closes the descriptor.
    """
    if len(path) < _PATH_MAX:
        return None, path
    directory = os.open(b"/" if path.startswith(b"/") else b".", os.O_PATH | os.O_DIRECTORY)
    *parts, name = [part for part in path.split(b"/") if part]
    while parts:
        # 15 names of at most 255 bytes fit into PATH_MAX.
        piece, parts = b"/".join(parts[:15]), parts[15:]
        below = os.open(piece, os.O_PATH | os.O_DIRECTORY, dir_fd=directory)
        os.close(directory)
        directory = below
    return directory, name


class Task:
    """The requests, one method each (`do_NAME`), and their descriptors and children."""

    def __init__(self, channel: Channel, instances: dict[int, str]) -> None:
        self.channel = channel
        self.instances = instances
        """Descriptors of ours that events come from: "inotify" or "fanotify"."""
        self.attached: list[int] = []

    def serve(self) -> None:
        """Answer requests until the driver is gone."""
        while True:
            try:
                request, self.attached = self.channel.receive()
            except (EOFError, ConnectionError):
                os._exit(0)
            method = getattr(self, f"do_{request.pop('do')}")
            request.pop("attached", None)
            try:
                reply = {"ok": method(**request)}
            except OSError as error:
                about = error.filename if error.filename is not None else ""
                text = about.decode("latin-1") if isinstance(about, bytes) else str(about)
                reply = {"errno": error.errno, "about": text}
            for fd in self.attached:
                os.close(fd)
            self.channel.send(reply)

    # Watches

    def do_inotify_init(self, *, flags: int) -> int:
        fd = _checked(_libc.inotify_init1(flags), "inotify_init1")
        self.instances[fd] = "inotify"
        return fd

    def do_fanotify_init(self, *, flags: int, event_flags: int) -> int:
        fd = _checked(_libc.fanotify_init(flags, event_flags), "fanotify_init")
        self.instances[fd] = "fanotify"
        return fd

    def do_add_inotify(self, *, fd: int, path: str, mask: int) -> list[int]:
        """[wd, st_dev, st_ino]; the last two as stat(2) of the path says, just afterwards."""
        name = path.encode("latin-1")
        directory, name = _at(name)
        if directory is None:
            wd = _checked(_libc.inotify_add_watch(fd, name, mask), name)
        else:
            # There is no inotify_add_watch with a directory descriptor.
            here = os.open(".", os.O_PATH | os.O_DIRECTORY)
            os.fchdir(directory)
            wd = _libc.inotify_add_watch(fd, name, mask)
            os.fchdir(here)
            os.close(here)
            _checked(wd, name)
        return [wd, *self._seen(directory, name, follow=not mask & _IN_DONT_FOLLOW)]

    def do_remove_inotify(self, *, fd: int, wd: int) -> None:
        _checked(_libc.inotify_rm_watch(fd, wd), f"wd {wd}")

    def do_mark_fanotify(
        self, *, fd: int, path: str, mask: int, kind: str, flags: int
    ) -> list[int]:
        """[-1, st_dev, st_ino], as do_add_inotify."""
        directory, name = _at(path.encode("latin-1"))
        at = -100 if directory is None else directory  # AT_FDCWD
        how = (flags or _FAN_MARK_ADD) | _FAN_MARK_KIND[kind]
        _checked(_libc.fanotify_mark(fd, how, mask, at, name), name)
        return [-1, *self._seen(directory, name, follow=not how & _FAN_MARK_DONT_FOLLOW)]

    def _seen(self, directory: int | None, name: bytes, *, follow: bool) -> list[int]:
        status = os.stat(name, dir_fd=directory, follow_symlinks=follow)
        if directory is not None:
            os.close(directory)
        return [status.st_dev, status.st_ino]

    def do_add_many(self, *, fd: int, mask: int) -> int:
        """Watch the NUL-separated paths of the first attached file; answers in the second.

        An answer is wd, st_dev, st_ino as `<iQQ`, in the order of the paths. Stops with the
        error of the first path that cannot be watched.
        """
        paths_fd, answers_fd = self.attached
        with open(paths_fd, "rb", closefd=False) as file:
            paths = file.read().split(b"\0")
        add, look, pack = _libc.inotify_add_watch, os.lstat, struct.Struct("<iQQ").pack
        with open(answers_fd, "wb", closefd=False) as answers:
            for path in paths:
                wd = _checked(add(fd, path, mask), path)
                status = look(path)
                answers.write(pack(wd, status.st_dev, status.st_ino))
        return len(paths)

    def do_events(self) -> list[dict[str, Any]]:
        """Everything that has happened since the last time; never waits."""
        found: list[dict[str, Any]] = []
        for fd, kind in self.instances.items():
            parse = self._inotify_events if kind == "inotify" else self._fanotify_events
            while True:
                try:
                    data = os.read(fd, 1 << 16)
                except BlockingIOError:
                    break
                found += parse(fd, data)
        return found

    @staticmethod
    def _inotify_events(fd: int, data: bytes) -> list[dict[str, Any]]:
        events, offset = [], 0
        while offset < len(data):
            wd, mask, cookie, length = struct.unpack_from("=iIII", data, offset)
            name = data[offset + 16 : offset + 16 + length].rstrip(b"\0").decode("latin-1")
            events.append({"fd": fd, "wd": wd, "mask": mask, "cookie": cookie, "name": name})
            offset += 16 + length
        return events

    @staticmethod
    def _fanotify_events(fd: int, data: bytes) -> list[dict[str, Any]]:
        events, offset = [], 0
        while offset < len(data):
            length, _, _, head, mask, file, pid = struct.unpack_from("=IBBHQii", data, offset)
            event = {"fd": fd, "mask": mask, "pid": pid, "st_dev": None, "st_ino": None}
            if file != _FAN_NOFD and not mask & _FAN_Q_OVERFLOW:
                status = os.fstat(file)
                event |= {"st_dev": status.st_dev, "st_ino": status.st_ino}
                os.close(file)
            event["info"] = data[offset + head : offset + length].decode("latin-1")
            events.append(event)
            offset += length
        return events

    # Files and processes

    def do_open(self, *, path: str, flags: int) -> int:
        return os.open(path.encode("latin-1"), flags, 0o644)

    def do_close(self, *, fd: int) -> None:
        os.close(fd)
        self.instances.pop(fd, None)

    def do_rename(self, *, old: str, new: str) -> None:
        os.rename(old.encode("latin-1"), new.encode("latin-1"))

    def do_unlink(self, *, path: str) -> None:
        name = path.encode("latin-1")
        if stat.S_ISDIR(os.lstat(name).st_mode):
            os.rmdir(name)
        else:
            os.unlink(name)

    def do_write(self, *, path: str, data: str) -> None:
        fd = os.open(path.encode("latin-1"), os.O_WRONLY | os.O_CREAT, 0o644)
        os.write(fd, data.encode("latin-1"))
        os.close(fd)

    def do_mkdir(self, *, path: str) -> None:
        os.mkdir(path.encode("latin-1"))

    def do_chroot(self, *, path: str) -> None:
        os.chroot(path.encode("latin-1"))
        os.chdir("/")

    def do_chdir(self, *, path: str) -> None:
        os.chdir(path.encode("latin-1"))

    def do_mount(self, *, source: str, target: str, fstype: str, flags: int, data: str) -> None:
        where = target.encode("latin-1")
        _mount(source.encode("latin-1"), where, fstype.encode(), flags, data.encode("latin-1"))

    def do_unmount(self, *, target: str) -> None:
        name = target.encode("latin-1")
        _checked(_libc.umount2(name, _MNT_DETACH), name)

    def do_unshare_mounts(self) -> None:
        """A mount namespace of its own, from which nothing spreads."""
        _checked(_libc.unshare(_CLONE_NEWNS), "unshare")
        _mount(b"none", b"/", b"none", _MS_REC | _MS_PRIVATE, b"")

    def do_threads(self, *, count: int) -> list[int]:
        """Start threads that sleep for ever; their ids, as this pid namespace counts."""
        started = [
            threading.Thread(target=threading.Event().wait, daemon=True) for _ in range(count)
        ]
        for thread in started:
            thread.start()
        return [thread.native_id or 0 for thread in started]

    def do_fork(self, *, pipes: str | None) -> int:
        """Fork a child which inherits all, and serves the attached socket or the pipes."""
        pid = os.fork()
        if pid == 0:
            self.channel.close()
            if pipes is None:
                self.channel = SocketChannel(socket.socket(fileno=self.attached.pop()))
            else:
                self.channel = PipeChannel(pipes)
            for fd in self.attached:
                os.close(fd)
            self.channel.send({"ok": os.getpid()})
            self.serve()
        return pid

    def do_exec(self) -> None:
        """Become a new process image under the same pid; the watches stay."""
        state = self.channel.state()
        for fd in self.instances:
            os.set_inheritable(fd, True)
        config = {**state, "instances": self.instances}
        os.execv(sys.executable, [*sys.orig_argv[:-1], json.dumps(config)])


def _mount(source: bytes, target: bytes, fstype: bytes, flags: int, data: bytes) -> None:
    _checked(_libc.mount(source, target, fstype, ctypes.c_ulong(flags), data), target)


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


def _unshare(config: dict[str, Any], channel: Channel) -> None:
    namespaces: set[str] = set(config.get("unshare", ()))
    uid, gid = os.getuid(), os.getgid()
    flags = (
        (_CLONE_NEWUSER if "user" in namespaces else 0)
        | (_CLONE_NEWNS if "mount" in namespaces else 0)
        | (_CLONE_NEWPID if "pid" in namespaces else 0)
    )
    if flags:
        _checked(_libc.unshare(flags), "unshare")
    if "user" in namespaces:
        # user_namespaces(7): one's own id may be mapped without any right in the parent.
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"0 {uid} 1")
        _write("/proc/self/gid_map", f"0 {gid} 1")
    if "mount" in namespaces:
        _mount(b"none", b"/", b"none", _MS_REC | _MS_PRIVATE, b"")
    if "pid" in namespaces:
        child = os.fork()
        if child:
            # The new namespace begins with the child; this process only waits for its end.
            channel.close()
            os.waitpid(child, 0)
            os._exit(0)


def _enter(config: dict[str, Any]) -> None:
    if "rootfs" in config:
        # pivot_root(2), "pivot_root(".", ".")": the new root must be a mount point.
        rootfs = config["rootfs"].encode("latin-1")
        for path in config.get("binds", ()):
            bound = path.encode("latin-1")
            _mount(bound, rootfs + bound, b"none", _MS_BIND, b"")
        _mount(rootfs, rootfs, b"none", _MS_BIND | _MS_REC, b"")
        os.chdir(rootfs)
        _checked(_libc.syscall(_SYS_PIVOT_ROOT, b".", b"."), rootfs)
        _checked(_libc.umount2(b".", _MNT_DETACH), rootfs)
        os.chdir("/")
        if "pid" in config["unshare"] and os.path.isdir("/proc"):
            _mount(b"proc", b"/proc", b"proc", 0, b"")
    if "chroot" in config:
        os.chroot(config["chroot"].encode("latin-1"))
        os.chdir("/")
    if "cwd" in config:
        os.chdir(config["cwd"].encode("latin-1"))


def main() -> None:
    """Set up the process by CONFIG, send our pid, and serve."""
    config = json.loads(sys.argv[1])
    channel: Channel
    if "socket" in config:
        channel = SocketChannel(socket.socket(fileno=config["socket"]))
    else:
        channel = PipeChannel(config["pipes"])
    # Ctrl-C in a terminal is for the driver, which ends us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _unshare(config, channel)
        _enter(config)
    except OSError as error:
        channel.send({"errno": error.errno, "about": str(error)})
        return
    instances = {int(fd): kind for fd, kind in config.get("instances", {}).items()}
    channel.send({"ok": os.getpid()})
    Task(channel, instances).serve()


if __name__ == "__main__":
    main()
