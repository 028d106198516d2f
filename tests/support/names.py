"""Names and paths that break programs which are careless with bytes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ODD_NAMES", "deep_file"]

ODD_NAMES = (
    b"caf\xe9",  # Latin-1
    b"\xff\xfe\x80",  # no encoding at all
    "ünïcödé-😀".encode(),
    b"new\nline",
    b"tab\tinside",
    b"back\\slash",
    b"octal\\040escape",
    b"with space",
    b'"quoted"',
    b"gone (deleted)",
    b"-leading-dash",
    b"n" * 255,
)


def deep_file(directory: Path, *, length: int) -> bytes:
    """Make a file below `directory` whose path has at least `length` bytes, and return the path.

    Beyond PATH_MAX (4,096) no system call takes the path as a whole.
    """
    path = os.fsencode(directory)
    here = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    name = b"d" * 200
    while len(path) < length:
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_PATH | os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = below
        path += b"/" + name
    os.close(os.open(b"file", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=here))
    os.close(here)
    return path + b"/file"
