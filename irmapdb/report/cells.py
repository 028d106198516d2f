"""Values of a database as text and as numbers. A hostile database holds any value in any column."""

from __future__ import annotations

import math
import re

from irmapdb.model import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["cell_text", "is_time", "number_of"]

_LONGEST = 4_200
"""A little more than the longest path (PATH_MAX, 4,096 bytes)."""


_TIME = re.compile(r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)\.\d{1,6}", re.ASCII)


def cell_text(value: Any) -> str:  # noqa: ANN401 of any column
    """One line of text without control characters; "" for NULL."""
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case int():
            return str(value)
        case float():
            return f"{value:,.1f}"
        case str() if found := _TIME.fullmatch(value):
            text = found[1]  # in seconds
        case bytes():
            text = printable(value)
        case _:
            text = printable(str(value).encode("utf-8", "surrogateescape"))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def is_time(value: Any) -> bool:  # noqa: ANN401 of any column
    """Whether it is a time as irmapdb stores it."""
    return isinstance(value, str) and _TIME.fullmatch(value) is not None


def number_of(value: Any) -> float | None:  # noqa: ANN401 of any column
    """A finite number that is not negative; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value if 0 <= value < 1 << 62 else None
