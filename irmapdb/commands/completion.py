"""Completes a command line, for the scripts in `shells/`, which bash, zsh and fish run.

Such a script calls irmapdb with the words of the line, the unfinished one last, and
_IRMAPDB_COMPLETE in the environment. The answer has a line for each proposal, `VALUE<TAB>ABOUT`. Or
it is one line, `files` or `directories`, and the shell proposes names itself.
"""

from __future__ import annotations

import logging
import os
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from irmapdb.commands.group import HELP_OPTIONS
from irmapdb.commands.options import database_path
from irmapdb.errors import IrmapError
from irmapdb.record import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from typer.core import TyperGroup

    from irmapdb.queries import Saved
    from irmapdb.store.ask import Value

__all__ = ["Proposal", "answer", "propose", "script"]

_SCRIPTS = {"bash": "irmapdb.bash", "zsh": "_irmapdb", "fish": "irmapdb.fish"}
_FILES, _DIRECTORIES = "files", "directories"
_NAMES_OF = {"DIR": _DIRECTORIES, "FILE": _FILES, "LOG": _FILES, "PATH": _FILES, "COPY": _FILES}
_NAMES_OF |= {"SRC": _FILES, "DST": _FILES, "ARCHIVE": _FILES, "A": _FILES, "B": _FILES}
_MOST = 200
_PATIENCE_S = 2.0
_COPY_LIMIT_BYTES = 4 << 20
"""The largest database in a directory of others that is copied for a Tab."""


class Proposal(Record):
    """One word that may come next."""

    value: str
    about: str = ""


class _Line(Record):
    """The words before the unfinished word, from the command on."""

    command: Any
    name: str
    """`pre-dump`, `db upgrade`."""
    values: dict[str, str]
    """The value of each option that is given, by the name of its parameter."""
    arguments: tuple[str, ...]
    pending: Any
    """The option whose value comes next; None if another word may come."""


def script(shell: str) -> str:
    """The completion script of a shell."""
    return (Path(__file__).parent / "shells" / _SCRIPTS[shell]).read_text("utf-8")


def answer(group: TyperGroup, words: Sequence[str]) -> str:
    """The lines for a shell. An error is no proposal."""
    found: list[Proposal] = []
    with _silent_log(), suppress(IrmapError, OSError, ValueError):
        # A line break or tab in a value has no place in a line.
        found = [one for one in propose(group, words) if one.value.isprintable()]
    return "".join(
        f"{value}\t{about}\n" if about and about.isprintable() else f"{value}\n"
        for value, about in found
    )


@contextmanager
def _silent_log() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable()
    try:
        yield
    finally:
        logging.disable(before)


def propose(group: TyperGroup, words: Sequence[str]) -> Iterator[Proposal]:
    """The proposals for the last of the words that follow `irmapdb`."""
    *before, start = words or ("",)
    line = _read(group, before)
    name, equals, rest = start.partition("=")
    if line.pending is not None:
        yield from _values(line, line.pending, start)
    elif equals and (option := _option(line.command, name)) is not None:
        for one in _values(line, option, rest):
            yield one if one.value in {_FILES, _DIRECTORIES} else Proposal(f"{name}={one.value}")
    elif start.startswith("-"):
        yield from _options(line, start)
    elif children := getattr(line.command, "commands", None):
        yield from _starting(
            start, ((one, _first_sentence(children[one].help or "")) for one in children)
        )
    else:
        arguments = [one for one in _parameters(line.command) if not one.opts[0].startswith("-")]
        if arguments:
            yield from _values(line, arguments[min(len(line.arguments), len(arguments) - 1)], start)


def _read(group: TyperGroup, words: Iterable[str]) -> _Line:
    line = _Line(group, "", {}, (), None)
    for word in words:
        children = getattr(line.command, "commands", {})
        name, equals, rest = word.partition("=")
        if line.pending is not None:
            values = {**line.values, line.pending.name: word}
            line = line._replace(values=values, pending=None)
        elif (option := _option(line.command, name)) is not None:
            if equals:
                line = line._replace(values={**line.values, option.name: rest})
            elif not _is_flag(option):
                line = line._replace(pending=option)
        elif word in children:
            line = _Line(children[word], f"{line.name} {word}".strip(), {}, (), None)
        elif not word.startswith("-"):
            line = line._replace(arguments=(*line.arguments, word))
    return line


def _parameters(command: Any) -> list[Any]:  # noqa: ANN401 typer's
    return list(command.get_params(typer.Context(command, help_option_names=HELP_OPTIONS)))


def _option(command: Any, name: str) -> Any:  # noqa: ANN401 typer's, or None
    if not name.startswith("-"):
        return None
    return next((one for one in _parameters(command) if name in one.opts), None)


def _is_flag(option: Any) -> bool:  # noqa: ANN401 typer's
    return bool(getattr(option, "is_flag", False) or getattr(option, "count", False))


def _options(line: _Line, start: str) -> Iterator[Proposal]:
    for option in _parameters(line.command):
        is_over = option.name in line.values and not option.multiple
        for name in option.opts:
            # Propose the long name; the letter only if it is typed exactly.
            if name.startswith(start) and not is_over and (name[:2] == "--" or start == name):
                yield Proposal(name, _first_sentence(option.help or ""))


def _first_sentence(text: str) -> str:
    return " ".join(text.split()).partition(". ")[0].partition("  [")[0].removesuffix(".")


def _starting(start: str, found: Iterable[tuple[str, str]]) -> Iterator[Proposal]:
    return (Proposal(value, about) for value, about in found if value.startswith(start))


# --- values ---------------------------------------------------------------------------------------


def _values(line: _Line, parameter: Any, start: str) -> Iterator[Proposal]:  # noqa: ANN401 typer's
    name = str(parameter.name)
    finder = _FINDERS.get((line.name, name)) or _FINDERS.get(("", name))
    if finder is not None:
        yield from _starting(start, finder(line, start))
        return
    context = typer.Context(line.command)
    choices = [str(one.value) for one in parameter.shell_complete(context, start)]
    if choices:
        yield from map(Proposal, choices)
    elif names := _NAMES_OF.get(parameter.metavar or ""):
        yield Proposal(names)


def _tasks(_line: _Line, _start: str) -> Iterator[tuple[str, str]]:
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdecimal()):
        with suppress(OSError):  # it has ended
            if _read_proc(pid, "cmdline"):  # no kernel thread
                yield str(pid), _one_line(_read_proc(pid, "comm"))


def _containers(_line: _Line, start: str) -> Iterator[tuple[str, str]]:
    # The names; with the first characters of an id, the id.
    from irmapdb.kernel.proc.containers import find_containers
    from irmapdb.node.container_info import describe_all

    for info in describe_all(find_containers()):
        if info.label != info.short_id:
            yield info.label, _one_line(info.image or info.engine or "")
        if start or info.label == info.short_id:
            yield info.id, _one_line(info.label)


def _read_proc(pid: int, name: str) -> str:
    with open(f"/proc/{pid}/{name}", encoding="utf-8", errors="replace") as file:
        return file.read()


def _one_line(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text).strip()


def _saved(line: _Line) -> Mapping[str, Saved]:
    # A server has queries of its own. It is not asked: a Tab waits for no network.
    if "to" in line.values:
        from irmapdb.fleet.queries import SAVED
    else:
        from irmapdb.queries import SAVED
    return SAVED


def _query_parameters(line: _Line, start: str) -> Iterator[tuple[str, str]]:
    # The parameters of the saved query on the line: `days=7`; runs and inodes from the database.
    saved = _saved(line).get(line.arguments[0]) if line.arguments else None
    for name, default in saved.parameters.items() if saved else ():
        if not start.startswith(f"{name}="):
            yield f"{name}=", "" if default is None else f"default: {default}"
        elif name == "runs":
            yield from ((f"runs={number}", about) for number, about in _runs(line, start))
        elif name == "inode":
            for key, path in _ask(line, "SELECT in_criu_log, path_text(path) FROM live_mappings"):
                yield f"inode={key}", _one_line(path)


def _runs(line: _Line, _start: str) -> Iterator[tuple[str, str]]:
    rows = _ask(line, "SELECT event, started_at FROM run ORDER BY id DESC")
    for number, (event, at) in enumerate(rows, 1):
        yield str(number), f"since the {event} of {at[:19]}"


def _devices(line: _Line, _start: str) -> Iterator[tuple[str, str]]:
    rows = _ask(line, "SELECT device, count(*) FROM all_mappings GROUP BY device ORDER BY 2 DESC")
    return ((device, f"{number} mappings") for device, number in rows)


def _keys(line: _Line, start: str) -> Iterator[tuple[str, str]]:
    rows = _ask(line, "SELECT path, in_criu_log FROM all_mappings ORDER BY path")
    for path, key in rows:
        yield (path, key) if start.startswith("/") else (key, _one_line(path))


def _ask(line: _Line, query: str) -> list[tuple[str, ...]]:
    from irmapdb.model import printable
    from irmapdb.store.ask import Ask

    named = [line.values.get(name) for name in ("db", "work_dir")]
    paths = [None if name is None else Path(name).expanduser() for name in named]
    database = database_path(*paths)
    with Ask.open(
        database, path_text=printable, wait_s=0, copy_limit_bytes=_COPY_LIMIT_BYTES
    ) as ask:
        answers = ask.ask(f"{query} LIMIT {_MOST}", limit=_MOST, timeout_s=_PATIENCE_S)
        return [tuple(map(_text, row)) for one in answers for row in one.rows]


def _text(value: Value) -> str:
    return os.fsdecode(value) if isinstance(value, bytes) else str(value)


def _verdicts(_line: _Line, _start: str) -> Iterator[tuple[str, str]]:
    from irmapdb.commands.audit import VERDICTS

    return ((one, "") for one in VERDICTS)


_FINDERS: dict[tuple[str, str], Callable[[_Line, str], Iterator[tuple[str, str]]]] = {
    ("", "pid"): _tasks,
    ("", "tree"): _tasks,
    ("ps", "process"): _tasks,
    ("", "container"): _containers,
    ("sql", "query"): lambda line, _: ((one.name, one.about) for one in _saved(line).values()),
    ("sql", "parameter"): _query_parameters,
    ("audit", "only"): _verdicts,
    ("audit", "dev"): _devices,
    ("lookup", "keys"): _keys,
    ("prune", "keep_runs"): _runs,
    ("check", "criu_version"): lambda *_: ((one, "") for one in ("4.1", "4.2", "4.3")),
}
"""Command ("": any) and parameter → values with a description."""
