"""Reads plain values of options without pydantic.

typer reads each value with pydantic, also one that was not given, and its import takes six times as
long as Python's own start. So plain text, whole numbers, paths and choices are read here. typer
reads every other value, and reports each wrong one.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["read_plainly"]

_MOST_DIGITS = 15


def read_plainly(parameter: Any) -> None:  # noqa: ANN401 typer's
    """Read the plain values of an option or argument of typer's here."""
    reader = _reader(parameter)
    if reader is not None:
        parameter.get_runtime_param = _Plain(reader, parameter.get_runtime_param).itself


class _Plain:
    # Stands for typer's RuntimeParam. The reader raises ValueError for a value that is not plain.

    def __init__(self, read: Callable[[Any], Any], typers: Callable[[], Any]) -> None:
        self._read = read
        self._typers = typers

    def itself(self) -> _Plain:
        return self

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:  # noqa: ANN401 typer's
        is_many = param.multiple or param.nargs == -1
        if value is None:
            return () if is_many else None
        try:
            if not is_many:
                return self._read(value)
            if isinstance(value, list | tuple):
                return [self._read(one) for one in value]
        except ValueError:
            pass
        return self._typers().coerce(value, param=param, ctx=ctx)


def _reader(parameter: Any) -> Callable[[Any], Any] | None:  # noqa: ANN401 typer's
    # None: typer reads all values.
    descriptor = getattr(parameter, "type_descriptor", None)
    if descriptor is None or not hasattr(parameter, "get_runtime_param"):
        return None  # another typer
    kind, info = descriptor.annotation, descriptor.parameter_info
    if parameter.nargs not in {1, -1} or info.parser is not None:
        return None
    if get_origin(kind) is list:
        (kind,) = get_args(kind)
    if get_origin(kind) is Literal:
        return _choice(get_args(kind))
    if kind is Path:
        return None if _is_looked_at(info) else _path
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _member(kind)
    if kind in _READERS:
        return _within(_READERS[kind], info.min, info.max)
    return _text if kind is str and not descriptor.is_path else None


def _is_looked_at(info: Any) -> bool:  # noqa: ANN401 typer's
    # Whether typer looks at the file of a path.
    asked = info.exists or info.readable or info.writable or info.resolve_path or info.allow_dash
    return bool(asked or info.path_type or not (info.file_okay and info.dir_okay))


def _choice(choices: tuple[object, ...]) -> Callable[[Any], Any]:
    def read(value: object) -> object:
        if type(value) is not str or value not in choices:
            raise ValueError
        return value

    return read


def _member(kind: type[Enum]) -> Callable[[Any], Any]:
    members = {one.value: one for one in kind}

    def read(value: Any) -> Enum:  # noqa: ANN401 typer's
        if isinstance(value, kind):
            return value
        if type(value) is not str or value not in members:
            raise ValueError
        return members[value]

    return read


def _within(
    read: Callable[[Any], Any], least: float | None, most: float | None
) -> Callable[[Any], Any]:
    def read_within(value: object) -> object:
        number = read(value)
        if (least is not None and number < least) or (most is not None and number > most):
            raise ValueError
        return number

    return read_within


def _text(value: object) -> str:
    if type(value) is not str:
        raise ValueError
    return value


def _path(value: object) -> Path:
    return value if isinstance(value, Path) else Path(_text(value))


def _whole_number(value: object) -> int:
    if type(value) is int:
        return value
    text = _text(value)
    if not (text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS):
        raise ValueError
    return int(text)


def _number(value: object) -> float:
    # Only a default: of a text there are many forms.
    if type(value) not in {int, float}:
        raise ValueError
    return float(value)  # type: ignore[arg-type]


def _flag(value: object) -> bool:
    if type(value) is not bool:
        raise ValueError
    return value


_READERS: dict[Any, Callable[[Any], Any]] = {int: _whole_number, float: _number, bool: _flag}
