"""Implements `irmapdb ps`."""

from __future__ import annotations

import os
import pwd
from typing import TYPE_CHECKING, Annotated, Any

import typer

from irmapdb.commands import render
from irmapdb.commands.exit import end_with_findings
from irmapdb.commands.options import (
    AsJson,
    ConfigFile,
    ContainerName,
    ScanPaths,
    root_task_if_given,
    tree_option,
)
from irmapdb.commands.progress import Progress
from irmapdb.commands.watch_rows import COLUMNS, path_cell, watch_cells, watch_json
from irmapdb.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from irmapdb.kernel.proc.tasks import Task
    from irmapdb.node.ps import Usage, WatchList

__all__ = ["add_to"]

_A_FEW = 5


def add_to(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(ps)


def ps(
    tree: Annotated[
        int | None,
        tree_option(
            "List this task and its descendants, and the path of each watch.  [default: all tasks]"
        ),
    ] = None,
    container: ContainerName = None,
    search: Annotated[
        bool,
        typer.Option("--search", help="With -t: scan the filesystem for paths that are not known."),
    ] = False,
    irmap_scan_path: ScanPaths = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """List the watches of all processes, and each user's share of the inotify limits.

    It reads only /proc: it needs no database, and stops no task. If several processes share a
    descriptor (after fork), ps counts it once, for the first process. The kernel does not report
    the use of a limit: ps adds up the watches of each user. The user is the effective user of the
    process, or the owner of its user namespace.

    With -t, exits with 3 if a watch has no path, or if irmapdb may not read a task of the tree.
    Without -t, ps names such tasks on stderr, and exits with 0.

    Examples:
        irmapdb ps

        irmapdb ps -t 4711

        irmapdb ps --json | jq '.users[] | select(.used > .limit * 0.8)'

    """
    from irmapdb.config import load_config
    from irmapdb.node.ps import PsOptions, take

    tree = root_task_if_given(tree, container)
    if search and tree is None:
        message = "--search without -t"
        raise UsageError(message, advice="name the root of the tree whose paths are wanted")
    if irmap_scan_path and not search:
        message = "--irmap-scan-path without --search"
        raise UsageError(message, advice="add --search: nothing is scanned without it")

    with Progress() as progress:
        watch_list = take(
            PsOptions(
                pid=tree,
                search=search,
                scan_paths=tuple(map(os.fsencode, irmap_scan_path or ())),
                config=load_config(config),
                progress=progress.scanning,
            )
        )
    if as_json:
        render.print_json(_document(watch_list))
    else:
        _print(watch_list)
        _say_what_is_missing(watch_list, searched=search)
    end_with_findings(not watch_list.complete)


def _print(watch_list: WatchList) -> None:
    if watch_list.watches:
        _print_watches(watch_list)
        typer.echo()
    _print_processes(watch_list)
    if watch_list.users or watch_list.limits:
        typer.echo()
        _print_users(watch_list)


def _user(uid: int | None) -> str:
    if uid is None:
        return "?"
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _print_watches(watch_list: WatchList) -> None:
    rows = [
        (*watch_cells(row.watch, row.comm), path_cell(row.path, row.why, row.mntns))
        for row in watch_list.watches
    ]
    render.print_table((*COLUMNS, "path"), rows)


def _print_processes(watch_list: WatchList) -> None:
    rows = [
        (
            str(row.pid),
            _user(row.uid),
            *(f"{number:,}" if number else "" for number in row[3:]),
            render.printable(row.comm),
        )
        for row in watch_list.processes
    ]
    columns = ("pid>", "user", "instances>", "watches>", "groups>", "marks>", "shared>", "comm")
    render.print_table(columns, rows)


def _print_users(watch_list: WatchList) -> None:
    rows = [
        (
            _user(usage.uid),
            f"fs.{usage.account.replace('/', '.')}",
            f"{usage.used:,}",
            "" if usage.limit is None else f"{usage.limit:,}",
            _share(usage),
            f"{usage.below:,} of it in user namespaces" if usage.below else "",
        )
        for usage in watch_list.users
    ] or [
        ("any", f"fs.{account.replace('/', '.')}", "0", f"{limit:,}", "0%", "")
        for account, limit in watch_list.limits.items()
    ]
    render.print_table(("user", "limit", "used>", "of>", "share>", ""), rows)


def _share(usage: Usage) -> str:
    return f"{usage.used / usage.limit:.0%}" if usage.limit else ""


def _say_what_is_missing(watch_list: WatchList, *, searched: bool) -> None:
    if watch_list.hidden:
        tasks = render.count(len(watch_list.hidden), "process", "processes")
        advice = "" if os.geteuid() == 0 else "; run as root to see them"
        render.say(f"{tasks} could not be looked at ({_some(watch_list.hidden)}){advice}")
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


def _document(watch_list: WatchList) -> dict[str, Any]:
    from irmapdb.model import Watch

    return {
        "processes": [
            {
                **row._asdict(),
                "comm": render.json_path(row.comm),
                "user": _user(row.uid),
            }
            for row in watch_list.processes
        ],
        "users": [
            {
                "uid": usage.uid,
                "user": _user(usage.uid),
                "name": f"fs.{usage.account.replace('/', '.')}",
                "used": usage.used,
                "limit": usage.limit,
                "in_user_namespaces": usage.below,
            }
            for usage in watch_list.users
        ],
        "limits": {
            f"fs.{account.replace('/', '.')}": limit for account, limit in watch_list.limits.items()
        },
        "denied": [
            {"pid": task.pid, "comm": render.json_path(task.comm)} for task in watch_list.denied
        ],
        "hidden": len(watch_list.hidden),
        "watches": [
            {
                **watch_json(row.watch, row.comm),
                "mark": None if isinstance(row.watch, Watch) else row.watch.kind,
                "mask": row.watch.mask,
                "path": render.json_path(row.path),
                "why": row.why,
                "mntns": row.mntns,
            }
            for row in watch_list.watches
        ],
    }
