"""Spans of time as people write them: `45s`, `90m`, `2h`, `30d`, `4w`."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

__all__ = ["before", "parse_duration"]

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION = re.compile(r"(\d{1,9}(?:\.\d+)?)\s*([smhdw])")


def parse_duration(text: str) -> timedelta:
    """A number and one unit. ValueError says what is expected."""
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        message = f"{text!r} is no span of time: write 45s, 90m, 2h, 30d or 4w"
        raise ValueError(message)
    try:
        return timedelta(seconds=float(found[1]) * _UNITS_S[found[2]])
    except OverflowError as error:
        raise ValueError(f"{text!r} is longer than any clock counts") from error


def before(now: datetime, span: timedelta) -> datetime:
    """So long ago; the first moment that a datetime can name where the span goes further back."""
    try:
        return now - span
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC)
