"""Where the library's log goes: stderr, or the file that CRIU's -o names."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import stat
import sys
from typing import TYPE_CHECKING, TextIO

import typer

from irmapdb.errors import FileError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["close_log", "log_end", "start_log"]

_LEVELS = (logging.WARNING, logging.WARNING, logging.INFO, logging.DEBUG, logging.DEBUG)

_causes = logging.getLogger("irmapdb.causes")
_causes.setLevel(logging.CRITICAL)


class _LogFile(logging.StreamHandler[TextIO]):
    # A disk that is full under the log is told once, and ends nothing.
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802 logging's
        self.setLevel(logging.CRITICAL + 1)
        typer.echo(f"irmapdb: {self.stream.name}: the log ends here: {sys.exc_info()[1]}", err=True)


def start_log(verbose: int, log: Path | None, work_dir: Path) -> None:
    """Send the library's log to stderr, or to a file in the work dir."""
    level = _LEVELS[min(verbose, len(_LEVELS) - 1)]
    logger = logging.getLogger("irmapdb")
    handler: logging.Handler
    if log is None:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("irmapdb: %(message)s"))
    else:
        handler = _LogFile(_open_log(work_dir / log))
        handler.setFormatter(logging.Formatter("(%(relativeCreated)012.3f) %(message)s"))
        level = min(level, logging.INFO)
    logger.handlers = [handler]
    logger.setLevel(level)
    logger.propagate = False
    _causes.setLevel(logging.ERROR if verbose else logging.CRITICAL)


def log_end(error: BaseException) -> None:
    """Into the log file why it ends, which CRIU's callers read nowhere else; causes where asked."""
    logger = logging.getLogger("irmapdb")
    if any(isinstance(handler, _LogFile) for handler in logger.handlers):
        logger.error("Error: %s", error)
    cause = error.__cause__
    while cause is not None:
        _causes.error("because of %s: %s", type(cause).__name__, cause)
        cause = cause.__cause__


def close_log() -> None:
    """Give the log file back."""
    logger = logging.getLogger("irmapdb")
    for handler in [one for one in logger.handlers if isinstance(one, _LogFile)]:
        logger.removeHandler(handler)
        with contextlib.suppress(OSError):  # the disk is full: that was told
            handler.stream.close()


_OURS = re.compile(r"irmap\.db(-\w+)?|irmap-cache|.*\.img")


def _open_log(path: Path) -> TextIO:
    if _OURS.fullmatch(path.name):
        message = f"{path}: a log there would destroy what irmapdb keeps"
        raise FileError(message, advice="name another file with -o")
    # Without O_TRUNC, and not waiting for who reads a FIFO: first it is looked at.
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, 0o600)
    except OSError as error:
        why = "is a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise FileError(f"{path}: {why}", advice="name another file with -o") from error
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        os.ftruncate(fd, 0)
    elif not stat.S_ISCHR(mode):  # /dev/null, a terminal
        os.close(fd)
        message = f"{path}: neither a regular file nor a terminal"
        raise FileError(message, advice="name another file with -o")
    return open(fd, "w", encoding="utf-8", errors="backslashreplace")
