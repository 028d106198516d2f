"""Run a command with system calls denied, as the seccomp profile of a container does.

`python -m tests.support.sandbox NAME=ERRNO… -- COMMAND…`. seccomp(2), include/uapi/linux/filter.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

__all__ = ["NUMBERS", "deny"]

_ANYWHERE = {"pidfd_open": 434, "openat2": 437}
_BY_MACHINE = {
    "x86_64": {
        "fanotify_init": 300,
        "fanotify_mark": 301,
        "fstatfs": 138,
        "inotify_init1": 294,
        "ioctl": 16,
        "kcmp": 312,
        "name_to_handle_at": 303,
        "open_by_handle_at": 304,
        "ptrace": 101,
        "sched_setaffinity": 203,
        "statx": 332,
    },
    "aarch64": {
        "fanotify_init": 262,
        "fanotify_mark": 263,
        "fstatfs": 44,
        "inotify_init1": 26,
        "ioctl": 29,
        "kcmp": 272,
        "name_to_handle_at": 264,
        "open_by_handle_at": 265,
        "ptrace": 117,
        "sched_setaffinity": 122,
        "statx": 291,
    },
}
NUMBERS = _ANYWHERE | _BY_MACHINE.get(os.uname().machine, {})
"""System calls that can be denied; two alone on a machine that the table lacks."""

_LOAD, _SKIP_UNLESS, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _FILTER = 22, 38, 2


def deny(answers: dict[int, int]) -> None:
    """From now on these system calls, by number, fail with these error numbers. For ever."""
    code = [struct.pack("=HBBI", _LOAD, 0, 0, 0)]
    for number, answer in answers.items():
        code.append(struct.pack("=HBBI", _SKIP_UNLESS, 0, 1, number))
        code.append(struct.pack("=HBBI", _RETURN, 0, 0, _ERRNO | answer))
    code.append(struct.pack("=HBBI", _RETURN, 0, 0, _ALLOW))
    block = ctypes.create_string_buffer(b"".join(code))
    program = ctypes.create_string_buffer(
        struct.pack("=H6xQ", len(code), ctypes.addressof(block)), 16
    )
    libc = ctypes.CDLL(None, use_errno=True)
    for words in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _FILTER, ctypes.c_void_p(ctypes.addressof(program)), 0, 0),
    ):
        if libc.prctl(*words):
            code_of = ctypes.get_errno()
            raise OSError(code_of, os.strerror(code_of))


def main() -> None:
    """Deny, then become the command."""
    split = sys.argv.index("--")
    pairs = (word.split("=") for word in sys.argv[1:split])
    deny({NUMBERS[name]: getattr(errno, code) for name, code in pairs})
    os.execvp(sys.argv[split + 1], sys.argv[split + 1 :])


if __name__ == "__main__":
    main()
