"""A container's program that watches its own clock. Started as a script.

    clock.py FILE PATH…

Watches the paths, and then reads the clock every 2 ms. FILE, mapped, has two doubles: the number of
reads, and the longest time between two of them in seconds, which another process may reset.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import sys
import time

_IN_MODIFY = 0x2
_TICK_S = 0.002


def main() -> None:
    """Watch, tick."""
    libc = ctypes.CDLL(None, use_errno=True)
    file, *paths = sys.argv[1:]
    fd = libc.inotify_init1(os.O_CLOEXEC)
    for path in paths:
        if libc.inotify_add_watch(fd, os.fsencode(path), _IN_MODIFY) < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), path)
    with open(file, "r+b") as opened:
        shared = mmap.mmap(opened.fileno(), 16)
    looks = 0.0
    last = time.monotonic()
    while True:
        time.sleep(_TICK_S)
        now = time.monotonic()
        if now - last > struct.unpack_from("=d", shared, 8)[0]:
            struct.pack_into("=d", shared, 8, now - last)
        looks += 1
        struct.pack_into("=d", shared, 0, looks)
        last = now


if __name__ == "__main__":
    main()
