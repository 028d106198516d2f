"""Runs the command line in this process, with the cost of a function call."""

from __future__ import annotations

import io
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from irmapdb import commands
from tests.support.json_contract import check_json

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

__all__ = ["Done", "irmapdb"]

_WITH_A_RESULT = {0, 3}


class Done(NamedTuple):
    """Exit code and output of a command; bytes that are not UTF-8 are lone surrogates."""

    code: int
    """Negative: the signal that ended it."""
    out: str
    err: str

    @property
    def said(self) -> str:
        """Both, the result first."""
        return self.out + self.err


def irmapdb(*arguments: str | os.PathLike[str], stdin: bytes = b"") -> Done:
    """Run `irmapdb` with these arguments. Standard input is no terminal.

    JSON is compared with its schema: AssertionError, or jsonschema's ValidationError.
    """
    out, err = _stream(), _stream()
    with _replaced(["irmapdb", *map(str, arguments)], _stream(stdin), out, err):
        try:
            commands.main()
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
    done = Done(code, _text(out), _text(err))
    if "--json" in arguments and code in _WITH_A_RESULT:
        check_json(list(map(str, arguments)), done.out)
    return done


def _stream(data: bytes = b"") -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(data), "utf-8", "surrogateescape", newline="\n")


def _text(stream: io.TextIOWrapper) -> str:
    stream.flush()
    return stream.buffer.getvalue().decode("utf-8", "surrogateescape")  # type: ignore[attr-defined]


@contextmanager
def _replaced(
    argv: list[str], stdin: io.TextIOWrapper, stdout: io.TextIOWrapper, stderr: io.TextIOWrapper
) -> Iterator[None]:
    before = sys.argv, sys.stdin, sys.stdout, sys.stderr
    hook, interrupt = sys.unraisablehook, signal.getsignal(signal.SIGINT)
    sys.argv, sys.stdin, sys.stdout, sys.stderr = argv, stdin, stdout, stderr
    try:
        yield
    finally:
        sys.argv, sys.stdin, sys.stdout, sys.stderr = before
        sys.unraisablehook = hook
        signal.signal(signal.SIGINT, interrupt)
