"""Reads a file that the user names: a regular file, or a pipe that the shell has opened.

`-` and /dev/stdin are standard input. The shell's `<(…)` is a pipe with the name /dev/fd/N or
/proc/self/fd/N. Only these names lead to a pipe: a FIFO in a directory, or a link to one, can wait
without an end.
"""

from __future__ import annotations

import os
import re
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from irmapdb import files
from irmapdb.commands import render
from irmapdb.errors import FileError
from irmapdb.image.magic import SQLITE_HEADER
from irmapdb.scratch import spooled

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

__all__ = ["STDIN", "is_pipe_name", "open_input", "regular_input"]

STDIN = Path("/dev/stdin")
_OWN = re.compile(r"-|/dev/stdin|(?:/dev/fd|/proc/self/fd)/([0-9]{1,9})")


def is_pipe_name(path: Path) -> bool:
    """Whether a path is the name of a descriptor of this process."""
    return _descriptor(path) is not None


def regular_input(path: Path) -> Path:
    """A path for readers that need a regular file: `path`, if it is no name of a pipe.

    A pipe is read to its end into a temporary file, which gets the number of its descriptor. So the
    same name leads to the file from now on. FileError; also for a database.
    """
    fd = _descriptor(path)
    if fd is None:
        return path
    named = STDIN if fd == 0 else path
    if not _is_whole_file(fd, named):
        copy = spooled(fd, render.shown(named))
        os.dup2(copy, fd)
        os.close(copy)
    if files.read_prefix(named).startswith(SQLITE_HEADER):
        message = f"{render.shown(named)}: a database cannot be read from a pipe"
        raise FileError(message, advice="name the file")
    return named


@contextmanager
def open_input(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a regular file or a pipe, as a stream. FileError."""
    fd = _descriptor(path)
    if fd is None:
        with files.open_regular(path) as file:
            yield file
        return
    named = STDIN if fd == 0 else path
    _status(fd, named)
    with files.open_stream(fd, named) as stream:
        yield stream


def _descriptor(path: Path) -> int | None:
    found = _OWN.fullmatch(str(path))
    return None if found is None else int(found[1] or 0)


def _is_whole_file(fd: int, path: Path) -> bool:
    # From its beginning: a program may have read the first lines. Another user may have opened it.
    is_regular = stat.S_ISREG(_status(fd, path).st_mode)
    return is_regular and os.lseek(fd, 0, os.SEEK_CUR) == 0 and os.access(path, os.R_OK)


def _status(fd: int, path: Path) -> os.stat_result:
    try:
        return os.fstat(fd)
    except (OSError, OverflowError) as error:
        message = f"cannot read {render.shown(path)}: no such descriptor"
        raise FileError(message, advice="name a file, or pipe it in with `-`") from error
