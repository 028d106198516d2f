"""Implements `irmapdb sql`: read-only SQL queries."""

from __future__ import annotations

import os
import re
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from irmapdb.commands import render
from irmapdb.commands.answers import Form, print_answer, print_separator
from irmapdb.commands.exit import end_with_findings
from irmapdb.commands.input_file import STDIN, open_input
from irmapdb.commands.options import (
    AsCsv,
    AsJson,
    ConfigFile,
    Database,
    ServerUrl,
    WorkDirOption,
    argument,
    database_path,
    flag,
    path_option,
    refuse_two_forms,
    server_url,
    value_option,
)
from irmapdb.errors import FileError, SqlError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from irmapdb.queries import Saved
    from irmapdb.store.ask import Answer, Value

__all__ = ["parse_parameter", "resolve", "sql"]

_LIMIT_ROWS = 10_000
_TEXT_LIMIT_BYTES = 16 << 20
"""The longest text of all statements. SQLite accepts 1 MiB for each."""
_TIMEOUT_S = 30.0
_GRACE_S = 1.0  # SQLite itself ends a statement that it can check between its steps

_OTHER_TOOLS = """
`irmapdb sql NAME` runs one of these, `irmapdb sql 'SELECT …'` any other query.
For a session:
    sqlite3 -readonly {database}
    litecli {database}
    datasette {database}"""

_NAME = re.compile(r"[A-Za-z][\w-]*")
_INTEGER = re.compile(r"0|-?[1-9]\d{0,18}")
# One word that is SQL, and no saved query: refused as SQL, or the begin of a statement.
_BARE_STATEMENTS = {
    *("ALTER", "ANALYZE", "ATTACH", "BEGIN", "COMMIT", "CREATE", "DELETE", "DETACH", "DROP", "END"),
    *("EXPLAIN", "INSERT", "PRAGMA", "REINDEX", "RELEASE", "REPLACE", "ROLLBACK", "SAVEPOINT"),
    *("SELECT", "UPDATE", "VACUUM", "VALUES", "WITH"),
}


def sql(
    query: Annotated[
        str | None, argument("[QUERY]", "SQL, or the name of a saved query.  [default: stdin]")
    ] = None,
    file: Annotated[
        Path | None,
        path_option(
            "-f", "--file", metavar="FILE", text="Read the SQL from this file; `-` is stdin."
        ),
    ] = None,
    parameter: Annotated[
        list[str] | None,
        value_option("NAME=VALUE", "The value of :NAME. Repeatable.", "-p", "--param"),
    ] = None,
    list_saved: Annotated[bool, flag("--list", "List the saved queries.")] = False,
    print_sql: Annotated[
        bool, flag("--print", "Print the statement of a saved query; do not run it.")
    ] = False,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    limit: Annotated[
        int,
        typer.Option(
            metavar="ROWS", min=0, help="Print at most this many rows of a result; 0: all."
        ),
    ] = _LIMIT_ROWS,
    timeout: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=0, help="Stop a statement after this time; 0: never."),
    ] = _TIMEOUT_S,
    work_dir: WorkDirOption = None,
    db: Database = None,
    to: ServerUrl = None,
    fleet: Annotated[bool, flag("--fleet", "Query the server of `[fleet] url`.")] = False,
    config: ConfigFile = None,
) -> None:
    """Query the database with SQL, or with a saved query.

    irmapdb opens the database read-only. Another process may write it at the same time. irmapdb
    refuses a statement that writes, attaches another file or loads an extension.

    `docs/sql.md` lists the tables and views. irmapdb adds functions to those of SQLite:
    kdev('254:0') is 266338304 and kdev(266338304) is '254:0'; hex_ino(dev, ino) is 'fe00000:2e3',
    as in CRIU's log; path_text(path) is printable text.

    Without QUERY and FILE, irmapdb reads the SQL from stdin. If stdin is a terminal, irmapdb lists
    the saved queries. For an interactive session, use `sqlite3 -readonly`, `litecli` or
    `datasette`.

    With --to or --fleet, the query goes to the PostgreSQL server of `irmapdb fleet`. The server has
    other saved queries and other views; `docs/fleet.md` lists them.

    Exits with 3 if the result has more rows than --limit.

    Examples:
        irmapdb sql --list

        irmapdb sql stale -W /var/lib/ckpt

        irmapdb sql history -p inode=fe00000:2e3

        irmapdb sql "SELECT path FROM live_mappings WHERE device = '254:0'" --json

        irmapdb sql -f report.sql --csv > report.csv

        irmapdb sql failing --to postgresql://grafana@db.example.org/irmapdb

    """
    refuse_two_forms(as_json, as_csv)
    form = Form.JSON if as_json else Form.CSV if as_csv else Form.TABLE
    if to is not None and (db is not None or work_dir is not None):
        message = "--to is a server, --db and -W are a file"
        raise UsageError(message, advice="give one of them")
    of_fleet = fleet or to is not None
    asks_nothing = query is None and file is None and sys.stdin.isatty()
    if list_saved or asks_nothing:
        _print_saved(_saved_queries(of_fleet=of_fleet), as_json=as_json)
        if asks_nothing and not list_saved and not of_fleet:
            sys.stdout.flush()
            render.say(_OTHER_TOOLS.format(database=render.shown(database_path(db, work_dir))))
        return
    if query is not None and not query.strip():
        message = "an empty query"
        raise UsageError(message, advice="give SQL or the name of a saved query; --list has those")
    if query is not None and file is not None:
        raise UsageError("a query and a file", advice="give one of them")
    values = dict(map(parse_parameter, parameter or ()))
    name = "" if query is not None else _name(file)
    text = _read(file) if query is None else query
    text, values = resolve(text, values, _saved_queries(of_fleet=of_fleet))
    if print_sql:
        render.print_text(text)
        return
    with _next_step(name, of_fleet=of_fleet):
        if of_fleet:
            url = server_url(to, config)
            from irmapdb.fleet.ask import ask as ask_server
            from irmapdb.fleet.server import find_server

            server = find_server(url)
            answer = ask_server(
                server, text, values, limit=limit or None, timeout_s=timeout or None
            )
            cut = _print_answers([answer], form)
        else:
            from irmapdb.queries import why_empty
            from irmapdb.store.ask import Ask

            with Ask.open(database_path(db, work_dir), path_text=render.printable) as ask:
                answers = ask.ask(text, values, limit=limit or None, timeout_s=timeout or None)
                answers = _in_time(answers, timeout or None)
                cut = _print_answers(answers, form, why_empty(text))
    end_with_findings(cut)


@contextmanager
def _next_step(name: str, *, of_fleet: bool) -> Iterator[None]:
    # Errors of the SQL get the name of its file, and a next step if they have none.
    try:
        yield
    except SqlError as error:
        page, option = ("fleet-sql", " --fleet") if of_fleet else ("sql", "")
        advice = error.advice or (
            f"docs/{page}.md has the tables and views; `irmapdb sql{option} --list` has examples"
        )
        message = f"{name}: {error.message}" if name else error.message
        raise SqlError(message, advice=advice, remedy=error.remedy) from error


def _saved_queries(*, of_fleet: bool) -> Mapping[str, Saved]:
    if of_fleet:
        from irmapdb.fleet.queries import SAVED
    else:
        from irmapdb.queries import SAVED
    return SAVED


def _print_answers(answers: Iterable[Answer], form: Form, why_empty: str = "") -> bool:
    """Print every answer; returns whether one was cut."""
    cut = False
    for index, answer in enumerate(answers):
        if index:
            print_separator(form)
        print_answer(answer, form)
        if why_empty and not answer.rows:
            sys.stdout.flush()
            render.say(why_empty)
        if answer.cut:
            cut = True
            sys.stdout.flush()
            render.say(f"cut after {render.count(len(answer.rows), 'row')}: --limit 0 has all")
    return cut


def _in_time(answers: Iterator[Answer], timeout_s: float | None) -> Iterator[Answer]:
    """Each answer. A statement that SQLite cannot stop in time ends the process.

    SQLite does not check the time inside one call of a function. Only the end of the process ends
    that call. The process only reads, so it has nothing to undo.
    """
    while True:
        timer = threading.Timer((timeout_s or 0) + _GRACE_S, _end_process, (timeout_s,))
        timer.daemon = True
        if timeout_s is not None:
            timer.start()
        try:
            answer = next(answers, None)
        finally:
            timer.cancel()
        if answer is None:
            return
        yield answer


def _end_process(timeout_s: float) -> None:
    error = SqlError(
        f"stopped: one call of a function took longer than {timeout_s:g} s",
        advice="give the function smaller arguments, or the statement more time with --timeout",
    )
    typer.echo(f"irmapdb: {error}", err=True)
    os._exit(error.exit_code)


def _name(file: Path | None) -> str:
    return "<stdin>" if file is None or str(file) == "-" else render.shown(file)


def _read(file: Path | None) -> str:
    with open_input(file or STDIN) as stream:
        data = stream.read(_TEXT_LIMIT_BYTES + 1)
    if len(data) > _TEXT_LIMIT_BYTES:
        message = f"cannot read {_name(file)}: it has more than {_TEXT_LIMIT_BYTES} bytes"
        raise FileError(message, advice="check that it is SQL")
    return data.decode("utf-8", "surrogateescape")


def resolve(
    text: str, values: dict[str, Value], library: Mapping[str, Saved] | None = None
) -> tuple[str, dict[str, Value]]:
    """The statement of a saved query with its parameters; any other text as it is.

    UsageError for an unknown name, and for a parameter that the query does not have.
    """
    from irmapdb import queries

    word = text.strip().removesuffix(";").strip()
    if not _NAME.fullmatch(word) or word.upper() in _BARE_STATEMENTS:
        return text, values
    saved = queries.find(word) if library is None else queries.find(word, library)
    for name in values:
        if name not in saved.parameters:
            known = ", ".join(saved.parameters) or "no parameter"
            raise UsageError(f"-p {render.shown(name)}: the saved query {word} has {known}")
    for name, default in saved.parameters.items():
        if default is None and name not in values:
            raise UsageError(f"the saved query {word} needs {name}", advice=f"-p {name}=VALUE")
    given = {
        name: _checked(f"-p {name}", value, saved.parameters[name])
        for name, value in values.items()
    }
    return saved.sql, {**saved.parameters, **given}


def _checked(shown: str, value: Value, default: str | int | None) -> Value:
    """The value of a saved query's parameter: a number if the default is one."""
    if isinstance(default, int) and not isinstance(value, int):
        message = f"{shown}={os.fsdecode(value) if isinstance(value, bytes) else value}"
        raise UsageError(f"{message}: not a whole number")
    # The value is an inode, in any form of `irmapdb lookup`.
    return _inode(shown, value) if default is None else value


def _inode(shown: str, value: Value) -> Value:
    from irmapdb.commands.keys import parse_keys

    text = os.fsdecode(value) if isinstance(value, bytes) else str(value)
    keys = []
    with suppress(UsageError):  # its advice lists the forms of `irmapdb lookup`, also a path
        keys = list(parse_keys([text]))
    if len(keys) != 1 or keys[0].path is not None:
        message = f"{shown}={render.shown(text)}: not one inode"
        raise UsageError(message, advice="write fe00000:2e3, 254:0 739 or 739")
    first = keys[0]
    if first.key is not None:
        return str(first.key)
    # As in the view: TEXT if it is too large for SQLite's numbers.
    ino = first.ino or 0
    return ino if ino < 1 << 63 else str(ino)


def parse_parameter(text: str) -> tuple[str, Value]:
    """`NAME=VALUE`. A number is a number; text that is not UTF-8 is a BLOB, as in paths."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        message = f"-p {render.shown(text)}: not NAME=VALUE"
        raise UsageError(message, advice="write -p days=7 for :days")
    if _INTEGER.fullmatch(value) and -(1 << 63) <= int(value) < 1 << 63:
        return name, int(value)
    raw = os.fsencode(value)
    try:
        return name, raw.decode()
    except UnicodeDecodeError:
        return name, raw


def _print_saved(known: Mapping[str, Saved], *, as_json: bool) -> None:
    if as_json:
        render.print_json(
            [render.json_fields(one, "name about parameters sql") for one in known.values()]
        )
        return
    render.print_table(
        ("name", "parameters", "about"),
        [
            (
                one.name,
                ", ".join(
                    name if default is None else f"{name}={default}"
                    for name, default in one.parameters.items()
                ),
                one.about,
            )
            for one in known.values()
        ],
    )
