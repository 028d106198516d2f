"""Find, prove and keep the paths of inotify watches and fanotify marks for CRIU.

The names of `__all__` are the library: docs/library.md describes them, and they are stable. All
modules below are internal.

CRIU waits for the import of this package, so each name is imported only at its first use (PEP 562).
`__init__.pyi` has the names and their modules, for type checkers and for this module.
"""

from __future__ import annotations

import sys

__version__ = "0.2.0"

_found: dict[str, tuple[str, str]] = {}


def _places() -> dict[str, tuple[str, str]]:
    # The module of each name, and its name there: "from MODULE import NAME as OURS".
    if not _found:
        # By the loader: the package may be in a zip file.
        data = __spec__.loader.get_data(f"{__path__[0]}/__init__.pyi")  # type: ignore[union-attr]
        lines = [line.split() for line in data.decode().splitlines() if line.startswith("from ")]
        # All names at once: another thread may read them.
        _found.update({ours: (module, name) for _, module, _, name, _, ours in lines})
    return _found


def __getattr__(name: str) -> object:
    if name == "__all__":
        return ["__version__", *_places()]
    if name not in _places():
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message, name=name, obj=sys.modules[__name__])
    from importlib import import_module  # noqa: PLC0415 the hook does without

    module, inner = _places()[name]
    value = getattr(import_module(module), inner)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_places()})


class _Library(type(sys)):  # type: ignore[misc]  # types.ModuleType, without an import
    """Ours: an import of the package `irmapdb.audit` does not hide the function of that name."""

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _places() or not isinstance(value, type(sys)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Library
