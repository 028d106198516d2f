"""Sends the library's log to stderr, or to the file of `-o`."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shlex
import stat
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TextIO

import typer

from irmapdb import __version__
from irmapdb.commands import render
from irmapdb.errors import FileError, UsageError
from irmapdb.ownership import open_directory

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["close_log", "log_end", "start_log", "start_talk"]

_LEVELS = (logging.WARNING, logging.WARNING, logging.INFO, logging.DEBUG, logging.DEBUG)

_causes = logging.getLogger("irmapdb.causes")


class _Stamped(logging.Formatter):
    # As in CRIU's log (print_ts() of its log.c), so that you can compare the two logs.
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 logging's
        return f"({record.relativeCreated / 1000:09.6f}) {record.message}"


class _LogFile(logging.StreamHandler[TextIO]):
    """The log in a file. The log of the last run stays until this run begins its work.

    So a run with wrong arguments removes nothing, and only adds its error. Each run begins with a
    line that names it.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(_open_log(path))
        self._name = render.shown(path)
        self.setFormatter(_Stamped())
        self._heading = _heading()
        self._begun = False

    def begin(self) -> None:
        """Remove the log of the previous run."""
        fd = self.stream.fileno()
        if not self._begun and stat.S_ISREG(os.fstat(fd).st_mode):
            os.ftruncate(fd, 0)
        self._add_heading()

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.ERROR:
            self.begin()
        self._add_heading()
        if record.levelno >= self.level:  # the disk may be full since
            super().emit(record)

    def _add_heading(self) -> None:
        if not self._begun:
            self._begun = True
            super().emit(self._heading)

    # If the disk is full, print one message, and continue.
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802 logging's
        self.setLevel(logging.CRITICAL + 1)
        why = sys.exc_info()[1]
        said = why.strerror if isinstance(why, OSError) else why
        with contextlib.suppress(OSError):  # stderr may be on the same disk
            typer.echo(f"irmapdb: {self._name}: the log ends here: {said}", err=True)


def _heading() -> logging.LogRecord:
    # The first line of a run.
    now = render.time_cell(datetime.now(UTC))
    command = render.shown(shlex.join(sys.argv[1:]))
    line = f"irmapdb {__version__}, pid {os.getpid()}, {now} UTC: {command}"
    return logging.makeLogRecord({"msg": line})


def start_talk() -> None:
    """Print the library's warnings on stderr, until `start_log` sets the place of the log."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(lambda record: record.levelno >= logging.ERROR or not render.is_quiet())
    handler.setFormatter(logging.Formatter("irmapdb: %(message)s"))
    logger = logging.getLogger("irmapdb")
    logger.handlers = [handler]
    logger.setLevel(logging.WARNING)
    _causes.setLevel(logging.CRITICAL)


def start_log(verbose: int, log: Path | None, work_dir: Path, kept: Iterable[Path | None]) -> None:
    """Send the library's log to stderr, or to a file in the work dir.

    `kept` are files of this run that no log may replace.
    """
    level = _LEVELS[min(verbose, len(_LEVELS) - 1)]
    logger = logging.getLogger("irmapdb")
    handler: logging.Handler
    if log is None:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("irmapdb: %(message)s"))
        handler.setLevel(logging.ERROR if render.is_quiet() else logging.NOTSET)
    elif str(log) == "-":
        message = "-o -: stdout has the result, and no log"
        raise UsageError(message, advice="leave -o away for a log on stderr")
    else:
        path = work_dir / log
        _refuse_kept(path, kept)
        handler = _LogFile(path)
        level = min(level, logging.INFO)
    logger.handlers = [handler]
    logger.setLevel(level)
    logger.propagate = False
    _causes.setLevel(logging.ERROR if verbose else logging.CRITICAL)


def log_end(line: str, error: BaseException) -> None:
    """Write the error of the run into the log file, and its causes if they are wanted."""
    logger = logging.getLogger("irmapdb")
    if any(isinstance(handler, _LogFile) for handler in logger.handlers):
        logger.error("Error: %s", line)
    cause = error.__cause__
    while cause is not None:
        # Their texts are not ours, and may have several lines.
        _causes.error("because of %s: %s", type(cause).__name__, render.shown(str(cause)))
        cause = cause.__cause__


def close_log() -> None:
    """Close the log file."""
    logger = logging.getLogger("irmapdb")
    for handler in [one for one in logger.handlers if isinstance(one, _LogFile)]:
        handler.begin()  # of a run without messages
        logger.removeHandler(handler)
        with contextlib.suppress(OSError):  # the disk is full: that was reported
            handler.stream.close()


_ADVICE = "name another file with -o"
_OURS = re.compile(r"irmap\.db([-.].*)?|irmap-cache([-.].*)?|.*\.img", re.DOTALL)


def _refuse_kept(path: Path, kept: Iterable[Path | None]) -> None:
    # By name: SQLite may make the file later. We never write through a link.
    if _OURS.fullmatch(path.name) or any(one and _is_of(path, one) for one in kept):
        message = f"{render.shown(path)}: a log there would destroy what irmapdb keeps"
        raise FileError(message, advice=_ADVICE)


def _is_of(path: Path, file: Path) -> bool:
    # The file itself, or one that SQLite puts beside a database.
    own = {file.name + end for end in ("", "-wal", "-shm", "-journal")}
    return path.name in own and os.path.realpath(path.parent) == os.path.realpath(file.parent)


_REFUSALS = {
    errno.ELOOP: "is a symbolic link, which is not followed",
    errno.ENXIO: "is a FIFO or a socket, and no regular file",
}


def _open_log(path: Path) -> TextIO:
    # Not truncated, and without waiting for the reader of a FIFO: it is checked first.
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    flags |= os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        with open_directory(os.fsencode(path.parent)) as directory:
            fd = os.open(os.fsencode(path.name), flags, 0o600, dir_fd=directory.fd)
    except OSError as error:
        why = _REFUSALS.get(error.errno or 0, error.strerror)
        raise FileError(f"{render.shown(path)}: {why}", advice=_ADVICE) from error
    status = os.fstat(fd)
    why = ""
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISCHR(status.st_mode)):  # /dev/null, a terminal
        why = "neither a regular file nor a terminal"
    elif stat.S_ISREG(status.st_mode) and status.st_nlink != 1:
        why = f"has {status.st_nlink} hard links, and may be another file of yours"
    if why:
        os.close(fd)
        raise FileError(f"{render.shown(path)}: {why}", advice=_ADVICE)
    os.set_blocking(fd, True)  # a terminal may be slow
    return open(fd, "w", encoding="utf-8", errors="backslashreplace")
