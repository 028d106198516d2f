"""Idle containers: one task each, in a cgroup and a mount namespace of its own, on an overlay.

    containers.py CONTAINERS WATCHES DIRECTORY CGROUP

Makes them below two directories that exist, prints `ready` or an error, and waits until its stdin
is closed: the containers end with it. Started as a script.

An engine gives a container more than this (a pid namespace, seccomp, …), but nothing that the
service reads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

_CLONE_NEWNS = 0x20000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 1 << 18
_MNT_DETACH = 2
_IN_MODIFY = 0x2
_FIRST_UID = 200_000
_PR_SET_PDEATHSIG = 1
_DIRECTORIES = ("dev", "proc", "sys", "etc", "run", "tmp", "old")
_MOUNTS = (
    ("proc", "proc"),
    ("tmpfs", "dev"),
    ("tmpfs", "run"),
    ("tmpfs", "tmp"),
)
_BINDS = 20
"""The paths that an engine masks, and binds: 25 mounts altogether."""
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Make them, print `ready`, wait, end them."""
    containers, watches = map(int, sys.argv[1:3])
    place, cgroup = map(Path, sys.argv[3:5])
    lower = _lower(place, watches)
    pids: list[int] = []
    groups: list[Path] = []
    try:
        for number in range(containers):
            group = cgroup / f"c{number}"
            group.mkdir()
            groups.append(group)
            pids.append(_start(place / f"c{number}", lower, watches, group, _FIRST_UID + number))
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.buffer.read()
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            os.waitpid(pid, 0)
        for group in groups:
            group.rmdir()


def _lower(place: Path, watches: int) -> Path:
    # The image that all of them have.
    lower = place / "lower"
    for name in _DIRECTORIES:
        (lower / name).mkdir(parents=True)
    for number in range(watches):
        (lower / "srv" / f"d{number}").mkdir(parents=True)
        (lower / "srv" / f"d{number}" / "file").touch()
    return lower


def _start(place: Path, lower: Path, watches: int, group: Path, uid: int) -> int:
    for name in ("upper", "work", "root"):
        (place / name).mkdir(parents=True)
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(told)
            (group / "cgroup.procs").write_text("0")
            _enter(place, lower)
            os.setresuid(uid, uid, uid)  # the limit of inotify instances is each user's
            _call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            _watch(watches)
            os.write(tell, b"1")
            while True:
                signal.pause()
        except OSError as error:
            os.write(tell, f"{error}; raise the limits of fs.inotify?".encode())
        finally:
            os._exit(status)
    os.close(tell)
    said = os.read(told, 1000)
    os.close(told)
    if said != b"1":
        sys.stdout.write(f"{said.decode() or 'a container has ended'}\n")
        sys.exit(1)
    return pid


def _enter(place: Path, lower: Path) -> None:
    _call("unshare", _CLONE_NEWNS)
    _call("mount", b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)
    root = place / "root"
    options = f"lowerdir={lower},upperdir={place / 'upper'},workdir={place / 'work'}"
    _call("mount", b"overlay", os.fsencode(root), b"overlay", 0, options.encode())
    for kind, name in _MOUNTS:
        _call("mount", kind.encode(), os.fsencode(root / name), kind.encode(), 0, None)
    for number in range(_BINDS):
        masked = root / "run" / f"masked-{number}"
        masked.touch()
        _call("mount", b"/dev/null", os.fsencode(masked), None, _MS_BIND, None)
    os.chdir(root)
    _call("pivot_root", b".", b"old")
    os.chdir("/")
    _call("umount2", b"/old", _MNT_DETACH)


def _watch(watches: int) -> None:
    fd = _call("inotify_init1", os.O_CLOEXEC)
    for number in range(watches):
        _call("inotify_add_watch", fd, b"/srv/d%d/file" % number, _IN_MODIFY)


def _call(name: str, *arguments: object) -> int:
    result: int = getattr(_libc, name)(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


if __name__ == "__main__":
    main()
