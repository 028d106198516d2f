"""Prints the tables of `irmapdb ps`.

inotify and fanotify have a table each, so that the columns fit into 80. A terminal gets one line
for each process: the command line is cut, and so is the name of a container or unit.
"""

from __future__ import annotations

import pwd
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from irmapdb.commands import render
from irmapdb.commands.layout import cut, text_width
from irmapdb.commands.watch_rows import COLUMNS, path_cell, watch_cells
from irmapdb.model import WatchKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from irmapdb.node.container_info import ContainerInfo
    from irmapdb.node.ps import WatchList
    from irmapdb.node.ps_groups import Grouping, GroupRow, Sort, Totals
    from irmapdb.node.ps_rows import LimitAdvice, ProcessRow, Usage

__all__ = ["Shown", "group_name", "print_limits", "print_rows", "print_watches", "user_name"]

_PIPE_WIDTH = 200
"""In a pipe, a command line is cut to this length."""
_LEAST_COMMAND = 20
_LONGEST_PLACE = 24
_LONGEST_USER = 12
_GAP = 2
_MOST_USES = 20
"""The limit for users' shares of limits: a machine can have thousands of users."""

_NOUNS = {
    WatchKind.INOTIFY: ("instances", "watches"),
    WatchKind.FANOTIFY: ("groups", "marks"),
}
_NO_NAME = {
    "user": "?",
    "container": "(in no container)",
    "unit": "(in no unit)",
    "directory": "(no path)",
}


class Shown(NamedTuple):
    """The rows that the user asked for."""

    by: Grouping
    sort: Sort
    top: int | None
    """The number of rows of each table; None: all."""


@cache
def user_name(uid: int | None) -> str:
    """The name of a user, or the number if the user has no name here; `?` if it is not known."""
    if uid is None:
        return "?"
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def group_name(row: GroupRow, by: Grouping) -> str:
    """The name of a group in its table."""
    if by == "user" or row.name is None:
        return user_name(row.uid) if by == "user" else _NO_NAME[by]
    if row.mntns and row.container is not None:
        return _in_container(row.container, row.name)
    return render.in_namespace(row.name, row.mntns)


def _in_container(container: ContainerInfo, path: bytes) -> str:
    return f"{render.printable_text(container.label)}: {render.printable(path)}"


def print_watches(watch_list: WatchList) -> None:
    """Each watch and its path."""
    containers = {row.pid: row.container for row in watch_list.processes}
    rows = []
    for row in watch_list.watches:
        cell = path_cell(row.path, row.why, row.mntns)
        container = containers.get(row.watch.pid)
        if row.path is not None and row.mntns and container is not None:
            cell = _in_container(container, row.path)
        rows.append((*watch_cells(row.watch, row.comm), cell))
    render.print_table((*COLUMNS, "path"), rows)


def print_rows(watch_list: WatchList, shown: Shown) -> None:
    """A table for inotify, and one for fanotify if there is a group."""
    totals = watch_list.totals
    kinds = [WatchKind.INOTIFY]
    if totals.groups:
        kinds.append(WatchKind.FANOTIFY)
    for number, kind in enumerate(kinds):
        if number:
            render.print_line("")
        if shown.by == "process":
            _print_processes(watch_list, shown, kind)
        else:
            _print_groups(watch_list, shown, kind)
    if totals.shared:
        copies = render.count(totals.shared, "more descriptor")
        render.print_line(f"{copies} of the same, by dup or fork: each is counted once")


def _numbers(row: ProcessRow | GroupRow | Totals, kind: WatchKind) -> tuple[int, int]:
    if kind is WatchKind.INOTIFY:
        return row.instances, row.watches
    return row.groups, row.marks


def _print_processes(watch_list: WatchList, shown: Shown, kind: WatchKind) -> None:
    from irmapdb.node.ps_groups import sorted_rows

    rows = [
        row for row in sorted_rows(watch_list.processes, shown.sort, kind) if _numbers(row, kind)[0]
    ]
    top = rows[: shown.top]
    heads = ["pid>", "user", *(f"{noun}>" for noun in _NOUNS[kind])]
    cells = [
        [
            str(row.pid),
            cut(render.printable_text(user_name(row.uid)), _LONGEST_USER),
            *(f"{number:,}" for number in _numbers(row, kind)),
        ]
        for row in top
    ]
    if any(row.place for row in top):
        heads.append("container/unit")
        for row, line in zip(top, cells, strict=True):
            line.append(cut(render.printable_text(row.place), _LONGEST_PLACE))
    sums = [sum(numbers) for numbers in zip(*(_numbers(row, kind) for row in rows), strict=True)]
    total = ["total", "", *(f"{number:,}" for number in sums or (0, 0))]
    total += [""] * (len(heads) - len(total))
    room = _room(heads, [*cells, total])
    for row, line in zip(top, cells, strict=True):
        line.append(cut(render.printable(row.shown_command), room))
    total.append(_of_all(len(top), len(rows), "process", "processes"))
    render.print_line(kind.upper())
    render.print_table((*heads, "command"), [*cells, total])


def _room(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    # The width that the other columns leave for the last one.
    titles = [head.rstrip(">") for head in heads]
    used = sum(max(map(text_width, cells)) + _GAP for cells in zip(titles, *rows, strict=True))
    return max(_LEAST_COMMAND, (render.terminal_width() or _PIPE_WIDTH) - used)


def _of_all(top: int, number: int, noun: str, plural: str) -> str:
    text = render.count(number, noun, plural)
    return text if top == number else f"{text}, {top:,} shown"


def _print_groups(watch_list: WatchList, shown: Shown, kind: WatchKind) -> None:
    from irmapdb.node.ps_groups import sorted_rows

    rows = [
        row for row in sorted_rows(watch_list.groups, shown.sort, kind) if any(_numbers(row, kind))
    ]
    top = rows[: shown.top]
    heads = [f"{noun}>" for noun in _NOUNS[kind]] + ["processes>", shown.by]
    cells = [
        (
            *(f"{number:,}" for number in _numbers(row, kind)),
            f"{row.with_inotify if kind is WatchKind.INOTIFY else row.with_fanotify:,}",
            group_name(row, shown.by),
        )
        for row in top
    ]
    render.print_line(kind.upper())
    processes = sum(_numbers(row, kind)[0] > 0 for row in watch_list.processes)
    totals = (*_numbers(watch_list.totals, kind), processes)
    plural = {"directory": "directories"}.get(shown.by, f"{shown.by}s")
    # The row of those in no container, in no unit or without a path is none.
    own = [row for row in rows if _is_one(row, shown.by)]
    shown_own = sum(_is_one(row, shown.by) for row in top)
    total = (
        *(f"{number:,}" for number in totals),
        f"total: {_of_all(shown_own, len(own), shown.by, plural)}",
    )
    render.print_table(heads, [*cells, total])


def _is_one(row: GroupRow, by: Grouping) -> bool:
    return by == "user" or row.name is not None


def print_limits(watch_list: WatchList) -> None:
    """The use of each limit, and the commands that raise those that are nearly reached."""
    used = [usage for usage in watch_list.users if usage.used]
    named = {usage.account for usage in used}
    rows = [
        (
            cut(render.printable_text(user_name(usage.uid)), _LONGEST_USER),
            usage.account.sysctl,
            f"{usage.used:,}",
            "" if usage.limit is None else f"{usage.limit:,}",
            _share(usage),
        )
        for usage in used[:_MOST_USES]
    ]
    rows += [
        ("any", account.sysctl, "0", f"{limit:,}", "0%")
        for account, limit in watch_list.limits.items()
        if account not in named
    ]
    rows += [("", name, "", f"{limit:,}", "") for name, limit in watch_list.queues.items()]
    render.print_line("LIMITS")
    render.print_table(("user", "sysctl", "used>", "of>", "share>"), rows)
    if len(used) > _MOST_USES:
        render.print_line(f"and {len(used) - _MOST_USES:,} smaller shares: --json has all")
    for usage in used[:_MOST_USES]:
        if usage.below:
            of_it = f"{usage.below:,} of the {usage.used:,} {usage.account.sysctl}"
            render.print_line(f"{of_it} are in user namespaces of {user_name(usage.uid)}")
    for one in watch_list.advice:
        _print_advice(one)


def _share(usage: Usage) -> str:
    return f"{usage.used / usage.limit:.0%}" if usage.limit else ""


def _print_advice(advice: LimitAdvice) -> None:
    usage = advice.usage
    name = render.printable_text(user_name(usage.uid))
    render.print_line(
        f"{name} has {usage.used:,} of {usage.limit:,} ({_share(usage)}). Raise {advice.sysctl} "
        "now, and for each boot:"
    )
    render.print_unwrapped(f"    {advice.command}")
    line = f"{advice.sysctl} = {advice.value}"
    render.print_unwrapped(f"    echo '{line}' >>/etc/sysctl.d/90-irmapdb.conf")
