"""Spans of time, as people read them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from irmapdb.durations import format_estimate


@pytest.mark.parametrize(
    ("span_us", "shown"),
    [
        (0, "0 µs"),
        (256, "260 µs"),
        (999, "1 ms"),
        (47_321, "47 ms"),
        (1_550_000, "1.6 s"),
        (155_000_000, "160 s"),
        (7_213_000_000, "120 min"),
    ],
)
def test_an_estimate_has_two_digits(span_us, shown):
    assert format_estimate(span_us) == shown


@given(st.integers(1, 10**12))
def test_an_estimate_is_near(span_us):
    number, unit = format_estimate(span_us).split()
    assert re.fullmatch(r"[\d,]+(\.\d)?", number), "no exponent, and no 0.00026"
    size = {"µs": 1, "ms": 1e3, "s": 1e6, "min": 6e7}[unit]
    assert float(number.replace(",", "")) * size == pytest.approx(span_us, rel=0.1)
