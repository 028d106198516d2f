"""Imports and builds a command when it is called by name.

typer builds every command of an app before it reads the arguments, and this takes longer than the
work of most commands. With the list of names, it can find the command, suggest one for a wrong
name, and complete a name in the shell.

Source: https://click.palletsprojects.com/en/stable/complex/#lazily-loading-subcommands, whose
classes typer keeps.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import redirect_stdout
from functools import cache, partial, wraps
from importlib import import_module
from inspect import cleandoc
from keyword import iskeyword
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command, get_group

from irmapdb.commands import render, usage
from irmapdb.commands.plain_values import read_plainly

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["HELP_OPTIONS", "Commands", "prepare"]

HELP_OPTIONS = ["-h", "--help"]

Command = TyperCommand | TyperGroup

_MODULES = {
    "pre-dump": "checkpoint",
    "dump": "checkpoint",
    "check": "check",
    "explain": "explain",
    "import": "images",
    "export": "images",
    "convert": "images",
    "show": "images",
    "diff": "diff",
    "audit": "audit",
    "ps": "ps",
    "prune": "prune",
    "lookup": "lookup",
    "sql": "sql",
    "hook": "hook",
    "warm": "warm",
    "metrics": "metrics",
    "fleet": "fleet",
    "report": "report",
    "db": "database",
}
"""The module of each command, in the order of the help. A module can have several commands: each
is the function or `typer.Typer` with the name of the command."""

_TOLD_BY_THE_EXIT_CODE = {
    *("pre-dump", "dump", "check", "explain", "diff", "audit", "prune", "hook", "warm", "fleet"),
}
"""Commands that print no table with -q."""

_EXAMPLES = re.compile(r"^Examples?:\n", re.MULTILINE)


class _ByName(Mapping[str, Command]):
    """All commands. Each is built when it is first looked up."""

    def __init__(self) -> None:
        self._built: dict[str, Command] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(_MODULES)

    def __len__(self) -> int:
        return len(_MODULES)

    def __getitem__(self, name: str) -> Command:
        if name not in self._built:
            self._built |= _build(_MODULES[name])
        return self._built[name]


def _build(module: str) -> dict[str, Command]:
    app = typer.Typer(rich_markup_mode="markdown", add_completion=False)
    found = import_module(f"irmapdb.commands.{module}")
    for name in (one for one, its_module in _MODULES.items() if its_module == module):
        command = getattr(found, name.replace("-", "_") + "_" * iskeyword(name))
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name)(command)
    commands = cast("dict[str, Command]", get_group(app).commands)
    for name, command in commands.items():
        for each in _tree(command):
            if not getattr(each, "commands", None):
                each.params += _of_every_command()
                if name in _TOLD_BY_THE_EXIT_CODE:
                    each.callback = _silenced(each.callback)
            prepare(each)
            _refuse_empty_values(each)
            each.help = _with_examples_apart(each.help)
    return commands


@cache
def _of_every_command() -> list[Any]:
    # Made by typer, but in no signature.
    app = typer.Typer(add_completion=False)

    @app.command()
    def _(
        quiet: Annotated[
            bool,
            typer.Option(
                "-q",
                "--quiet",
                callback=_be_quiet,
                help="Print only errors, and no table if the exit code gives the result.",
            ),
        ] = False,
        no_color: Annotated[
            bool,
            typer.Option(
                "--no-color",
                callback=_be_plain,
                help="Print verdicts without colour, as with NO_COLOR in the environment.",
            ),
        ] = False,
    ) -> None:
        pass

    options = [one for one in get_command(app).params if one.name in {"quiet", "no_color"}]
    for one in options:
        one.expose_value = False
    return options


def _be_quiet(wanted: bool) -> None:
    render.set_manner(quiet=wanted)


def _be_plain(wanted: bool) -> None:
    render.set_manner(colour=not wanted)


def _silenced(command: Any) -> Any:  # noqa: ANN401 any function
    # Output for programs is printed in any case.
    @wraps(command)
    def run(**values: Any) -> Any:  # noqa: ANN401
        asked = any(values.get(name) for name in ("as_json", "as_csv", "print_"))
        if asked or not render.is_quiet():
            return command(**values)
        with open(os.devnull, "w", encoding="utf-8") as nothing, redirect_stdout(nothing):
            return command(**values)

    return run


def _with_examples_apart(text: str | None) -> str | None:
    # One paragraph for each: otherwise markdown adds the first to its heading, and makes blocks of
    # code from the others, which are indented.
    found = _EXAMPLES.search(cleandoc(text or ""))
    if found is None:
        return text
    return f"{found.string[: found.end()]}\n{cleandoc(found.string[found.end() :])}"


def _tree(command: Command) -> Iterator[Command]:
    yield command
    for child in getattr(command, "commands", {}).values():
        yield from _tree(child)


def prepare(command: Command) -> None:
    """Show no `<bool>` for the flags of a command, and read plain values without pydantic.

    Also those of typer's own options.
    """
    context = typer.Context(command, help_option_names=HELP_OPTIONS)
    for parameter in command.get_params(context):
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
        read_plainly(parameter)


def _refuse_empty_values(command: Command) -> None:
    for parameter in command.params:
        if not getattr(parameter, "is_flag", False):
            parameter.process_value = partial(  # type: ignore[method-assign]
                _checked, parameter, parameter.process_value
            )


def _checked(parameter: Any, process: Any, context: Any, value: Any) -> Any:  # noqa: ANN401 typer's
    usage.refuse_empty(parameter, value)
    return process(context, value)


class Commands(TyperGroup):
    """The group of all commands, for `typer.Typer(cls=…)`."""

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401 - typer's own settings
        super().__init__(**settings)
        self.commands = _ByName()  # type: ignore[assignment]  # none is added later
