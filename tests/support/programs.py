"""Runs other programs: finds them also in sbin, and raises ProgramError if they fail."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["SYSTEM_PATH", "ProgramError", "find_program", "run"]

# mkfs, mount and losetup live in sbin, which the PATH of an ordinary user's shell may lack.
SYSTEM_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))


class ProgramError(Exception):
    """A program is missing, or ended with an error; the message has the command and its output."""


def find_program(name: str) -> Path | None:
    """The path of `name`, or None where it is not installed."""
    found = shutil.which(name, path=SYSTEM_PATH)
    return None if found is None else Path(found)


def run(
    *argv: str | os.PathLike[str],
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: bytes = b"",
) -> bytes:
    """The stdout of the program; ProgramError if it did not end with 0.

    `env` is added to our environment, which gets a PATH with sbin in it.
    """
    command = [os.fspath(part) for part in argv]
    environment = {**os.environ, "PATH": SYSTEM_PATH, "LC_ALL": "C.UTF-8", **(env or {})}
    executable = shutil.which(command[0], path=SYSTEM_PATH)
    if executable is None:
        message = f"no program {command[0]} on this machine"
        raise ProgramError(message)
    done = subprocess.run(
        command,
        executable=executable,
        env=environment,
        cwd=cwd,
        input=stdin,
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        talk = (done.stderr + done.stdout).decode(errors="replace").strip()
        message = f"exit code {done.returncode} from {' '.join(command)}: {talk}"
        raise ProgramError(message)
    return done.stdout
