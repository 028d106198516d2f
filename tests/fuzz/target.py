"""The type of a fuzz target, and the checks that all targets share."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from irmapdb.errors import IrmapError

__all__ = ["Check", "Refused", "Target", "check", "check_text", "refusal"]


class Target(NamedTuple):
    """One function under test."""

    name: str
    run: Callable[[bytes], None]
    """Takes an input; raises anything if a promise is broken."""
    seeds: Callable[[], Iterable[bytes]]
    """Valid inputs to start from."""
    words: tuple[bytes, ...] = ()
    """Texts that the fuzzer puts into inputs as a whole: libFuzzer's dictionary."""
    largest_bytes: int = 1024
    short_runs: int = 3000
    """How many inputs `make test` runs."""


class Check(AssertionError):  # noqa: N818 - the name that a report shows
    """A promise that is broken."""


def check(condition: object, what: str) -> None:
    """Like assert, which optimised Python leaves out."""
    if not condition:
        raise Check(what)


# Control characters, and characters that make a terminal change the order of the text.
_CONTROL = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
)


def check_text(text: str) -> None:
    """Raise Check if a terminal would take a part of `text` as a command."""
    found = _CONTROL.search(text)
    if found is not None:
        raise Check(f"a message holds {found[0]!a}: {text!a}")


class Refused(NamedTuple):
    """Whether irmapdb refused an input, and how."""

    errors: list[IrmapError]

    def __bool__(self) -> bool:
        return bool(self.errors)


@contextmanager
def refusal(*documented: type[IrmapError]) -> Iterator[Refused]:
    """Errors of these classes are legal, if their text is; every other exception is a fault."""
    refused = Refused([])
    try:
        yield refused
    except documented as error:
        check(error.message, "an error without a message")
        check_text(str(error))
        refused.errors.append(error)
