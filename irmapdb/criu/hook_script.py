"""Fills in and installs `irmapdb-hook.sh`, the shell script that CRIU executes.

The script is outside of any Python environment, so that a dump passes even if irmapdb is removed.
It lists the configuration files that call it, one in a comment line each. It is removed with the
last of them.
"""

from __future__ import annotations

import contextlib
import os
import site
import stat
import subprocess
import sys
from pathlib import Path

from irmapdb import config, files
from irmapdb.criu.hook_wait import wait_for_all
from irmapdb.errors import FileError
from irmapdb.model import printable
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from irmapdb.model import AnyPath

__all__ = [
    "IMPORTS",
    "RUN_DIRECTORY",
    "SCRIPT_PATH",
    "InstalledScript",
    "check_parents",
    "find_python",
    "is_script",
    "read_script",
    "release_script",
    "script_text",
    "write_script",
]

SCRIPT_PATH = Path("/usr/local/libexec/irmapdb/irmapdb-hook")
"""The path at which `irmapdb hook --install` writes it."""

RUN_DIRECTORY = Path("/run/irmapdb")
"""Only for root: the FIFO of the service, its images, and the list of served dumps."""

IMPORTS = (
    "import sys; sys.path += sys.argv[1].split(':');"
    "import irmapdb.criu.hook_job, sqlalchemy, alembic, google.protobuf"
)
"""A program that imports all modules of the hook; its argument are the directories for sys.path."""

_TEMPLATE = Path(__file__).with_name("irmapdb-hook.sh")
_LIMIT_BYTES = 1 << 20
_CRIU_S = 20.0  # a pod that ends has 30 s
_SECOND_LINE = b"# irmapdb-hook: CRIU executes this file"
_USER = b"# called from: "
_VALUES = (b"program", b"python", b"packages", b"config", b"run")


class InstalledScript(Record):
    """The values in an installed script. Each is b"" if the script has no such line."""

    program: bytes
    python: bytes
    """b"" if the script starts `program` itself."""
    packages: bytes
    """The directories for sys.path, with `:` between them."""
    config: bytes
    run: bytes
    is_unchanged: bool
    """Whether the text is the one that this irmapdb writes for these values."""


def script_text(
    program: Path,
    config_files: Iterable[Path] = (),
    *,
    python: Path | None = None,
    config_file: AnyPath = config.DEFAULT_PATH,
    run: Path = RUN_DIRECTORY,
) -> bytes:
    """The script that starts `program`, the `irmapdb-hook` of a Python environment.

    `python` is the interpreter of that environment, if it runs now. The script starts it directly,
    as long as this package stays at its present place.
    """
    values: dict[bytes, str | AnyPath] = {
        b"program": program,
        b"python": python or "",
        b"packages": _packages() if python else "",
        b"config": config_file,
        b"run": run,
    }
    return _filled({name: os.fsencode(value) for name, value in values.items()}, config_files)


def read_script(path: Path) -> InstalledScript | None:
    """The script at a path; None if the regular file there is no script of ours. FileError."""
    text = files.read_if_there(path, limit_bytes=_LIMIT_BYTES)
    if text is None or not is_script(path):
        return None
    values = {}
    for line in text.split(b"\n"):
        name, equals, quoted = line.partition(b"=")
        if equals and name in _VALUES and name not in values:
            values[name] = quoted[1:-1].replace(b"'\\''", b"'")
    is_unchanged = _filled(values, _users(path)) == text
    program, python, packages, config_file, run = (values.get(name, b"") for name in _VALUES)
    return InstalledScript(program, python, packages, config_file, run, is_unchanged)


def _filled(values: dict[bytes, bytes], config_files: Iterable[Path]) -> bytes:
    text = _TEMPLATE.read_bytes()
    for name, value in values.items():
        text = text.replace(b"=@%b@\n" % name, b"=%b\n" % _quoted(value), 1)
    first, second, rest = text.split(b"\n", 2)
    users = [_USER + os.fsencode(file) for file in sorted(set(config_files)) if _is_plain(file)]
    return b"\n".join((first, second, *users, rest))


def is_script(path: Path) -> bool:
    """Whether a regular file there is the script of `script_text`, of this or another version."""
    return any(line.startswith(_SECOND_LINE) for line in _lines(path)[1:2])


def write_script(
    path: Path, program: Path, config_file: Path, *, python: Path | None = None
) -> None:
    """Install the script for one more configuration file. FileError if that is not possible.

    `python` as in `script_text`.
    """
    check_parents(path)
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(
            f"cannot make {printable(path.parent)}: {error.strerror}",
            advice="try as root, or name a place for the script",
            remedy="script",
        ) from error
    text = script_text(program, {*_users(path), config_file}, python=python)
    if files.read_if_there(path, limit_bytes=_LIMIT_BYTES) != text or not os.access(path, os.X_OK):
        files.replace_whole(path, text, mode=0o755)


def release_script(path: Path, config_file: Path) -> bool:
    """Remove the script, unless another configuration file calls it; whether it was removed.

    It reads each file. A file that cannot be read counts as one that calls the script. A CRIU that
    runs may have read the file before, and fails if the script is missing: so this waits for its
    end. FileError, and the script stays, if that takes too long.
    """
    if not is_script(path):
        return False
    name = os.fsencode(path)
    beside = [file for file in config_file.parent.glob("*.conf") if file != config_file]
    if any(_names(file, name) for file in {*_users(path), *beside} - {config_file}):
        return False
    if (criu := wait_for_all(_CRIU_S)) is not None:
        raise FileError(
            f"{printable(path)}: stays, because CRIU (process {criu.pid}) may execute it",
            advice="remove it when that process has ended",
        )
    path.unlink(missing_ok=True)
    if path == SCRIPT_PATH or path.parent.name == SCRIPT_PATH.parent.name:
        with contextlib.suppress(OSError):  # it has other files
            path.parent.rmdir()
    return True


def find_python() -> Path | None:
    """The interpreter that the script may start without `site`.

    None if the modules are not found then, as where the environment relies on .pth files: there
    the script starts the program instead.
    """
    if not sys.executable:
        return None
    command = [sys.executable, "-ISc", IMPORTS, _packages()]
    try:
        done = subprocess.run(command, capture_output=True, timeout=60, check=False)  # noqa: S603 our own
    except (OSError, subprocess.TimeoutExpired):
        return None
    return Path(sys.executable) if done.returncode == 0 else None


def check_parents(path: Path) -> None:
    """Refuse a place where other users could replace the file (FileError)."""
    for directory in path.parents:
        try:
            found = directory.stat()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise FileError(f"{printable(directory)}: {error.strerror}") from error
        if found.st_uid not in {0, os.geteuid()} or (
            found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX
        ):
            raise FileError(
                f"{printable(directory)}: belongs to others, and CRIU would run a file in it"
                " as root",
                advice="name another place",
                remedy="script",
            )


def _names(file: Path, script: bytes) -> bool:
    try:
        return script in (files.read_if_there(file, limit_bytes=_LIMIT_BYTES) or b"").split()
    except FileError:
        return True


def _packages() -> str:
    # The directories of this environment's modules, this package's first, for sys.path. "" if they
    # do not fit into one line.
    own = str(Path(__file__).parents[2])
    found = dict.fromkeys([own, *site.getsitepackages()])
    return "" if any(":" in directory for directory in found) else ":".join(found)


def _users(path: Path) -> list[Path]:
    found = (line.removeprefix(_USER) for line in _lines(path) if line.startswith(_USER))
    return [Path(os.fsdecode(file)) for file in found]


def _lines(path: Path) -> list[bytes]:
    try:
        return (files.read_if_there(path, limit_bytes=_LIMIT_BYTES) or b"").split(b"\n")
    except FileError:
        return []


def _is_plain(file: Path) -> bool:
    return file.is_absolute() and b"\n" not in os.fsencode(file)


def _quoted(text: bytes) -> bytes:
    return b"'%b'" % text.replace(b"'", b"'\\''")
