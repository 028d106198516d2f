"""Checks whether the CRIU of this machine works on this kernel: `criu check`, with a time limit."""

from __future__ import annotations

import re
import subprocess

from irmapdb.criu.engines import which
from irmapdb.model import printable
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["CriuProgram", "find_criu"]

_PATIENCE_S = 20
_SHOWN_CHARACTERS = 300


class CriuProgram(Record):
    """The CRIU that the engines start."""

    path: Path
    version: str
    """"" if it did not print one."""
    why_not: str
    """Why it does not work here; "" if it does."""


def find_criu() -> CriuProgram | None:
    """The CRIU on PATH, which it asks `criu check`; None if there is none."""
    path = which("criu")
    if path is None:
        return None
    said, _ = _run(path, "--version")
    found = re.search(r"^Version:\s*(\S+)", said, re.MULTILINE)
    version = found[1][:40] if found else ""
    said, code = _run(path, "check")
    return CriuProgram(path, version, "" if code == 0 else _reason(said, code))


def _run(program: Path, word: str) -> tuple[str, int | None]:
    # The output, and the exit code; None if it did not end in time.
    try:
        done = subprocess.run(  # noqa: S603 the program that the engines start
            [program, word],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            timeout=_PATIENCE_S,
        )
    except subprocess.TimeoutExpired:
        return "", None
    except OSError as error:
        return f"{error.strerror}", -1
    return done.stdout[-65536:].decode("utf-8", "replace"), done.returncode


def _reason(said: str, code: int | None) -> str:
    if code is None:
        return f"`criu check` did not end in {_PATIENCE_S} s"
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line] or lines
    # The first error is the cause of the others.
    text = errors[0] if errors else f"`criu check` ended with exit code {code}"
    return printable(text.encode())[:_SHOWN_CHARACTERS]
