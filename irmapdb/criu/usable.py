"""Checks whether the CRIU of this machine works on this kernel: `criu check`, with a time limit.

If not, or if there is none, it names the way to one that works. The package of a distribution may
be too old: Debian 12 has 3.17.1. Only apt tells the version of its package without a download.

Sources: apt-cache(8), policy.
"""

from __future__ import annotations

import os
import re
import subprocess

from irmapdb.criu.engines import which
from irmapdb.model import printable
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["CriuProgram", "find_criu", "how_to_install", "unusable_notes"]

_PATIENCE_S = 20
_SHOWN_CHARACTERS = 300
_OLDEST = (4, 1)
_INSTALLERS = {
    "apt-get": "apt-get install criu",
    "dnf": "dnf install criu",
    "zypper": "zypper install criu",
    "pacman": "pacman -S criu",
    "apk": "apk add criu",
}
_ELSEWHERE = (
    "install CRIU 4.1.1 or newer: Debian 13 has it. irmapdb's docs/criu.md has the steps for "
    "Debian 12; on other systems, build it from source"
)


class CriuProgram(Record):
    """The CRIU that the engines start."""

    path: Path
    version: str
    """"" if it did not print one."""
    why_not: str
    """Why it does not work here; "" if it does."""

    @property
    def fault(self) -> str:
        """The same with the program and its version, in a sentence."""
        name, version = printable(self.path), self.version or "of an unknown version"
        return f"{name} {version} does not work on this kernel: {self.why_not}"


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


def unusable_notes() -> tuple[str, ...]:
    """The fault of the CRIU on PATH, and the way to another one; () if it works, or there is none.

    Only root can ask CRIU: () for other users.
    """
    criu = None if os.geteuid() else find_criu()
    if criu is None or not criu.why_not:
        return ()
    return (f"{criu.fault}; {how_to_install(criu)}",)


def how_to_install(found: CriuProgram | None) -> str:
    """The command that installs a CRIU that works, or the way to one if no package is known to.

    `found`: the one that is here, and does not work.
    """
    name = next(filter(which, _INSTALLERS), "")
    if name == "apt-get":
        return _INSTALLERS[name] if _offered_by_apt() >= _OLDEST else _ELSEWHERE
    # Another package manager has probably installed the CRIU that is here.
    return _INSTALLERS[name] if name and found is None else _ELSEWHERE


def _offered_by_apt() -> tuple[int, ...]:
    program = which("apt-cache")
    said = "" if program is None else _run(program, "policy", "criu")[0]
    found = re.search(r"^ *Candidate: (?:\d+:)?(\d+)\.(\d+)", said, re.MULTILINE)
    return () if found is None else (int(found[1]), int(found[2]))


def _run(program: Path, *words: str) -> tuple[str, int | None]:
    # The output, and the exit code; None if it did not end in time.
    try:
        done = subprocess.run(  # noqa: S603 the program that the engines start
            [program, *words],
            env={**os.environ, "LC_ALL": "C"},
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
