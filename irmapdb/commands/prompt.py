"""The prompt of `irmapdb sql`: SQL until a semicolon, and a few commands that begin with a dot.

Line editing, history and completion are prompt_toolkit's. The history is a file of the user's
own: `sql-history` in `$XDG_STATE_HOME/irmapdb` (default `~/.local/state`), mode 0600. Root has one
only where nobody else can change what lies there: sudo may leave the user's HOME.

Source: https://specifications.freedesktop.org/basedir-spec/latest/.
"""

from __future__ import annotations

import os
import shlex
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import FileHistory, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.lexers import PygmentsLexer
from pygments.lexers.sql import SqlLexer

from irmapdb import queries
from irmapdb.commands import output
from irmapdb.commands.answers import Form, print_answer, summary
from irmapdb.commands.completion import SqlCompleter
from irmapdb.commands.sql import parse_parameter, resolve, saved_name
from irmapdb.errors import FileError, IrmapError, UsageError
from irmapdb.ownership import open_directory
from irmapdb.store.ask import FUNCTIONS, Hints
from irmapdb.store.sqltext import is_complete

if TYPE_CHECKING:
    from collections.abc import Callable

    from prompt_toolkit.history import History
    from prompt_toolkit.input import Input
    from prompt_toolkit.key_binding.key_processor import KeyPressEvent
    from prompt_toolkit.output import Output

    from irmapdb.store.ask import Ask, Value

__all__ = ["Prompt", "history_path"]

_HELP = """\
SQL, over as many lines as it takes, until a semicolon; or the name of a saved query.

.tables           the tables and views
.schema [NAME]    how they are made
.queries          the saved queries
.run NAME [X=Y]…  run a saved query, with its parameters
.mode FORM        table, json or csv
.limit ROWS       the most rows of an answer; 0: all
.timeout SECONDS  the longest a statement may take; 0: any time
.help, .quit"""

_HINTS = Hints(
    time="give it more with .timeout",
    value="write the value itself; only .run NAME {name}=VALUE, of a saved query, takes one",
    odd_path="write a path that is no UTF-8 as x'2f…'",
)


def _is_sent(text: str) -> bool:
    # Whether Enter sends the text, and does not begin another line of it.
    text = text.strip()
    is_whole = not text or text.startswith(".") or is_complete(text)
    return is_whole or saved_name(text) is not None


def history_path() -> Path | None:
    """The history's file, made if need be; None where there is no home of ours, or no file."""
    state = os.environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(state):
        home = os.path.expanduser("~")
        if not os.path.isabs(home):
            return None
        state = os.path.join(home, ".local", "state")
    directory = Path(state, "irmapdb")
    path = directory / "sql-history"
    try:
        if _is_of_somebody_else(directory):
            return None
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(path, flags | os.O_NONBLOCK, 0o600)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
                return None
            os.fchmod(fd, 0o600)
        finally:
            os.close(fd)
    except (OSError, FileError):
        return None
    return path


def _is_of_somebody_else(directory: Path) -> bool:
    # For root alone: sudo may leave HOME as it was, and all below it can be led elsewhere.
    if os.geteuid() != 0:
        return False
    there = directory
    while not os.path.lexists(there):
        there = there.parent
    with open_directory(os.fsencode(there)) as found:
        return bool(found.shared_with)


class Prompt:
    """Asks until there is nothing more to ask. `source` and `sink` replace the terminal."""

    def __init__(
        self,
        ask: Ask,
        form: Form = Form.TABLE,
        limit: int | None = None,
        timeout_s: float | None = None,
        *,
        source: Input | None = None,
        sink: Output | None = None,
    ) -> None:
        ask.hints = _HINTS
        self._ask = ask
        self._form = form
        self._limit = limit
        self._timeout_s = timeout_s
        self._over = False
        self._commands: dict[str, Callable[[str], None]] = {
            ".help": self._help,
            ".limit": self._set_limit,
            ".mode": self._set_mode,
            ".queries": self._queries,
            ".quit": self._quit,
            ".exit": self._quit,
            ".run": self._run_saved,
            ".schema": self._schema,
            ".tables": self._tables,
            ".timeout": self._set_timeout,
        }
        self._session: PromptSession[str] = PromptSession(
            message="irmapdb> ",
            prompt_continuation="    ...> ",
            multiline=True,
            key_bindings=_bindings(),
            lexer=PygmentsLexer(SqlLexer),
            completer=SqlCompleter(ask.columns(), FUNCTIONS, self._commands, queries.SAVED),
            complete_while_typing=False,
            history=_history(),
            input=source,
            output=sink,
        )

    def run(self) -> None:
        """Until `.quit` or the end of the input. An error of one question ends nothing."""
        typer.echo(f"{output.printable(self._ask.path)}: only read; .help, .tables, .quit")
        while not self._over:
            try:
                text = self._session.prompt()
            except KeyboardInterrupt:
                continue  # the line is given up
            except EOFError:
                return
            try:
                self._take(text.strip())
            except KeyboardInterrupt:
                output.say("stopped")
            except IrmapError as error:
                output.say(str(error))
            sys.stdout.flush()

    def _take(self, text: str) -> None:
        if not text.startswith("."):
            self._answer(*resolve(text, {}, at_prompt=True))
            return
        name, _, argument = text.rstrip("; ").partition(" ")
        command = self._commands.get(name.lower())
        if command is None:
            message = f"{name}: no such command"
            raise UsageError(message, advice=".help lists them")
        command(argument.strip())

    def _answer(self, text: str, values: dict[str, Value]) -> None:
        for answer in self._ask.ask(text, values, limit=self._limit, timeout_s=self._timeout_s):
            print_answer(answer, self._form)
            sys.stdout.flush()
            output.say(summary(answer))

    def _help(self, _: str) -> None:
        typer.echo(_HELP)
        for about in FUNCTIONS.values():
            typer.echo(f"\n{about}", nl=False)
        typer.echo()

    def _quit(self, _: str) -> None:
        self._over = True

    def _tables(self, _: str) -> None:
        rows = [(name, ", ".join(columns)) for name, columns in self._ask.columns().items()]
        output.print_table(("name", "columns"), rows)

    def _schema(self, name: str) -> None:
        made = self._ask.schema(name or None)
        if not made:
            message = f"{name}: no such table or view"
            raise UsageError(message, advice=".tables lists them")
        output.print_text("\n".join(made))

    def _queries(self, _: str) -> None:
        rows = [(one.name, ", ".join(one.parameters), one.about) for one in queries.SAVED.values()]
        output.print_table(("name", "parameters", "about"), rows)

    def _run_saved(self, argument: str) -> None:
        try:
            name, *given = shlex.split(argument) or [""]
        except ValueError as error:
            message = f".run {argument}: {error}"
            raise UsageError(message) from error
        if not name:
            message = ".run: the name of a saved query is missing"
            raise UsageError(message, advice=".queries lists them")
        queries.find(name)
        values = dict(parse_parameter(one, at_prompt=True) for one in given)
        self._answer(*resolve(name, values, at_prompt=True))

    def _set_mode(self, argument: str) -> None:
        try:
            self._form = Form(argument.lower())
        except ValueError as error:
            message = f".mode {argument}: no such form"
            raise UsageError(message, advice="there are table, json and csv") from error

    def _set_limit(self, argument: str) -> None:
        number = _number(".limit", argument)
        if number % 1:
            message = f".limit {argument}: not a whole number"
            raise UsageError(message, advice="0 is no limit")
        self._limit = int(number) or None

    def _set_timeout(self, argument: str) -> None:
        self._timeout_s = _number(".timeout", argument) or None


def _number(command: str, argument: str) -> float:
    try:
        number = float(argument)
    except ValueError:
        number = -1
    if not 0 <= number < float("inf"):
        message = f"{command} {argument}: not a number"
        raise UsageError(message, advice="0 is no limit")
    return number


def _history() -> History:
    path = history_path()
    return InMemoryHistory() if path is None else FileHistory(path)


def _bindings() -> KeyBindings:
    bindings = KeyBindings()

    @bindings.add("enter", filter=Condition(lambda: _is_sent(get_app().current_buffer.text)))
    def _send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    return bindings
