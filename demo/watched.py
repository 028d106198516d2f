"""The process that the demo checkpoints: inotify watches and fanotify marks, then silence."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_IN_ALL_EVENTS = 0xFFF
_FAN_MARK_ADD = 0x1
_FAN_OPEN = 0x20
_AT_FDCWD = -100

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def main() -> None:
    """Watch the paths after the first argument, make the file of that name, and wait."""
    ready, *paths = map(os.fsencode, sys.argv[1:])
    inotify = _checked(_libc.inotify_init1(os.O_CLOEXEC))
    for path in paths:
        _checked(_libc.inotify_add_watch(inotify, path, _IN_ALL_EVENTS))
    fanotify = _libc.fanotify_init(0, os.O_RDONLY)  # needs CAP_SYS_ADMIN
    if fanotify >= 0:
        mask = ctypes.c_uint64(_FAN_OPEN)
        for path in paths[:2]:
            _checked(_libc.fanotify_mark(fanotify, _FAN_MARK_ADD, mask, _AT_FDCWD, path))
    with open(ready, "wb"):
        pass
    signal.pause()


if __name__ == "__main__":
    main()
