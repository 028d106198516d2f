"""Implements the command line: parse, call, print, exit code.

stdout has the result, stderr the messages. Exit codes: 0 done; 1 not done; 2 wrong usage; 3 done,
with findings; 130 interrupted (128 + SIGINT). A command is imported when it is called
(irmapdb.commands.group), and the library when the command runs: `--help` waits for no database.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer
from typer.main import get_command

from irmapdb import __version__, garbage_collector
from irmapdb.commands import render, usage
from irmapdb.commands.exit import INTERRUPTED, exit_code_of, interrupted
from irmapdb.commands.group import HELP_OPTIONS, Commands, prepare
from irmapdb.commands.log import close_log, start_talk
from irmapdb.errors import UsageError
from irmapdb.scratch import remove_leftovers

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from typer.core import TyperGroup

__all__ = ["app", "main"]

app = typer.Typer(
    name="irmapdb",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,  # irmapdb.commands.completion has ours
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": HELP_OPTIONS},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"irmapdb {__version__}")
        raise typer.Exit


def _print_completion(shell: Literal["bash", "zsh", "fish"] | None) -> None:
    if shell is not None:
        from irmapdb.commands.completion import script

        typer.echo(script(shell), nl=False)
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
    _show_completion: Annotated[
        Literal["bash", "zsh", "fish"] | None,
        typer.Option(
            "--show-completion",
            callback=_print_completion,
            is_eager=True,
            help="Print the completion script for this shell.",
        ),
    ] = None,
) -> None:
    """Find, prove and keep the paths of inotify watches and fanotify marks for CRIU.

    Once, as root: `irmapdb hook --install podman` (or runc, crun, criu) makes CRIU call irmapdb
    before each dump. This is enough for checkpoints of containers.

    By hand: `irmapdb pre-dump -t PID -D DIR` finds the paths while the tasks run and writes
    `irmap.db` and CRIU's own `irmap-cache` into the work dir. Then `criu dump -t PID -D DIR` loads
    that cache. Without CRIU, `irmapdb dump` freezes the tasks and shows the paths that a dump would
    record.

    Exit codes: 0 done; 1 not done; 2 wrong usage; 3 done, with findings: a watch has no path;
    `check` finds a watch that CRIU will lose; `explain` finds a failure in a log; `diff` finds a
    difference; irmapdb cannot read a task of the tree; `audit` finds a mapping that is stale or
    that it cannot check; `lookup` does not know a key; `sql` has more rows than it may print. In
    pre-dump and dump, a file that moved and was found again does not count.
    130: interrupted (Ctrl-C).
    """


_COMPLETE = "_IRMAPDB_COMPLETE"
"""Set by the shell's completion script."""
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
            message = f"{render.shown(argument)}: no level of the log"
            raise UsageError(message, advice=f"give one of 0 to {_MOST_VERBOSE}")
        if level != "0":
            yield "-" + "v" * int(level)


def _answer_shell() -> None:
    from irmapdb.commands.completion import answer

    typer.echo(answer(cast("TyperGroup", get_command(app)), sys.argv[1:]), nl=False)


def main() -> None:
    """The console script: one exit point for every error."""
    garbage_collector.run_rarely()
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115 to the end
    # Characters that the terminal cannot show are escaped, and cause no error.
    sys.stdout = render.tolerant(sys.stdout, named=True)
    sys.stderr = render.tolerant(sys.stderr, named=False)
    sys.unraisablehook = _unraisable
    render.set_manner(colour=True, quiet=False)
    if _COMPLETE in os.environ:
        _answer_shell()
        return
    try:
        start_talk()
        remove_leftovers()
        code = exit_code_of(_run)
        close_log()
    except KeyboardInterrupt:  # also one that comes while files are being closed
        code = interrupted()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all work is done, and the exit code is known
    close_log()
    garbage_collector.stop()
    if code:
        sys.exit(code)


def _run() -> int:
    """The exit code of the command that the arguments name."""
    group = cast("TyperGroup", get_command(app))
    prepare(group)
    arguments = list(_as_typer_counts(sys.argv[1:]))
    try:
        code = group(arguments, prog_name="irmapdb", standalone_mode=False)
    except usage.ParserError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()  # type: ignore[attr-defined]  # the help
            return 2
        raise usage.translated(error, arguments, group) from error
    finally:
        sys.stdout.flush()  # an error is reported here; Python's own flush would end with 120
    # typer makes a code of KeyboardInterrupt.
    return interrupted() if code == INTERRUPTED else int(code or 0)


def _unraisable(problem: sys.UnraisableHookArgs) -> None:
    # Ctrl-C in a finalizer cannot be raised, and must give no traceback.
    if not isinstance(problem.exc_value, KeyboardInterrupt | MemoryError):
        sys.__unraisablehook__(problem)
