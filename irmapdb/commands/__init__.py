"""The command line: parse, call, print, exit code. No thinking is done here.

stdout is the result, stderr is talk. Exit codes: 0 done; 1 not done; 2 wrong usage; 3 done, with
findings. A command is imported when it is asked for, see irmapdb.commands.group,
and what it needs when it runs: `--help` waits for no database.
"""

from __future__ import annotations

import gc
import os
import re
import sys
from typing import TYPE_CHECKING, Annotated, cast

import typer
from typer.main import get_command

from irmapdb import __version__
from irmapdb.commands import output
from irmapdb.commands.group import HELP_OPTIONS, Commands, hide_bools
from irmapdb.commands.log import close_log, log_end, start_talk
from irmapdb.errors import IrmapError, UsageError
from irmapdb.scratch import remove_leftovers

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from typer.core import TyperGroup

__all__ = ["app", "main"]

app = typer.Typer(
    name="irmapdb",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": HELP_OPTIONS},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"irmapdb {__version__}")
        raise typer.Exit


@app.callback()
def irmapdb(
    _version: Annotated[
        bool,
        typer.Option(
            "--version",
            "-V",
            callback=_print_version,
            is_eager=True,
            help="Print the version.",
        ),
    ] = False,
) -> None:
    """Find, prove and keep the paths of inotify watches and fanotify marks for CRIU.

    Before a checkpoint: `irmapdb pre-dump -t PID -D DIR` finds the paths while the tasks run
    and writes `irmap.db` and CRIU's own `irmap-cache` into the work dir. Then
    `criu dump -t PID -D DIR` loads that cache, or `irmapdb dump` shows what would be dumped.

    Exit codes: 0 done; 1 not done; 2 wrong usage; 3 done, with findings: a watch without a
    path, or one that `check` finds CRIU to lose; a task that may not be looked at; a mapping that
    `audit` finds to hold no longer or cannot look at; a key that `lookup` knows nothing of; more
    rows than `sql` was to print. That a stored path went stale in `pre-dump` or `dump`, and another
    one was proved, is no finding.
    """


_VERBOSITY = re.compile(r"-v([0-9]+)|--verbosity=(.*)", re.DOTALL)
_MOST_VERBOSE = 4
_LEVELS = set(map(str, range(_MOST_VERBOSE + 1)))


def _as_typer_counts(arguments: Iterable[str]) -> Iterator[str]:
    # CRIU's -v4 is typer's -vvvv, and -v0 is none.
    for argument in arguments:
        found = _VERBOSITY.fullmatch(argument)
        if found is None:
            yield argument
            continue
        level = found[1] or found[2]
        if level not in _LEVELS:
            message = f"{output.shown(argument)}: no level of the log"
            raise UsageError(message, advice=f"give one of 0 to {_MOST_VERBOSE}")
        if level != "0":
            yield "-" + "v" * int(level)


def _leave_stdout() -> None:
    # Python's own flush at exit must not meet the same pipe or disk again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> None:
    """The console script: one exit point for every error."""
    # Hundreds of thousands of small objects, and cycles in none: the collector would look through
    # all of them again and again.
    gc.set_threshold(1_000_000, 20, 50)
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115 to the end
    # What cannot be shown on this terminal is escaped, and is no reason to end.
    sys.stdout = output.tolerant(sys.stdout, named=True)
    sys.stderr = output.tolerant(sys.stderr, named=False)
    start_talk()
    remove_leftovers()
    try:
        try:
            command = cast("TyperGroup", get_command(app))
            hide_bools(command)
            command(list(_as_typer_counts(sys.argv[1:])), prog_name="irmapdb")
        finally:
            sys.stdout.flush()  # here, where what fails is told: Python's own flush ends with 120
    except IrmapError as error:
        typer.echo(f"irmapdb: {error}", err=True)
        log_end(error)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of our output went away, as `head` does.
        _leave_stdout()
        sys.exit(1)
    except OSError as error:
        # What no room has translated: still one line that names the object.
        where = "" if error.filename is None else f"{output.shown(error.filename)}: "
        typer.echo(f"irmapdb: {where}{error.strerror or error}", err=True)
        log_end(error)
        if error.filename == output.STDOUT:
            _leave_stdout()
        sys.exit(1)
    finally:
        close_log()
        gc.freeze()  # ... nor at the end, when all of them go anyway
