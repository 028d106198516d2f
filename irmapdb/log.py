"""Logs messages of the library. It imports `logging` at the first message that has a handler.

The import of `logging` takes too long for the hook. If no module has imported it, no handler is set
up, and messages below WARNING would go nowhere.
"""

from __future__ import annotations

import contextlib
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Log", "warnings_into"]

_collected: list[list[str]] = []


class Log:
    """The logger of a module. Arguments are put into a text as `logging` does it, by %."""

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def is_debug(self) -> bool:
        """Whether a debug message would be handled."""
        logging = sys.modules.get("logging")
        return logging is not None and logging.getLogger(self._name).isEnabledFor(logging.DEBUG)

    def debug(self, text: str, *arguments: object) -> None:
        """Log a message for debugging."""
        if logging := sys.modules.get("logging"):
            logging.getLogger(self._name).debug(text, *arguments)

    def info(self, text: str, *arguments: object) -> None:
        """Log the progress of a step."""
        if logging := sys.modules.get("logging"):
            logging.getLogger(self._name).info(text, *arguments)

    def warning(self, text: str, *arguments: object) -> None:
        """Log a message that is printed on stderr."""
        if _collected:
            _collected[-1].append(text % arguments)
            return
        import logging  # noqa: PLC0415 seldom needed

        logging.getLogger(self._name).warning(text, *arguments)


@contextlib.contextmanager
def warnings_into(texts: list[str]) -> Iterator[None]:
    """Append the warnings of all modules to `texts`, and give them to no handler."""
    _collected.append(texts)
    try:
        yield
    finally:
        _collected.pop()
