"""The options that several commands share, named as CRIU names them."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Annotated

import typer

from irmapdb.errors import UsageError

__all__ = [
    "PID_ADVICE",
    "AllRows",
    "AsJson",
    "ConfigFile",
    "CriuWorkDir",
    "Database",
    "ImagesDir",
    "LogFile",
    "Pid",
    "PrevImagesDir",
    "ScanPaths",
    "Verbose",
    "WorkDirOption",
    "database_path",
    "named_database",
    "positive_pid",
    "positive_seconds",
]

PID_ADVICE = "give the pid of the tree's root task, as you see it: `pgrep -o NAME` finds it"


def positive_pid(value: int | None) -> int | None:
    """Refuse what can be no process."""
    if value is not None and value <= 0:
        message = f"-t {value}: not a process id"
        raise UsageError(message, advice=PID_ADVICE)
    return value


def positive_seconds(value: float) -> float:
    """Refuse what is no span of time to wait."""
    if not 0 < value < math.inf:
        message = f"--timeout {value:g}: not a number of seconds"
        raise UsageError(message, advice="give a number above 0")
    return value


Pid = Annotated[
    int,
    typer.Option(
        "-t",
        "--tree",
        metavar="PID",
        callback=positive_pid,
        help="The root task of the tree: it and all its descendants.",
    ),
]
ImagesDir = Annotated[
    Path,
    typer.Option(
        "-D",
        "--images-dir",
        readable=False,
        metavar="DIR",
        help="Directory of the image files. It is made if its parent exists.",
    ),
]
CriuWorkDir = Annotated[
    Path | None,
    typer.Option(
        "-W",
        "--work-dir",
        readable=False,
        metavar="DIR",
        help="Directory of irmap.db, irmap-cache and the log.  [default: the images dir]",
        show_default=False,
    ),
]
WorkDirOption = Annotated[
    Path | None,
    typer.Option(
        "-W",
        "--work-dir",
        readable=False,
        metavar="DIR",
        help="Directory of irmap.db and irmap-cache.  [default: .]",
        show_default=False,
    ),
]
PrevImagesDir = Annotated[
    Path | None,
    typer.Option(
        "--prev-images-dir",
        readable=False,
        metavar="DIR",
        help="Images of the dump before, relative to -D: its irmap-cache is loaded where the "
        "work dir has none.  [default: the link `parent` in -D, where it is]",
        show_default=False,
    ),
]
ScanPaths = Annotated[
    list[str] | None,
    typer.Option(
        "--irmap-scan-path",
        metavar="PATH",
        help="Scan this path first, as seen from the root of the tasks. Repeatable.",
        show_default=False,
    ),
]
Database = Annotated[
    Path | None,
    typer.Option(
        "--db",
        readable=False,
        metavar="FILE",
        help="The database.  [default: irmap.db in the work dir; without -W, IRMAPDB_DB]",
        show_default=False,
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        envvar="IRMAPDB_CONFIG",
        readable=False,
        metavar="FILE",
        help="Configuration (TOML).  [default: /etc/irmapdb.toml, if it exists]",
        show_default=False,
    ),
]
AllRows = Annotated[
    bool, typer.Option("--all-rows", help="List every watch, however many there are.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Verbose = Annotated[
    int,
    typer.Option(
        "-v",
        "--verbosity",
        count=True,
        metavar="",
        help="Say more on stderr: -v errors' causes, -vv steps, -vvv and -vvvv each watch. "
        "-v4 is the same as -vvvv.",
        show_default=False,
    ),
]
LogFile = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--log-file",
        readable=False,
        metavar="LOG",
        help="Write the log to this file, relative to the work dir, in place of the last run's; a "
        "run that cannot begin only adds why. The first line of each names it.",
        show_default=False,
    ),
]


def database_path(database: Path | None, work_dir: Path | None) -> Path:
    """--db, or irmap.db in -W, or IRMAPDB_DB, or irmap.db here."""
    from irmapdb.checkpoint.work_dir import DATABASE_NAME

    return named_database(database, work_dir) or (work_dir or Path()) / DATABASE_NAME


def named_database(database: Path | None, work_dir: Path | None) -> Path | None:
    """--db, or IRMAPDB_DB where -W is not given; an empty variable counts as none."""
    text = os.environ.get("IRMAPDB_DB")
    return Path(text) if text and database is None and work_dir is None else database
