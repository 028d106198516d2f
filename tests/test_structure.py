"""The shape of the code: a class has one subject, so it has few methods."""

from __future__ import annotations

import ast
from pathlib import Path

_PACKAGE = Path(__file__).parent.parent / "irmapdb"
_MOST_METHODS = 15
_LARGE: dict[str, str] = {}
"""A class that may have more, and why: the same reason is in its docstring."""


def _methods(module: ast.Module) -> dict[str, int]:
    """The number of methods of each class in a module, those inside of functions too."""
    return {
        node.name: sum(isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef) for one in node.body)
        for node in ast.walk(module)
        if isinstance(node, ast.ClassDef)
    }


def test_methods_are_counted() -> None:
    text = "class A:\n def a(self): 0\n @property\n async def b(self): 0\n class B:\n  c = 1\n"
    assert _methods(ast.parse(text)) == {"A": 2, "B": 0}


def test_no_class_has_more_than_15_methods() -> None:
    large = {
        name: number
        for path in _PACKAGE.rglob("*.py")
        for name, number in _methods(ast.parse(path.read_bytes())).items()
        if number > _MOST_METHODS
    }
    assert large.keys() == _LARGE.keys(), f"split it by subject: {large}"
