"""Adds up the watches of processes by user, container, unit or directory, and sorts the sums."""

from __future__ import annotations

import os

from irmapdb.model import WatchKind
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Literal, TypeAlias, TypeVar

    from irmapdb.node.container_info import ContainerInfo
    from irmapdb.node.ps_rows import ProcessRow, WatchedPath

    Grouping: TypeAlias = Literal["user", "container", "unit", "process", "directory"]
    Sort: TypeAlias = Literal["watches", "instances", "name"]
    _Row = TypeVar("_Row", ProcessRow, "GroupRow")

__all__ = ["GroupRow", "Totals", "add_up", "directory_rows", "group_rows", "sorted_rows"]


class GroupRow(Record):
    """The sums of one user, container, unit or directory."""

    name: bytes | None
    """The user's number, the label of the container, the unit, or the directory. None: in no
    container; in no unit; watches without a path."""
    processes: int
    """Those that have a descriptor of their own, or for a directory a watch in it."""
    instances: int
    """Of a directory: those with a watch in it."""
    watches: int
    groups: int
    marks: int
    with_inotify: int
    """Those of the processes that have an instance, or for a directory a watch in it."""
    with_fanotify: int
    """Those that have a group, or a mark in it."""
    uid: int | None = None
    """Of a user; None also if it could not be read."""
    container: ContainerInfo | None = None
    """Of a container; and of a directory whose path starts at a container's root."""
    mntns: int = 0
    """Of a directory, as in Mapping: the mount namespace of the path."""

    @property
    def sort_name(self) -> tuple[bytes, int]:
        """The key for a sort by name."""
        return self.name or b"", self.mntns


class Totals(Record):
    """The sums of all listed processes."""

    processes: int
    """Those that have a descriptor of their own."""
    instances: int
    watches: int
    groups: int
    marks: int
    shared: int
    """Descriptors that exist more than once, without the first of each."""


def add_up(rows: Iterable[ProcessRow]) -> Totals:
    """The totals of these processes."""
    own = shared = instances = watches = groups = marks = 0
    for row in rows:
        own += bool(row.instances or row.groups)
        shared += row.shared
        instances += row.instances
        watches += row.watches
        groups += row.groups
        marks += row.marks
    return Totals(own, instances, watches, groups, marks, shared)


def group_rows(rows: Iterable[ProcessRow], by: Grouping) -> tuple[GroupRow, ...]:
    """The sums by user, container or unit."""
    members: dict[object, list[ProcessRow]] = {}
    for row in rows:
        key: object = row.uid
        if by == "container":
            key = row.container and row.container.id
        elif by == "unit":
            key = row.unit
        members.setdefault(key, []).append(row)
    return tuple(_group(many, by) for many in members.values())


def _group(rows: Sequence[ProcessRow], by: Grouping) -> GroupRow:
    first, totals = rows[0], add_up(rows)
    sums = (
        *(totals.processes, totals.instances, totals.watches, totals.groups, totals.marks),
        sum(bool(row.instances) for row in rows),
        sum(bool(row.groups) for row in rows),
    )
    if by == "user":
        name = None if first.uid is None else str(first.uid).encode()
        return GroupRow(name, *sums, uid=first.uid)
    if by == "container":
        label = first.container and first.container.label
        name = None if label is None else os.fsencode(label)
        return GroupRow(name, *sums, container=first.container)
    return GroupRow(None if first.unit is None else os.fsencode(first.unit), *sums)


class _Directory:
    # The watches in one directory.
    def __init__(self, container: ContainerInfo | None) -> None:
        self.container = container
        self.pids: dict[WatchKind, set[int]] = {kind: set() for kind in WatchKind}
        self.fds: dict[WatchKind, set[tuple[int, int]]] = {kind: set() for kind in WatchKind}
        self.watches: dict[WatchKind, int] = dict.fromkeys(WatchKind, 0)

    def add(self, row: WatchedPath, pid: int) -> None:
        watch, kind = row.watch, row.kind
        self.pids[kind].add(pid)
        self.fds[kind].add((watch.pid, watch.fd))
        self.watches[kind] += 1


def directory_rows(
    rows: Iterable[tuple[WatchedPath, bytes | None]],
    processes: Iterable[ProcessRow],
    threads: Mapping[int, int],
) -> tuple[GroupRow, ...]:
    """The sums of watches that come with their directory; None for one without a path.

    `threads` has the process of each thread that has its own descriptors.
    """
    containers = {row.pid: row.container for row in processes}
    found: dict[tuple[int, bytes | None], _Directory] = {}
    for row, name in rows:
        pid = threads.get(row.watch.pid, row.watch.pid)
        key = (row.mntns, name)
        if key not in found:
            found[key] = _Directory(containers.get(pid) if row.mntns else None)
        found[key].add(row, pid)
    return tuple(
        GroupRow(
            name,
            len(one.pids[WatchKind.INOTIFY] | one.pids[WatchKind.FANOTIFY]),
            len(one.fds[WatchKind.INOTIFY]),
            one.watches[WatchKind.INOTIFY],
            len(one.fds[WatchKind.FANOTIFY]),
            one.watches[WatchKind.FANOTIFY],
            len(one.pids[WatchKind.INOTIFY]),
            len(one.pids[WatchKind.FANOTIFY]),
            container=one.container,
            mntns=mntns,
        )
        for (mntns, name), one in found.items()
    )


def sorted_rows(
    rows: Iterable[_Row], sort: Sort, kind: WatchKind | None = None
) -> tuple[_Row, ...]:
    """The rows, the largest or the first name on top; equal ones in the order given.

    "watches" counts watches and marks, "instances" instances and groups; with a `kind` only those
    of inotify or of fanotify.
    """
    inotify, fanotify = kind is not WatchKind.FANOTIFY, kind is not WatchKind.INOTIFY

    def watches(row: _Row) -> int:
        return row.watches * inotify + row.marks * fanotify

    def instances(row: _Row) -> int:
        return row.instances * inotify + row.groups * fanotify

    if sort == "name":
        return tuple(sorted(rows, key=lambda row: row.sort_name))
    first, second = (watches, instances) if sort == "watches" else (instances, watches)
    return tuple(sorted(rows, key=lambda row: (-first(row), -second(row))))
