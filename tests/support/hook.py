"""irmapdb-hook as CRIU executes it: the installed program, or one like it for a bare checkout."""

from __future__ import annotations

import sys
import time
from pathlib import Path

__all__ = ["CHECKOUT", "hook_program", "log_until_stored", "make_executable"]

CHECKOUT = Path(__file__).parent.parent.parent

_PROGRAM = """\
#!{python}
import sys

sys.path.insert(0, {checkout!r})
from irmapdb.criu.hook import main

if __name__ == "__main__":
    sys.exit(main())
"""


def hook_program(directory: Path) -> Path:
    """The irmapdb-hook beside this Python, or one made in `directory`, as pip would make it."""
    installed = Path(sys.executable).with_name("irmapdb-hook")
    if installed.exists():
        return installed
    program = directory / "irmapdb-hook"
    program.write_text(_PROGRAM.format(python=sys.executable, checkout=str(CHECKOUT)))
    program.chmod(0o755)
    return program


def log_until_stored(work: Path, dumps: int = 1) -> list[str]:
    """The lines of irmapdb.log, when the database has heard of so many dumps, or could not.

    CRIU has its answer before that.
    """
    until = time.monotonic() + 60
    while True:
        log = work / "irmapdb.log"
        lines = log.read_text().splitlines() if log.exists() else []
        if sum("] stored in " in line or "] not stored" in line for line in lines) >= dumps:
            return lines
        assert time.monotonic() < until, lines
        time.sleep(0.01)


def make_executable(directory: Path, name: str = "irmapdb-hook") -> Path:
    """A program that does nothing, which CRIU could execute."""
    program = directory / name
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return program
