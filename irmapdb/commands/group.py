"""The commands by name, each imported and built when it is asked for.

typer builds every command of an app before it looks at the arguments; that takes longer than most
of them take to do their work. The list of names is enough for it to find the one that is meant,
to suggest one for a name that is wrong, and to complete a name in the shell.

Source: https://click.palletsprojects.com/en/stable/complex/#lazily-loading-subcommands, whose
classes typer keeps.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from inspect import cleandoc
from typing import TYPE_CHECKING, Any, cast

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_group

from irmapdb.commands import usage

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["HELP_OPTIONS", "Commands", "hide_bools"]

HELP_OPTIONS = ["-h", "--help"]

Command = TyperCommand | TyperGroup

_MODULES = {
    "pre-dump": "checkpoint",
    "dump": "checkpoint",
    "check": "check",
    "import": "images",
    "export": "images",
    "convert": "images",
    "show": "images",
    "audit": "audit",
    "ps": "ps",
    "prune": "prune",
    "lookup": "lookup",
    "sql": "sql",
    "hook": "hook",
    "warm": "warm",
    "db": "database",
}
"""In the order in which help has them: the module of each, which has others beside it."""

_EXAMPLES = re.compile(r"^Examples?:\n", re.MULTILINE)


class _ByName(Mapping[str, Command]):
    """All commands; one is there as soon as it is looked at."""

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
    import_module(f"irmapdb.commands.{module}").add_to(app)
    commands = cast("dict[str, Command]", get_group(app).commands)
    for command in commands.values():
        for each in _tree(command):
            hide_bools(each)
            _refuse_empty_values(each)
            each.help = _with_examples_apart(each.help)
    return commands


def _with_examples_apart(text: str | None) -> str | None:
    # A paragraph each: markdown takes the first for the end of its heading, and the others,
    # indented, for blocks of code with blank lines around.
    found = _EXAMPLES.search(cleandoc(text or ""))
    if found is None:
        return text
    return f"{found.string[: found.end()]}\n{cleandoc(found.string[found.end() :])}"


def _tree(command: Command) -> Iterator[Command]:
    yield command
    for child in getattr(command, "commands", {}).values():
        yield from _tree(child)


def hide_bools(command: Command) -> None:
    """Let no flag of a command, typer's own neither, look as if it took a `<bool>`."""
    context = typer.Context(command, help_option_names=HELP_OPTIONS)
    for parameter in command.get_params(context):
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""


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

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401 - whatever typer gives
        super().__init__(**settings)
        self.commands = _ByName()  # type: ignore[assignment]  # none is added later
