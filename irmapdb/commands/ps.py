"""Implements `irmapdb ps`."""

from __future__ import annotations

import io
import os
import shutil
import sys
import time
from contextlib import redirect_stdout
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from irmapdb.commands import render
from irmapdb.commands.exit import end_with_findings
from irmapdb.commands.options import (
    AsJson,
    ConfigFile,
    ContainerName,
    ScanPaths,
    argument,
    flag,
    positive_seconds,
    root_task_if_given,
    tree_option,
    value_option,
)
from irmapdb.commands.progress import Progress
from irmapdb.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from irmapdb.commands.ps_tables import Shown
    from irmapdb.kernel.proc.tasks import Task
    from irmapdb.node.ps import PsOptions, WatchList

__all__ = ["ps"]

_A_FEW = 5

_INTERVAL_S = 2.0
_PAUSES = 3
"""The pause after a refresh, as a multiple of its time: ps uses a quarter of one CPU."""
_HOME, _CLEAR = "\x1b[H", "\x1b[2J"
_CLEAR_LINE, _CLEAR_BELOW = "\x1b[K", "\x1b[J"

By = Literal["user", "container", "unit", "process", "directory"]
SortBy = Literal["watches", "instances", "name"]


def ps(
    process: Annotated[
        list[str] | None,
        argument(
            "PROCESS",
            "List only these processes, and the path of each watch: process ids, or parts of "
            "the name of a process or of its program.",
        ),
    ] = None,
    tree: Annotated[
        int | None,
        tree_option(
            "List this task and its descendants, and the path of each watch.  [default: all tasks]"
        ),
    ] = None,
    container: ContainerName = None,
    by: Annotated[
        By,
        typer.Option(
            metavar="GROUP",
            help="Add up the watches by user, container, unit, process or directory.",
        ),
    ] = "process",
    depth: Annotated[
        int | None,
        value_option(
            "N",
            "With --by directory: add up below the first N directories of each path.  [default: 3]",
            min=1,
        ),
    ] = None,
    sort: Annotated[
        SortBy,
        typer.Option(
            metavar="COLUMN",
            help="Sort by the number of watches (and marks), of instances (and "
            "groups), or by name: watches, instances or name.",
        ),
    ] = "watches",
    top: Annotated[
        int | None,
        value_option(
            "N",
            "Print only the first N rows of each table. With 0, only the totals and limits.",
            min=0,
        ),
    ] = None,
    watch: Annotated[bool, flag("--watch", "Print again and again, until Ctrl-C.")] = False,
    interval: Annotated[
        float | None,
        value_option(
            "SECONDS",
            "With --watch: the pause between two refreshes.  [default: 2]",
            callback=positive_seconds,
        ),
    ] = None,
    search: Annotated[
        bool,
        flag(
            "--search",
            "With -t, PROCESS or --by directory: scan the filesystem for paths that are not known.",
        ),
    ] = False,
    irmap_scan_path: ScanPaths = None,
    skip_path: Annotated[
        list[str] | None,
        value_option(
            "PATH",
            "Do not scan this directory, as seen from the root of the tasks. Repeatable.",
            "--skip-path",
        ),
    ] = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """List the watches of all processes, and each user's share of the inotify limits.

    ps shows the user, the container or systemd unit, and the command line of each process with
    inotify watches or fanotify marks. It reads only /proc and files of container engines: it needs
    no database, and stops no task. After dup or fork, several descriptors can be the same inotify
    instance or fanotify group. ps counts it once, for the first process.

    The kernel does not report the use of a limit: ps adds up the watches of each user. The user is
    the effective user of the process, or the owner of its user namespace. If 80% of a limit is
    used, ps prints the command that raises it.

    With -t or PROCESS, exits with 3 if a watch has no path, or if irmapdb may not read a task.
    Otherwise ps names such tasks on stderr, and exits with 0. With --watch, Ctrl-C exits with 0.

    Examples:
        irmapdb ps

        irmapdb ps --by container --top 10

        irmapdb ps --by directory -t 4711

        irmapdb ps --watch --top 5

        irmapdb ps nginx --search

        irmapdb ps --json | jq '.users[] | select(.limit and .used > .limit * 0.8)'

    """
    from irmapdb.commands.ps_tables import Shown
    from irmapdb.config import load_config
    from irmapdb.node.ps import PsOptions

    tree = root_task_if_given(tree, container)
    of_machine = tree is None and not process and by != "directory"
    if process and "" in process:
        message = "PROCESS is empty"
        raise UsageError(message, advice="give a process id, or a part of a name")
    _refuse_useless(
        {
            "--search": search and of_machine,
            "--irmap-scan-path": irmap_scan_path and not search,
            "--skip-path": skip_path and not search,
            "--depth": depth is not None and by != "directory",
            "--interval": interval is not None and not watch,
        }
    )
    settings = load_config(config)
    skipped = tuple(map(os.fsencode, skip_path or ()))
    options = PsOptions(
        pid=tree,
        processes=tuple(process or ()),
        by=by,
        depth=depth or PsOptions().depth,
        sort=sort,
        search=search,
        scan_paths=tuple(map(os.fsencode, irmap_scan_path or ())),
        config=settings._replace(skip_paths=(*settings.skip_paths, *skipped)),
    )
    shown = Shown(by, sort, top)
    if watch:
        _watch(options, shown, interval or _INTERVAL_S, as_json=as_json)
        return
    with Progress() as progress:
        watch_list = _take(options, progress)
    _print(watch_list, shown, as_json=as_json)
    if not as_json:
        _say_what_is_missing(watch_list, searched=search)
    end_with_findings(not watch_list.complete)


_NEEDS = {
    "--search": ("without -t", "name the root of the tree, or a process, whose paths are wanted"),
    "--irmap-scan-path": ("without --search", "add --search: nothing is scanned without it"),
    "--skip-path": ("without --search", "add --search: nothing is scanned without it"),
    "--depth": ("without --by directory", "add --by directory"),
    "--interval": ("without --watch", "add --watch"),
}


def _refuse_useless(given: dict[str, object]) -> None:
    for option, useless in given.items():
        if useless:
            lack, advice = _NEEDS[option]
            raise UsageError(f"{option} {lack}", advice=advice)


def _take(options: PsOptions, progress: Progress) -> WatchList:
    from irmapdb.node.ps import take

    return take(options._replace(progress=progress.scanning))


def _print(
    watch_list: WatchList, shown: Shown, *, as_json: bool, limits_first: bool = False
) -> None:
    from irmapdb.commands.ps_json import ps_json
    from irmapdb.commands.ps_tables import print_limits, print_rows, print_watches

    if as_json:
        render.print_json(ps_json(watch_list, shown))
        return
    parts = [partial(print_rows, watch_list, shown), partial(print_limits, watch_list)]
    if watch_list.watches and shown.by == "process":
        parts.insert(0, partial(print_watches, watch_list))
    # At a terminal, the long column, which may be cut off, comes last.
    for number, part in enumerate(reversed(parts) if limits_first else parts):
        if number:
            render.print_line("")
        part()


# --- again and again ------------------------------------------------------------------------------


class _Screen(io.StringIO):
    # Takes the place of a terminal, so that it gets a whole picture in one write.
    def isatty(self) -> bool:
        return True


def _watch(options: PsOptions, shown: Shown, interval_s: float, *, as_json: bool) -> None:
    from irmapdb.kernel.proc.fdinfo_files import FdinfoFiles

    at_terminal = sys.stdout.isatty() and not as_json
    first = True
    try:
        with FdinfoFiles() as texts:
            while True:
                begun_s = time.monotonic()
                with Progress() as progress:
                    watch_list = _take(options._replace(texts=texts), progress)
                if at_terminal:
                    _draw(watch_list, shown, clear=first)
                else:
                    _print_one_more(watch_list, shown, as_json=as_json, first=first)
                    if first and not as_json:
                        _say_what_is_missing(watch_list, searched=options.search)
                first = False
                took_s = time.monotonic() - begun_s
                del watch_list  # not in memory twice
                time.sleep(max(interval_s, _PAUSES * took_s))
    except KeyboardInterrupt:
        return


def _now() -> str:
    return f"{render.time_cell(datetime.now(UTC))} UTC"


def _draw(watch_list: WatchList, shown: Shown, *, clear: bool) -> None:
    screen = _Screen()
    with redirect_stdout(screen):
        render.print_line(f"irmapdb ps --watch  {_now()}")
        _print(watch_list, shown, as_json=False, limits_first=True)
    lines = screen.getvalue().splitlines()[: shutil.get_terminal_size().lines - 1]
    text = "".join(f"{line}{_CLEAR_LINE}\n" for line in lines)
    sys.stdout.write(f"{_CLEAR if clear else ''}{_HOME}{text}{_CLEAR_BELOW}")
    sys.stdout.flush()


def _print_one_more(watch_list: WatchList, shown: Shown, *, as_json: bool, first: bool) -> None:
    if not as_json:
        render.print_line(_now() if first else f"\n{_now()}")
    _print(watch_list, shown, as_json=as_json)
    sys.stdout.flush()


# --- remarks --------------------------------------------------------------------------------------


def _say_what_is_missing(watch_list: WatchList, *, searched: bool) -> None:
    if watch_list.hidden:
        tasks = render.count(len(watch_list.hidden), "process", "processes")
        advice = "" if os.geteuid() == 0 else "; run as root to see them"
        render.say(f"{tasks} could not be read ({_some(watch_list.hidden)}){advice}")
    unknown = len(watch_list.unresolved)
    deleted = sum(row.deleted for row in watch_list.unresolved)
    if unknown:
        what = f"{render.count(unknown, 'watch', 'watches')} without a path"
        if deleted:
            what += f" ({deleted:,} of deleted files)"
        render.say(what if searched or deleted == unknown else f"{what}: --search scans")


def _some(tasks: Sequence[Task]) -> str:
    named = [f"{task.pid} {render.printable(task.comm)}" for task in tasks[:_A_FEW]]
    return ", ".join([*named, "…"] if len(tasks) > _A_FEW else named)
