"""Defines the options that several commands share, with CRIU's names."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from irmapdb.commands import render
from irmapdb.errors import UsageError

if TYPE_CHECKING:
    from datetime import timedelta

__all__ = [
    "PID_ADVICE",
    "AllRows",
    "AsCsv",
    "AsJson",
    "CgroupGlob",
    "ConfigFile",
    "ContainerName",
    "CriuWorkDir",
    "Database",
    "DryRun",
    "ImagesDir",
    "LogFile",
    "Pid",
    "PrevImagesDir",
    "RunDir",
    "ScanPaths",
    "ServerUrl",
    "Verbose",
    "WorkDirOption",
    "argument",
    "database_path",
    "flag",
    "named_database",
    "path_option",
    "positive_pid",
    "positive_seconds",
    "refuse_two_forms",
    "root_task",
    "root_task_if_given",
    "server_url",
    "span",
    "tree_option",
    "value_option",
]

PID_ADVICE = "give the pid of the tree's root task, as you see it: `pgrep -o NAME` finds it"


def positive_pid(value: int | None) -> int | None:
    """Refuse a number that cannot be a process."""
    if value is not None and value <= 0:
        message = f"-t {value}: not a process id"
        raise UsageError(message, advice=PID_ADVICE)
    return value


def positive_seconds(option: typer.CallbackParam, value: float | None) -> float | None:
    """Refuse a value that is no time to wait."""
    if value is not None and not 0 < value < math.inf:
        message = f"{option.opts[0]} {value:g}: not a number of seconds"
        raise UsageError(message, advice="give a number above 0")
    return value


def span(option: str, text: str) -> timedelta:
    """The value of an option such as `30d`. UsageError if it is none."""
    from irmapdb.durations import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from error


def tree_option(text: str) -> Any:  # noqa: ANN401 typer's
    """`-t PID`, and its help."""
    return typer.Option(
        "-t", "--tree", metavar="PID", callback=positive_pid, help=text, show_default=False
    )


def path_option(*names: str, metavar: str, text: str, envvar: str | None = None) -> Any:  # noqa: ANN401 typer's
    """An option for a file or directory, and its help. The library reports an unreadable one."""
    return typer.Option(
        *names, readable=False, metavar=metavar, help=text, show_default=False, envvar=envvar
    )


def value_option(metavar: str, text: str, *names: str, **rest: Any) -> Any:  # noqa: ANN401 typer's
    """An option with a value, and its help, which has the default."""
    return typer.Option(*names, metavar=metavar, help=text, show_default=False, **rest)


def flag(names: str, text: str) -> Any:  # noqa: ANN401 typer's
    """An option without a value, and its help. `names` are separated by blanks."""
    return typer.Option(*names.split(), help=text)


def argument(metavar: str, text: str) -> Any:  # noqa: ANN401 typer's
    """An argument, and its help. The library reports a file that cannot be read."""
    return typer.Argument(readable=False, metavar=metavar, help=text, show_default=False)


Pid = Annotated[int | None, tree_option("The root task of the tree: it and all its descendants.")]
ContainerName = Annotated[
    str | None,
    value_option(
        "ID|NAME",
        "A container in place of -t PID: its id, the beginning of the id, its name, or its pod.",
        "--container",
    ),
]
ImagesDir = Annotated[
    Path,
    typer.Option(
        "-D",
        "--images-dir",
        readable=False,
        metavar="DIR",
        help="Directory of the image files. irmapdb makes it if its parent exists.",
    ),
]
CriuWorkDir = Annotated[
    Path | None,
    path_option(
        *("-W", "--work-dir"),
        metavar="DIR",
        text="Directory of irmap.db, irmap-cache and the log.  [default: the images dir]",
    ),
]
WorkDirOption = Annotated[
    Path | None,
    path_option(
        *("-W", "--work-dir"),
        metavar="DIR",
        text="Directory of irmap.db and irmap-cache.  [default: .]",
    ),
]
PrevImagesDir = Annotated[
    Path | None,
    path_option(
        "--prev-images-dir",
        metavar="DIR",
        text="Images of the last dump, relative to -D. irmapdb loads their irmap-cache if the "
        "work dir has none.  [default: the link `parent` in -D, if it exists]",
    ),
]
ScanPaths = Annotated[
    list[str] | None,
    value_option(
        "PATH",
        "Scan this path first, as seen from the root of the tasks. Repeatable.",
        "--irmap-scan-path",
    ),
]
Database = Annotated[
    Path | None,
    path_option(
        "--db",
        metavar="FILE",
        text="The database.  [default: irmap.db in the work dir; without -W, IRMAPDB_DB]",
    ),
]
ConfigFile = Annotated[
    Path | None,
    path_option(
        "--config",
        metavar="FILE",
        envvar="IRMAPDB_CONFIG",
        text="Configuration (TOML).  [default: /etc/irmapdb.toml, if it exists]",
    ),
]
ServerUrl = Annotated[
    str | None,
    value_option(
        "URL",
        "The PostgreSQL server, without a password: `postgresql://USER@HOST/DATABASE`.  "
        "[default: `[fleet] url`]",
    ),
]
CgroupGlob = Annotated[
    str | None,
    value_option(
        "GLOB",
        "Read only containers whose root task has a matching path in /proc/PID/cgroup: "
        "'/kubepods*'.  [default: all]",
    ),
]
RunDir = Annotated[
    Path, typer.Option(readable=False, metavar="DIR", help="Directory of the service's files.")
]
DryRun = Annotated[bool, flag("--dry-run", "Print the number of rows to delete; delete none.")]
AllRows = Annotated[bool, flag("--all-rows", "List every watch, also if there are many.")]
AsCsv = Annotated[bool, flag("--csv", "Print CSV, for spreadsheets.")]
AsJson = Annotated[bool, flag("--json", "Print JSON, for programs.")]
Verbose = Annotated[
    int,
    typer.Option(
        "-v",
        "--verbosity",
        count=True,
        metavar="",
        help="Print more on stderr: with -v the causes of errors, with -vv the steps, with -vvv "
        "and -vvvv each watch. -v4 is the same as -vvvv.",
        show_default=False,
    ),
]
LogFile = Annotated[
    Path | None,
    path_option(
        *("-o", "--log-file"),
        metavar="LOG",
        text="Write the log to this file, relative to the work dir. Each run replaces it, and "
        "names itself in the first line. A run that cannot begin only adds its error.",
    ),
]


def refuse_two_forms(as_json: bool, as_csv: bool) -> None:
    """UsageError if both are given."""
    if as_json and as_csv:
        message = "--json and --csv are two forms"
        raise UsageError(message, advice="give one of them")


def root_task_if_given(pid: int | None, container: str | None) -> int | None:
    """The pid of -t, or the root task of --container; None if neither is given.

    UsageError if both are; TaskError if no container is named so, or several are.
    """
    if container is None:
        return pid
    if pid is not None:
        message = f"-t {pid} beside --container {render.shown(container)}"
        raise UsageError(message, advice="give one of them")
    from irmapdb.node.container_info import find_container

    return find_container(container).pid


def root_task(pid: int | None, container: str | None, command: str) -> int:
    """The same for a command that needs one: UsageError if neither is given."""
    found = root_task_if_given(pid, container)
    if found is None:
        message = f"irmapdb {command} needs -t PID (--tree) or --container NAME"
        raise UsageError(message, advice=PID_ADVICE)
    return found


def database_path(database: Path | None, work_dir: Path | None) -> Path:
    """--db, or irmap.db in -W, or IRMAPDB_DB, or irmap.db here."""
    from irmapdb.checkpoint.work_dir import DATABASE_NAME

    return named_database(database, work_dir) or (work_dir or Path()) / DATABASE_NAME


def named_database(database: Path | None, work_dir: Path | None) -> Path | None:
    """--db, or IRMAPDB_DB if -W is not given; an empty variable counts as none."""
    text = os.environ.get("IRMAPDB_DB")
    return Path(text) if text and database is None and work_dir is None else database


def server_url(to: str | None, config: Path | None) -> str:
    """--to, or the URL of the configuration. UsageError if there is none."""
    from irmapdb.config import load_config

    url = to or load_config(config).fleet.url
    if url is None:
        message = "no server"
        raise UsageError(message, advice="give --to URL, or set `url` in `[fleet]`")
    return url
