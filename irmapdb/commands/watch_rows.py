"""Formats watches and marks for tables and JSON, for several commands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from irmapdb.commands import render
from irmapdb.model import Watch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from irmapdb.kernel.proc.survey import Denied
    from irmapdb.model import Mapping, Mark
    from irmapdb.node.ps_rows import WatchedPath
    from irmapdb.store.records import WatchRow

__all__ = [
    "COLUMNS",
    "denied_json",
    "mapping_json",
    "mark_json",
    "path_cell",
    "row_json",
    "say_denied",
    "watch_cells",
    "watch_json",
    "wd_cell",
]

COLUMNS = ("pid>", "comm", "fd>", "kind", "wd>", "inode")


def watch_cells(watch: Watch | Mark, comm: bytes | None) -> tuple[str, ...]:
    """The cells of COLUMNS. For a mark without an inode, the last is the kind of mark."""
    kind, wd, what = "fanotify", "-", str(watch.kind)
    if isinstance(watch, Watch):
        kind, wd, what = str(watch.kind), wd_cell(watch.wd), str(watch.identity.key)
    return str(watch.pid), render.printable(comm or b""), str(watch.fd), kind, wd, what


def wd_cell(wd: int | None) -> str:
    """inotify's watch descriptor; fanotify has none."""
    return "-" if wd is None or wd < 0 else str(wd)


def path_cell(path: bytes | None, why: str | None, mntns: int) -> str:
    """The path of a watch, or the reason why there is none."""
    return f"- ({why})" if path is None else render.in_namespace(path, mntns)


def watch_json(watch: Watch | Mark, comm: bytes | None) -> dict[str, Any]:
    """A watch in our JSON, without its path; a mark without an inode has null in its place."""
    identity = watch.identity if isinstance(watch, Watch) else None
    return {
        "pid": watch.pid,
        "comm": render.json_path(comm),
        "fd": watch.fd,
        "kind": watch.kind if isinstance(watch, Watch) else "fanotify",
        "wd": watch.wd if isinstance(watch, Watch) and watch.wd >= 0 else None,
        "dev": identity and identity.kdev,
        "ino": identity and identity.ino,
        "handle": str(identity.handle) if identity and identity.handle else None,
    }


def row_json(row: WatchRow | WatchedPath) -> dict[str, Any]:
    """A watch with its path in our JSON."""
    found = render.json_fields(row, "path why mntns")
    return {**watch_json(row.watch, row.comm), "mask": row.watch.mask, **found}


def mark_json(mark: Mark, comm: bytes, target: bytes) -> dict[str, Any]:
    """A mark without an inode in our JSON."""
    named = {"comm": render.json_path(comm), "target": render.json_path(target)}
    return {**render.json_fields(mark, "pid fd kind"), **named}


def mapping_json(mapping: Mapping) -> dict[str, Any]:
    """The source and the times of a mapping in our JSON."""
    names = "source first_seen_at validated_at last_used_at stale_at stale_reason"
    return render.json_fields(mapping, names)


def say_denied(denied: Iterable[Denied]) -> None:
    """List on stderr the tasks that may not be read."""
    for one in denied:
        comm = render.printable(one.task.comm)
        render.say(f"process {one.task.pid} ({comm}): {one.why}; run as root to see it")


def denied_json(denied: Iterable[Denied]) -> list[dict[str, Any]]:
    """The same tasks in our JSON."""
    return [{**render.json_fields(one.task, "pid comm"), "why": one.why} for one in denied]
