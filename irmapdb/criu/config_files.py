"""Edits CRIU's configuration files: the file that each runtime reads, and our line in it.

One option a line, without dashes: `action-script /path`. A `#` begins a comment at any place. A
path with blanks is not possible, quoted or not. The option may have several lines, and CRIU calls
every script (parse_statement() of criu/config.c, add_script() of criu/action-scripts.c). The file
of each runtime: criu(8), CONFIGURATION FILES; runc's docs/checkpoint-restore.md;
handle_criu_config_file() of crun's src/libcrun/criu.c.
"""

from __future__ import annotations

import contextlib
import enum
import os
import re
import stat
import subprocess
from pathlib import Path

from irmapdb import files
from irmapdb.errors import FileError
from irmapdb.model import printable
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "DIRECTORY",
    "HOOK_NAME",
    "ChangeKind",
    "LineChange",
    "Runtime",
    "check_hook",
    "install",
    "line_for",
    "of_runtime",
    "our_scripts",
    "read_by",
    "uninstall",
]

DIRECTORY = Path("/etc/criu")
HOOK_NAME = "irmapdb-hook"

_LIMIT_BYTES = 1 << 20
_OPTION = re.compile(rb'[ \t]*action-script(?:[ \t]+|=)"?([^"#\s]+)"?[ \t]*(?:#(.*))?')
_FOR = b" for "
_MADE_FILE = b"# made by irmapdb hook --install, which --uninstall undoes"
_MADE_ALL = b"# made with its directory by irmapdb hook --install, which --uninstall undoes"
_UNSAFE = re.compile(r'[\s"#]')


class Runtime(enum.StrEnum):
    """The program that starts CRIU."""

    CRIU = "criu"
    """CRIU itself: its default configuration, which it always reads."""
    RUNC = "runc"
    CRUN = "crun"
    PODMAN = "podman"


class ChangeKind(enum.StrEnum):
    """The change of a file."""

    ADDED = "line added"
    MADE = "made, with the line"
    REPLACED = "line of another irmapdb-hook replaced"
    KEPT = "line is there already"
    SHARED = "line stays, another runtime was given it as well"
    REMOVED = "line removed"
    UNMADE = "removed, as it held nothing else"
    NOTHING = "has no line of irmapdb"


class LineChange(Record):
    """One file, and its change."""

    file: Path
    did: ChangeKind
    other_scripts: tuple[str, ...]
    """Other action scripts in it: CRIU calls them too."""
    removed_scripts: tuple[Path, ...] = ()
    """Our scripts in the removed lines."""


def of_runtime(runtime: Runtime, directory: Path = DIRECTORY) -> tuple[Path, ...]:
    """The files that CRIU reads when this runtime starts it.

    crun reads crun.conf if it exists, else runc.conf; podman uses either runtime.
    """
    runc, crun = directory / "runc.conf", directory / "crun.conf"
    match runtime:
        case Runtime.CRIU:
            return (directory / "default.conf",)
        case Runtime.RUNC:
            return (runc,)
        case Runtime.CRUN:
            # With a new crun.conf, crun would not read runc.conf any more.
            return (crun,) if crun.exists() or not runc.exists() else (runc,)
        case Runtime.PODMAN:
            return (runc, crun) if crun.exists() else (runc,)


def read_by(runtime: Runtime, directory: Path = DIRECTORY) -> tuple[Path, ...]:
    """The files that CRIU reads under this runtime. The first is `default.conf`, in any case."""
    default = directory / "default.conf"
    if runtime is Runtime.CRIU:
        return (default,)
    return (default, *of_runtime(runtime, directory))


def our_scripts(file: Path, own: Path | None = None) -> tuple[Path, ...]:
    """The hook's scripts in a file, in its order; () if the file is missing. FileError.

    `own`: a script that counts as ours with any name.
    """
    text = files.read_if_there(file, limit_bytes=_LIMIT_BYTES) or b""
    name = b"" if own is None else os.fsencode(own)
    found = (_script(line) for line in text.split(b"\n") if _is_ours(line, name))
    return tuple(dict.fromkeys(Path(os.fsdecode(script)) for script in found))


def line_for(hook: Path, runtimes: Iterable[Runtime] = ()) -> str:
    """The line that makes CRIU call the hook. FileError if CRIU could not read the path.

    Its comment lists the runtimes that it was added for, because two runtimes can read one file.
    """
    text, name = str(hook), printable(hook)
    if not hook.is_absolute() or _UNSAFE.search(text):
        raise FileError(
            f"{name}: CRIU's configuration takes no path that is relative, or has blanks, quotes"
            " or #",
            advice="link it from elsewhere, and name the link",
            remedy="script",
        )
    names = " ".join(sorted(runtimes))
    return f"action-script {text}" + (f" #{_FOR.decode()}{names}" if names else "")


def check_hook(hook: Path) -> None:
    """Refuse a program that CRIU could not execute (FileError): it would fail every dump."""
    name = printable(hook)
    advice = "install irmapdb, or name its irmapdb-hook"
    try:
        mode = hook.stat().st_mode
    except OSError as error:
        raise FileError(f"{name}: {error.strerror}", advice=advice, remedy="script") from error
    if not stat.S_ISREG(mode) or not os.access(hook, os.X_OK):
        raise FileError(f"{name}: not an executable file", advice=advice, remedy="script")
    if mode & stat.S_IWOTH:
        raise FileError(
            f"{name}: every user may write it, and CRIU runs it as root",
            advice="chmod o-w it, or install irmapdb where only root can write",
        )
    environment = {**os.environ, "CRTOOLS_SCRIPT_ACTION": "irmapdb-check"}
    try:
        tried = subprocess.run(  # noqa: S603 as CRIU will
            [hook], env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
    except OSError as error:
        raise FileError(f"{name}: cannot be executed: {error.strerror}", advice=advice) from error
    if tried.returncode != 0:
        raise FileError(f"{name}: ends with exit code {tried.returncode}", advice=advice)


def install(runtime: Runtime, hook: Path, directory: Path = DIRECTORY) -> list[LineChange]:
    """Make CRIU call the hook. Everything else in the files stays, byte for byte.

    FileError if the hook is no program, or if a file cannot be written or is a symbolic link.
    """
    line_for(hook)
    check_hook(hook)
    return [_install(file, hook, runtime) for file in of_runtime(runtime, directory)]


def uninstall(runtime: Runtime, hook: Path | None, directory: Path = DIRECTORY) -> list[LineChange]:
    """Undo `install`: remove every irmapdb-hook, and `hook` with any name.

    If the line is also for another runtime, it stays for that runtime.
    """
    return [_uninstall(file, hook, runtime) for file in of_runtime(runtime, directory)]


def _install(file: Path, hook: Path, runtime: Runtime) -> LineChange:
    line = line_for(hook, [runtime]).encode()
    old = files.read_if_there(file, limit_bytes=_LIMIT_BYTES)
    if old is None:
        header = _MADE_FILE if file.parent.exists() else _MADE_ALL
        _make_directory(file.parent)
        files.replace_whole(file, b"\n".join((header, line, b"")), mode=0o644)
        return LineChange(file, ChangeKind.MADE, ())
    lines = old.split(b"\n")
    ours = [one for one in lines if _is_ours(one, _script(line))]
    others = _others(lines, _script(line))
    runtimes = {runtime}.union(*map(_runtimes, ours))
    line = line_for(hook, runtimes).encode()
    if [_script(one) for one in ours] == [_script(line)] and _runtimes(ours[0]) == runtimes:
        return LineChange(file, ChangeKind.KEPT, others)
    if ours:
        # In the place of the first.
        lines[lines.index(ours[0])] = line
        lines = [one for one in lines if one == line or one not in ours]
    elif lines[-1] == b"":
        lines[-1:] = [line, b""]
    else:
        lines.append(
            line
        )  # the last line had no newline, so ours has none: uninstall restores the file exactly
    _rewrite(file, lines)
    if not ours:
        return LineChange(file, ChangeKind.ADDED, others)
    same = all(_script(one) == _script(line) for one in ours)
    return LineChange(file, ChangeKind.KEPT if same else ChangeKind.REPLACED, others)


def _uninstall(file: Path, hook: Path | None, runtime: Runtime) -> LineChange:
    old = files.read_if_there(file, limit_bytes=_LIMIT_BYTES)
    lines = [] if old is None else old.split(b"\n")
    own = b"" if hook is None else os.fsencode(hook)
    others = _others(lines, own)
    kept = [one for one in (_without(one, own, runtime) for one in lines) if one is not None]
    if len(kept) == len(lines):
        shared = any(_is_ours(one, own) for one in kept)
        if kept != lines:
            _rewrite(file, kept)
        return LineChange(file, ChangeKind.SHARED if shared else ChangeKind.NOTHING, others)
    gone = {_script(one) for one in lines if _is_ours(one, own)} - set(map(_script, kept))
    scripts = tuple(Path(os.fsdecode(script)) for script in sorted(gone))
    header = kept[0] if kept else b""  # only our line, without a newline
    if header in {_MADE_FILE, _MADE_ALL}:
        del kept[0]
        if kept in ([], [b""]):
            file.unlink()
            if header == _MADE_ALL:
                with contextlib.suppress(OSError):  # it has other files now
                    file.parent.rmdir()
            return LineChange(file, ChangeKind.UNMADE, others, scripts)
    _rewrite(file, kept)
    return LineChange(file, ChangeKind.REMOVED, others, scripts)


def _without(line: bytes, own: bytes, runtime: Runtime) -> bytes | None:
    # The line without this runtime; None if it was only for this one, or lists none.
    if not _is_ours(line, own):
        return line
    rest = _runtimes(line) - {runtime}
    if not rest:
        return None
    return line_for(Path(os.fsdecode(_script(line))), rest).encode()


def _runtimes(line: bytes) -> set[Runtime]:
    # The runtimes of the line. A line of an older irmapdb lists none.
    found = _OPTION.fullmatch(line)
    comment = (found and found[2]) or b""
    if not comment.startswith(_FOR):
        return set()
    words = comment.removeprefix(_FOR).decode("ascii", "replace").split()
    return {Runtime(word) for word in words if word in set(Runtime)}


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(exist_ok=True)
    except OSError as error:
        raise FileError(
            f"cannot make {printable(directory)}: {error.strerror}", advice="try as root"
        ) from error


def _rewrite(file: Path, lines: list[bytes]) -> None:
    mode = stat.S_IMODE(file.stat().st_mode)
    files.replace_whole(file, b"\n".join(lines), mode=mode)


def _script(line: bytes) -> bytes:
    found = _OPTION.fullmatch(line)
    return found[1] if found else b""


def _is_ours(line: bytes, own: bytes) -> bool:
    script = _script(line)
    return script != b"" and (script == own or os.path.basename(script) == HOOK_NAME.encode())


def _others(lines: list[bytes], own: bytes) -> tuple[str, ...]:
    scripts = (_script(line) for line in lines if not _is_ours(line, own))
    return tuple(os.fsdecode(script) for script in scripts if script)
