"""Finds the faults of an installed script of the hook.

The script is started only if no user but root can have changed it. Its program is started as CRIU
would do it; `find_program_faults` checks whether another user can have changed the program.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
import stat
import subprocess
from pathlib import Path

from irmapdb.criu import hook_script
from irmapdb.errors import FileError
from irmapdb.model import printable
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from irmapdb.criu.hook_script import InstalledScript
    from irmapdb.model import AnyPath

__all__ = [
    "Fault",
    "find_program_faults",
    "find_script_faults",
    "move_command",
    "write_fault",
]

_PATIENCE_S = 30
_WRITE = stat.S_IWGRP | stat.S_IWOTH


class Fault(Record):
    """A fault, and the command that mends it."""

    text: str
    command: str


def find_script_faults(script: Path, install: str) -> tuple[Fault, ...]:
    """The faults of a script that a configuration file names.

    `install` is the command that writes the script and the line again.
    """
    name = printable(script)
    try:
        found = script.stat()
    except FileNotFoundError:
        return (Fault(f"{name} is missing, so every dump fails", install),)
    except OSError as error:
        return (Fault(f"{name}: {error.strerror}", install),)
    if not stat.S_ISREG(found.st_mode):
        command = f"{move_command(script)} && {install}"
        return (Fault(f"{name} is no regular file, so every dump fails", command),)
    rights = tuple(_rights(script))
    if rights:
        return rights
    if not found.st_mode & stat.S_IXUSR:
        return (Fault(f"{name} is not executable, so every dump fails", _chmod("u+x", script)),)
    return _content(script, install)


def write_fault(path: AnyPath) -> Fault | None:
    """Whether a user other than root could change a file or directory; None if not.

    OSError if it cannot be looked at.
    """
    found, name = os.lstat(path), printable(path)
    if found.st_uid != 0:
        text = f"{name} belongs to user {found.st_uid}, and must belong to root"
        return Fault(text, f"chown root {_quoted(path)}")
    is_sticky = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
    if found.st_mode & _WRITE and not is_sticky and not stat.S_ISLNK(found.st_mode):
        return Fault(f"users other than root may write to {name}", _chmod("go-w", path))
    return None


def find_program_faults(script: Path) -> tuple[Fault, ...]:
    """Whether a user other than root could change the program and the modules of a script.

    A script that cannot be read has none.
    """
    try:
        installed = hook_script.read_script(script)
    except FileError:
        return ()
    if installed is None:
        return ()
    packages = installed.packages.partition(b":")[0]
    names = [installed.program, os.path.join(packages, b"irmapdb/criu") if packages else b""]
    faults: dict[Fault, None] = {}
    for path in (Path(os.fsdecode(name)) for name in names if name):
        for one in (path, *path.parents):
            with contextlib.suppress(OSError):
                if (fault := write_fault(one)) is not None:
                    faults[fault] = None
    return tuple(faults)


def move_command(path: AnyPath) -> str:
    """The command that renames a file to a free name in its directory."""
    name = os.fsdecode(path)
    free = next(new for n in itertools.count(1) if not os.path.lexists(new := f"{name}.old-{n}"))
    return f"mv {_quoted(name)} {_quoted(free)}"


def _rights(script: Path) -> Iterator[Fault]:
    for path in (script, *script.parents):
        fault = write_fault(path)
        if fault is not None:
            yield fault


def _content(script: Path, install: str) -> tuple[Fault, ...]:
    name = printable(script)
    try:
        installed = hook_script.read_script(script)
    except FileError as error:
        return (Fault(str(error), install),)
    if installed is None:
        # An older irmapdb named the Python program itself.
        text = f"{name} is no script of `irmapdb hook --install`: CRIU starts it at every action"
        command = install
        if script == hook_script.SCRIPT_PATH or "--script" in install:
            command = f"{move_command(script)} && {install}"
        return (Fault(text, command),)
    if not installed.is_unchanged:
        text = f"{name} was changed, or another version of irmapdb wrote it"
        return (Fault(text, install),)
    why = _why_not_started([script]) or _why_no_hook(installed)
    return (Fault(f"{name}: {why}", install),) if why else ()


def _why_no_hook(installed: InstalledScript) -> str:
    program = Path(os.fsdecode(installed.program))
    if not program.is_file():
        return f"{printable(program)} is missing, so irmapdb does not run before a dump"
    if why := _why_not_started([program]):
        return f"{printable(program)}: {why}"
    python, packages = map(os.fsdecode, (installed.python, installed.packages))
    own = Path(packages.partition(":")[0], "irmapdb/criu/hook.py")
    if not python or not os.access(python, os.X_OK) or not own.is_file():
        return ""  # the script starts the program then
    if why := _why_not_started([python, "-ISc", hook_script.IMPORTS, packages]):
        return f"{printable(os.fsencode(python))}: {why}"
    return ""


def _why_not_started(command: Sequence[AnyPath | str]) -> str:
    environment = {
        **os.environ,
        "CRTOOLS_SCRIPT_ACTION": "irmapdb-check",
        "IRMAPDB_HOOK_SCRIPT": "",
    }
    try:
        done = subprocess.run(  # noqa: S603 as CRIU and the script will
            command,
            env=environment,
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=_PATIENCE_S,
        )
    except subprocess.TimeoutExpired:
        return f"did not end in {_PATIENCE_S} s"
    except OSError as error:
        return f"cannot be executed: {error.strerror}"
    if done.returncode == 0:
        return ""
    lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
    last = f": {printable(lines[-1].encode())[:200]}" if lines else ""
    return f"ended with exit code {done.returncode}{last}"


def _chmod(mode: str, path: AnyPath) -> str:
    return f"chmod {mode} {_quoted(path)}"


def _quoted(path: AnyPath | str) -> str:
    return shlex.quote(os.fsdecode(path))
