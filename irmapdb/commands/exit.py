"""Ends a command: with its exit code, and a line about it on stderr and in the log.

0 done; 1 not done; 2 wrong usage; 3 done, with findings; 130 interrupted (128 + SIGINT).
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

import typer

from irmapdb.commands import render
from irmapdb.commands.log import log_end
from irmapdb.errors import IrmapError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["INTERRUPTED", "end_with_findings", "exit_code_of", "interrupted", "line_of"]

_FINDINGS = 3
INTERRUPTED = 128 + signal.SIGINT
_NO_MEMORY = "out of memory; free some, raise the limit (ulimit -v), or ask for less"


def end_with_findings(found: object) -> None:
    """End the command with the exit code for findings, if there are any."""
    if found:
        raise typer.Exit(_FINDINGS)


def exit_code_of(command: Callable[[], int]) -> int:
    """Run a command. An error is one line on stderr. The caller handles KeyboardInterrupt."""
    try:
        return command()
    except IrmapError as error:
        return _failed(error, error.exit_code, line_of(error))
    except BrokenPipeError:
        # The reader of our output has closed the pipe, as `head` does.
        _leave_stdout()
        return 1
    except OSError as error:
        # An error that no package has translated: print one line that names the object.
        where = "" if error.filename is None else f"{render.shown(error.filename)}: "
        _failed(error, 1, f"{where}{error.strerror or error}")
        if error.filename == render.STDOUT:
            _leave_stdout()
        return 1
    except MemoryError as error:
        error.__traceback__ = None  # free the memory of the frames
        return _failed(error, 1, _NO_MEMORY)
    except ImportError as error:  # a library without memory, or half of an upgrade
        reason = render.printable_text(str(error))
        return _failed(error, 1, f"{reason}; free some memory, or install irmapdb anew")


_OPTIONS = {
    "CRIU's version": "--criu-version",
    "configuration": "--config or IRMAPDB_CONFIG",
    "database": "--db",
    "database or work dir": "--db or -W",
    "freeze cgroup": "--freeze-cgroup",
    "images dir": "-D",
    "parameter": "-p NAME=VALUE",
    "previous images dir": "--prev-images-dir",
    "root": "--root",
    "scan path": "--irmap-scan-path",
    "script": "--script",
    "server": "--to",
    "timeout": "--timeout",
    "task": "-t",
    "work dir": "-W",
}
"""The option of each setting that an error names."""


def line_of(error: IrmapError) -> str:
    """The error, with the options of the settings that it names."""
    before = f"{_OPTIONS[error.about]} " if error.about else ""
    behind = f" with {_OPTIONS[error.remedy]}" if error.remedy else ""
    return f"{before}{error}{behind}"


def interrupted() -> int:
    """Print that the command was interrupted; returns the exit code."""
    return _failed(KeyboardInterrupt(), INTERRUPTED, "interrupted")


def _failed(error: BaseException, code: int, line: str) -> int:
    typer.echo(f"irmapdb: {line}", err=True)
    log_end(line, error)
    return code


def _leave_stdout() -> None:
    # Python's own flush at exit must not use the same pipe or disk again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
