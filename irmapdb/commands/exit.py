"""How a command ends: its exit code, and the line on stderr and in the log that says why.

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

__all__ = ["INTERRUPTED", "end_with_findings", "exit_code_of", "interrupted"]

_FINDINGS = 3
INTERRUPTED = 128 + signal.SIGINT
_NO_MEMORY = "out of memory; free some, raise the limit (ulimit -v), or ask for less"


def end_with_findings(found: object) -> None:
    """End the command with the exit code for findings, if there are any."""
    if found:
        raise typer.Exit(_FINDINGS)


def exit_code_of(command: Callable[[], int]) -> int:
    """Run a command. An error is one line on stderr. KeyboardInterrupt is the caller's."""
    try:
        return command()
    except IrmapError as error:
        return _failed(error, error.exit_code)
    except BrokenPipeError:
        # The reader of our output went away, as `head` does.
        _leave_stdout()
        return 1
    except OSError as error:
        # An error that no package has translated: still one line that names the object.
        where = "" if error.filename is None else f"{render.shown(error.filename)}: "
        _failed(error, 1, f"{where}{error.strerror or error}")
        if error.filename == render.STDOUT:
            _leave_stdout()
        return 1
    except MemoryError as error:
        error.__traceback__ = None  # what the frames hold is memory
        return _failed(error, 1, _NO_MEMORY)
    except ImportError as error:  # a library that no memory was left for, or half of an upgrade
        reason = render.printable_text(str(error))
        return _failed(error, 1, f"{reason}; free some memory, or install irmapdb anew")


def interrupted() -> int:
    """Say that the command was interrupted; the exit code."""
    return _failed(KeyboardInterrupt(), INTERRUPTED, "interrupted")


def _failed(error: BaseException, code: int, said: str | None = None) -> int:
    typer.echo(f"irmapdb: {error if said is None else said}", err=True)
    log_end(error if isinstance(error, IrmapError) or said is None else _Said(said))
    return code


class _Said(Exception):  # noqa: N818 an error's line for the log
    pass


def _leave_stdout() -> None:
    # Python's own flush at exit must not meet the same pipe or disk again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
