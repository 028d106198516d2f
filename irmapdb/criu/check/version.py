"""Finds CRIU's version: from the user, from `criu --version`, or an assumption."""

from __future__ import annotations

import re
import subprocess

from irmapdb.criu.check.verdicts import CriuVersion
from irmapdb.errors import UsageError

__all__ = ["ASSUMED", "criu_version", "parse_version"]

ASSUMED = CriuVersion(4, 2, "assumed: no criu on PATH tells its version")

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
