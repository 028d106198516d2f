"""Small programs that watch files, for kinds of processes that a `Watcher` cannot be."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["program"]

_HEAD = """\
import ctypes, os, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
def inotify(*paths):
    fd = libc.inotify_init1(0)
    assert fd >= 0, os.strerror(ctypes.get_errno())
    for path in paths:
        assert libc.inotify_add_watch(fd, os.fsencode(path), 2) > 0, ctypes.get_errno()
    return fd
"""
_TAIL = """
print("ready", flush=True)
sys.stdin.read()
os._exit(0)
"""


@contextmanager
def program(
    code: str,
    *arguments: str | bytes | os.PathLike[str],
    before: Sequence[str | os.PathLike[str]] = (),
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs Python code, and continues when it has run; the process lives until the end.

    The code has `inotify(*paths)`, `libc`, and the arguments in `sys.argv`. `before` starts Python.
    """
    command = [
        *before,
        os.path.realpath(sys.executable),
        "-I",
        "-S",
        "-c",
        _HEAD + code + _TAIL,
        *arguments,
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()
