"""The watched process: one inotify instance with many watches. Started as a script.

    watcher.py BYTES < paths

Reads that many bytes of paths, each with a NUL behind it, watches them all, prints `ready FD` or an
error, and waits until its stdin is closed: it ends with the process that started it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys

_IN_MODIFY = 0x2
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Watch, print `ready`, wait."""
    paths = sys.stdin.buffer.read(int(sys.argv[1])).split(b"\0")[:-1]
    fd = _libc.inotify_init1(os.O_CLOEXEC)
    if fd < 0:
        _fail("inotify_init1", "raise fs.inotify.max_user_instances")
    for path in paths:
        if _libc.inotify_add_watch(fd, path, _IN_MODIFY) < 0:
            no_room = ctypes.get_errno() == errno.ENOSPC
            advice = "raise fs.inotify.max_user_watches" if no_room else "is the tree whole?"
            _fail(os.fsdecode(path), advice)
    del paths
    sys.stdout.write(f"ready {fd}\n")
    sys.stdout.flush()
    sys.stdin.buffer.read()


def _fail(what: str, advice: str) -> None:
    sys.exit(print(f"{what}: {os.strerror(ctypes.get_errno())}; {advice}"))


if __name__ == "__main__":
    main()
