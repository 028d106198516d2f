"""Runs the command line in this process, with the cost of a function call."""

from __future__ import annotations

import io
import os
import signal
import sys
from contextlib import contextmanager
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, NamedTuple

from irmapdb import commands
from tests.support.json_contract import check_json

if TYPE_CHECKING:
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
    with _given(stdin), _replaced(["irmapdb", *map(str, arguments)], out, err):
        try:
            commands.main()
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
    done = Done(code, _text(out), _text(err))
    if "--json" in arguments and code in _WITH_A_RESULT:
        check_json(list(map(str, arguments)), done.out)
    return done


def _stream() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), "utf-8", "surrogateescape", newline="\n")


def _text(stream: io.TextIOWrapper) -> str:
    stream.flush()
    return stream.buffer.getvalue().decode("utf-8", "surrogateescape")  # type: ignore[attr-defined]


@contextmanager
def _given(data: bytes) -> Iterator[None]:
    # In the place of descriptor 0.
    before, sys_stdin = os.dup(0), sys.stdin
    fd = _filled_pipe(data) if len(data) <= _PIPE_BYTES else _file(data)
    os.dup2(fd, 0)
    os.close(fd)
    try:
        with open(0, encoding="utf-8", errors="surrogateescape", closefd=False) as sys.stdin:
            yield
    finally:
        sys.stdin = sys_stdin
        os.dup2(before, 0)
        os.close(before)


_PIPE_BYTES = 1 << 16
"""The capacity of a pipe: pipe(7)."""


def _filled_pipe(data: bytes) -> int:
    read, write = os.pipe()
    os.write(write, data)
    os.close(write)
    return read


def _file(data: bytes) -> int:
    with TemporaryFile() as file:
        file.write(data)
        file.flush()
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        return os.dup(file.fileno())


@contextmanager
def _replaced(
    argv: list[str], stdout: io.TextIOWrapper, stderr: io.TextIOWrapper
) -> Iterator[None]:
    before = sys.argv, sys.stdout, sys.stderr
    hook, interrupt = sys.unraisablehook, signal.getsignal(signal.SIGINT)
    sys.argv, sys.stdout, sys.stderr = argv, stdout, stderr
    try:
        yield
    finally:
        sys.argv, sys.stdout, sys.stderr = before
        sys.unraisablehook = hook
        signal.signal(signal.SIGINT, interrupt)
