"""The error of a benchmark without a result."""

from __future__ import annotations

__all__ = ["BenchError"]


class BenchError(Exception):
    """A message that names the object, and the next step."""

    def __init__(self, message: str, *, advice: str = "") -> None:
        super().__init__(f"{message}; {advice}" if advice else message)
