"""Turns typer's usage errors into one line: the wrong word, and the next step."""

from __future__ import annotations

import difflib
import os
import re
from typing import TYPE_CHECKING, Any

import typer

from irmapdb.commands import render
from irmapdb.commands.options import PID_ADVICE
from irmapdb.commands.suggest import advise_on_option
from irmapdb.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typer.core import TyperGroup

__all__ = ["ParserError", "refuse_empty", "translated"]

# typer has click's exceptions inside, and gives this one a name.
ParserError: type[Exception] = typer.BadParameter.__mro__[1]
"""typer's base class of all wrong usage."""

_CHOICES = re.compile(r"is not one of (.*?)\.?$", re.DOTALL)
_QUOTED = re.compile(r"'([^']*)'")
_MINIMUM = re.compile(r"greater than or equal to (\S+)")
_EXTRA = re.compile(r"unexpected extra argument(?:\(?s\)?)? \((.*)\)", re.DOTALL)
_UNKNOWN = re.compile(r"No such command '(.*?)'\.", re.DOTALL)
_CALLS_RUNC = {"containerd", "cri-o", "crio", "ctr", "docker", "kubelet", "kubernetes", "nerdctl"}
_TOLD_BY_THE_COMMAND = {"keys", "process", "query"}


def translated(error: Exception, arguments: Sequence[str], group: TyperGroup) -> UsageError:
    """A ParserError as an error of ours."""
    context = getattr(error, "ctx", None)
    command = _command(context, arguments, group)
    kind = type(error).__name__
    said = str(getattr(error, "message", error))
    if kind == "NoSuchOption":
        return _no_such_option(error, command, arguments, group)
    if kind == "MissingParameter":
        advice = f"`{command} --help` has examples"
        return UsageError(f"{command} needs {_name(error, arguments)}", advice=advice)
    if kind == "BadOptionUsage":
        option = render.shown(str(getattr(error, "option_name", "")))
        if "does not take a value" in said:
            return UsageError(f"{option} takes no value", advice=f"write {option} alone")
        advice = _see_help(command) + _choices_of(option, arguments, group)
        return UsageError(f"{option}: its value is missing", advice=advice)
    if found := _UNKNOWN.match(said):
        return _no_such_command(found[1], command, context)
    if found := _EXTRA.search(said):
        return _extra(found[1], command, context)
    if getattr(error, "param", None) is not None:
        return _bad_value(_name(error, arguments), _value(error, arguments), said)
    return UsageError(render.printable_text(said.rstrip(".")), advice=_see_help(command))


def refuse_empty(parameter: Any, value: object) -> None:  # noqa: ANN401 typer's, or click's
    """UsageError for an empty value: usually it is an unset variable of the shell."""
    values = value if isinstance(value, list | tuple) else [value]
    if "" not in values:
        return
    name = parameter.opts[0]
    if name.startswith("-"):
        rest = "" if parameter.required else f", or leave {name} away"
        raise UsageError(f"{name} '': an empty value", advice=f"give one{rest}")
    if name not in _TOLD_BY_THE_COMMAND:
        message = f"{parameter.metavar or name.upper()} is empty"
        raise UsageError(message, advice="name a file")


def _command(context: Any, arguments: Sequence[str], group: TyperGroup) -> str:  # noqa: ANN401
    if context is not None:
        return str(context.command_path)
    path, known = "irmapdb", group.commands
    for word in arguments:
        if word not in known:
            break
        path = f"{path} {word}"
        known = getattr(known[word], "commands", {})
    return path


def _see_help(command: str) -> str:
    return f"`{command} --help` explains it"


def _choices_of(option: str, arguments: Sequence[str], group: TyperGroup) -> str:
    # The values of an option that takes only some words; "" for every other option. typer's error
    # has no context here.
    command: Any = group
    for word in arguments:
        if word not in getattr(command, "commands", {}):
            break
        command = command.commands[word]
    for parameter in command.params:
        if option in parameter.opts:
            found = parameter.shell_complete(typer.Context(command), "")
            choices = [str(one.value) for one in found if one.type == "plain"]
            return f"; its values are {', '.join(choices)}" if choices else ""
    return ""


def _name(error: Any, arguments: Sequence[str]) -> str:  # noqa: ANN401
    """The option as it was written, else its first spelling; an argument as in the help."""
    parameter = error.param
    spellings = [*parameter.opts, *parameter.secondary_opts]
    if not spellings[0].startswith("-"):
        return str(parameter.metavar or parameter.name.upper())
    for word in reversed(arguments):
        if (name := word.partition("=")[0]) in spellings:
            return name
    return str(spellings[0])


def _value(error: Any, arguments: Sequence[str]) -> str:  # noqa: ANN401
    """The given value, the last one: typer does not report it."""
    spellings = error.param.opts
    value = ""
    for number, word in enumerate(arguments):
        name, equals, rest = word.partition("=")
        if word in spellings:
            value = "".join(arguments[number + 1 : number + 2])
        elif equals and name in spellings:
            value = rest
        elif word[:2] in spellings and not word.startswith("--"):
            value = word[2:]
    return value


def _no_such_option(
    error: Any,  # noqa: ANN401
    command: str,
    arguments: Sequence[str],
    group: TyperGroup,
) -> UsageError:
    option = render.shown(str(error.option_name))
    if command == "irmapdb":
        name = next((word for word in arguments if word in group.commands), "pre-dump")
        advice = f"options go after the command: `irmapdb {name} {option} …`"
    else:
        known = [name for one in error.ctx.command.params for name in one.opts]
        advice = advise_on_option(str(error.option_name), arguments, known, command)
    return UsageError(f"{option}: {command} has no such option", advice=advice)


def _no_such_command(name: str, command: str, context: Any) -> UsageError:  # noqa: ANN401
    known = list(getattr(context.command, "commands", ()))
    message = f"{render.shown(name)}: no such command of {command}"
    if command == "irmapdb" and re.fullmatch(r"\d+", name):
        return UsageError(message, advice=f"did you mean `irmapdb pre-dump -t {name}`?")
    if name == "help":
        return UsageError(message, advice="did you mean `irmapdb COMMAND --help`?")
    if close := difflib.get_close_matches(name, known, n=2):
        return UsageError(message, advice=f"did you mean {' or '.join(close)}?")
    return UsageError(message, advice=f"there are {', '.join(known)}")


def _extra(words: str, command: str, context: Any) -> UsageError:  # noqa: ANN401
    options = {name for one in context.command.params for name in one.opts} if context else set()
    message = f"{render.shown(words)}: {command} takes no such argument"
    first = words.partition(" ")[0]
    if f"--{first}" in options:
        return UsageError(message, advice=f"did you mean --{render.shown(words)}?")
    if "--tree" in options and first.isdecimal():
        return UsageError(message, advice=f"did you mean -t {first}?")
    if "--db" in options and first.endswith((".db", ".sqlite", ".sqlite3")):
        return UsageError(message, advice=f"did you mean --db {render.shown(first)}?")
    if "--work-dir" in options and os.path.isdir(first):
        letter = "-D" if "--images-dir" in options else "-W"
        return UsageError(message, advice=f"did you mean {letter} {render.shown(first)}?")
    return UsageError(message, advice=_see_help(command))


def _bad_value(name: str, value: str, said: str) -> UsageError:
    shown = render.shown(value) if value else "''"
    if found := _CHOICES.search(said):
        choices = _QUOTED.findall(found[1])
        message = f"{name} {shown}: not one of {', '.join(choices)}"
        if "runc" in choices and value.lower() in _CALLS_RUNC:
            return UsageError(message, advice=f"{shown} calls runc most often: use {name} runc")
        close = difflib.get_close_matches(value.lower(), choices, n=1)
        advice = f"did you mean {name} {close[0]}?" if close else f"write {name} {choices[0]}"
        return UsageError(message, advice=advice)
    if name in {"-t", "--tree"}:
        return UsageError(f"{name} {shown}: not a process id", advice=PID_ADVICE)
    if found := _MINIMUM.search(said):
        return UsageError(f"{name} {shown}: too small", advice=f"give {found[1]} or more")
    if "integer" in said:
        return UsageError(f"{name} {shown}: not a whole number", advice=f"write {name} 10")
    if "number" in said:
        return UsageError(f"{name} {shown}: not a number of seconds", advice=f"write {name} 2.5")
    return UsageError(f"{name} {shown}: {render.printable_text(said.rstrip('.'))}")
