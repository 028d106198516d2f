"""Parses spans of time such as `45s`, `90m`, `2h`, `30d`, `4w`, and formats spans for people."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

__all__ = ["before", "format_estimate", "parse_duration"]

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_MS_US, _S_US, _MINUTE_US = 1_000, 1_000_000, 60_000_000
_DURATION = r"(\d{1,9}(?:\.\d+)?)\s*([smhdw])"


def parse_duration(text: str) -> timedelta:
    """A number and one unit. ValueError names the expected form."""
    import re  # noqa: PLC0415 the hook needs it seldom

    found = re.fullmatch(_DURATION, text.strip())
    if found is None:
        raise ValueError(f"{text!r} is no span of time: write 45s, 90m, 2h, 30d or 4w")
    try:
        return timedelta(seconds=float(found[1]) * _UNITS_S[found[2]])
    except OverflowError as error:
        raise ValueError(f"{text!r} is longer than any clock counts") from error


def before(now: datetime, span: timedelta) -> datetime:
    """The time before this span; the first possible datetime if the span is too long."""
    try:
        return now - span
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC)


def format_estimate(span_us: int) -> str:
    """An estimate, and no finer than it is: `260 µs`, `1.6 s`, `20 min`."""
    span = _two_digits(span_us)
    if span < _MS_US:
        return f"{span:.0f} µs"
    if span < _S_US:
        return f"{span / _MS_US:.3g} ms"
    if span < 10 * _MINUTE_US:
        return f"{span / _S_US:.3g} s"
    return f"{span / _MINUTE_US:,.0f} min"


def _two_digits(number: float) -> float:
    return float(f"{number:.2g}")
