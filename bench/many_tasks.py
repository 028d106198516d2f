"""A process and its children, which all have the same inotify instance: started as a script.

    many_tasks.py NUMBER PATH…

Watches the paths, forks NUMBER children that wait, prints `ready`, and ends with its stdin.
"""

from __future__ import annotations

import ctypes
import os
import sys

_IN_MODIFY = 0x2
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Watch, fork, wait."""
    number, *paths = sys.argv[1:]
    fd = _libc.inotify_init1(0)
    if fd < 0:
        sys.exit(f"inotify_init1: {os.strerror(ctypes.get_errno())}")
    for path in paths:
        if _libc.inotify_add_watch(fd, os.fsencode(path), _IN_MODIFY) < 0:
            sys.exit(f"{path}: {os.strerror(ctypes.get_errno())}")
    reader, writer = os.pipe()
    for _ in range(int(number)):
        if os.fork() == 0:
            os.close(writer)
            os.read(reader, 1)  # until the parent ends
            os._exit(0)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    main()
