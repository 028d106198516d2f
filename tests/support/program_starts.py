"""Whether a test starts programs: read from its code, from its fixtures and from its helpers."""

from __future__ import annotations

import inspect
from types import CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["starts_program"]

_STARTERS = {"multiprocessing", "pty", "subprocess"}


def starts_program(*functions: Callable[..., object]) -> bool:
    """Whether one of these names a module that starts programs, or a helper in tests/ does.

    It may be too strict: a name counts although the line is not reached. A fork alone is cheap.
    """
    seen: set[int] = set()
    waiting: list[object] = list(functions)
    while waiting:
        code = _code_of(waiting.pop())
        if code is None or id(code[0]) in seen:
            continue
        seen.add(id(code[0]))
        names = set(_names(code[0]))
        if names & _STARTERS:
            return True
        waiting += _helpers(names, code[1])
    return False


def _code_of(function: object) -> tuple[CodeType, dict[str, object]] | None:
    inner = getattr(getattr(function, "hypothesis", None), "inner_test", function)
    inner = inspect.unwrap(inner) if callable(inner) else inner
    inner = getattr(inner, "__func__", inner)  # a method, or a classmethod
    return (inner.__code__, inner.__globals__) if isinstance(inner, FunctionType) else None


def _names(code: CodeType) -> Iterator[str]:
    """Names of globals and attributes, also in the functions inside."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _helpers(names: set[str], scope: dict[str, object]) -> Iterator[object]:
    """The functions that lie in tests/ and have one of these names, and the methods of classes."""
    for name in names & scope.keys():
        found = scope[name]
        if isinstance(found, ModuleType):
            if found.__name__.startswith("tests."):
                yield from _helpers(names, vars(found))
        elif not str(getattr(found, "__module__", "")).startswith("tests."):
            continue
        elif isinstance(found, type):
            yield from vars(found).values()
        else:
            yield found
