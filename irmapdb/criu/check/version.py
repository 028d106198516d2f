"""Finds CRIU's version: from the user, from `criu --version`, or an assumption."""

from __future__ import annotations

import re
import subprocess

from irmapdb.errors import UsageError
from irmapdb.record import Record

__all__ = ["ASSUMED", "CriuVersion", "criu_version", "parse_version"]


class CriuVersion(Record):
    """A version of CRIU, and the source of that information."""

    major: int
    minor: int
    source: str = "--criu-version"

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"

    @property
    def is_known(self) -> bool:
        """Whether docs/criu.md describes the behaviour of this version."""
        return (4, 1) <= (self.major, self.minor) <= (4, 3)

    @property
    def walks_overlays(self) -> bool:
        """CRIU 4.3 and later walk an overlay to find its watches."""
        return (self.major, self.minor) >= (4, 3)


ASSUMED = CriuVersion(4, 2, "assumed: no criu on PATH prints its version")

_NUMBER = re.compile(r"(\d+)\.(\d+)")
_PATIENCE_S = 10


def parse_version(text: str) -> CriuVersion:
    """`4.2`, `4.1.1`, `v4.3-rc1`. UsageError for anything else."""
    found = _NUMBER.match(text.removeprefix("v"))
    if found is None:
        message = f"{text}: not a version"
        advice = "write it as `criu --version` does: 4.1, 4.2, 4.3"
        raise UsageError(message, advice=advice, about="CRIU's version")
    return CriuVersion(int(found[1]), int(found[2]))


def criu_version(program: str = "criu") -> CriuVersion:
    """The version of the CRIU on PATH; ASSUMED if there is none, or it does not answer."""
    try:
        said = subprocess.run(  # noqa: S603 the program that the user would call
            [program, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=_PATIENCE_S,
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ASSUMED
    found = re.search(rb"^Version:\s*(\d+)\.(\d+)", said, re.MULTILINE)
    if found is None:
        return ASSUMED
    return CriuVersion(int(found[1]), int(found[2]), f"{program} --version")
