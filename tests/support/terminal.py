"""The command line at a terminal: the output of a program to a pseudo-terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import tty
from contextlib import suppress
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["at_terminal"]


def at_terminal(
    *words: str | os.PathLike[str],
    cwd: Path,
    stdin_too: bool = False,
    environment: Mapping[str, str] = MappingProxyType({"COLUMNS": "10000", "NO_COLOR": "1"}),
) -> tuple[int, bytes]:
    """The exit code of `irmapdb WORDS`, and all that it wrote to stdout and stderr, a terminal.

    The terminal is wide and without colours, if `environment` does not say otherwise.
    `stdin_too`: stdin is that terminal as well, not /dev/null. Nothing is typed.
    """
    ours, theirs = pty.openpty()
    tty.setraw(theirs)  # no "\\r" that no program wrote
    command = [sys.executable, "-m", "irmapdb", *map(os.fspath, words)]
    with subprocess.Popen(
        command,
        cwd=cwd,
        env={**os.environ, **environment},
        stdin=theirs if stdin_too else subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    ) as task:
        os.close(theirs)
        said = b""
        with suppress(OSError):  # EIO: the last one that had it open is gone
            while some := os.read(ours, 65536):
                said += some
    os.close(ours)
    return task.returncode, said
