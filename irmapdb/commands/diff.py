"""Implements `irmapdb diff`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from irmapdb.commands import render
from irmapdb.commands.dumped_rows import path_text
from irmapdb.commands.exit import end_with_findings
from irmapdb.commands.input_file import is_pipe_name, regular_input
from irmapdb.commands.options import (
    PID_ADVICE,
    AsJson,
    ConfigFile,
    argument,
)
from irmapdb.errors import FileError, TaskError, UsageError

if TYPE_CHECKING:
    from irmapdb.config import Config
    from irmapdb.node.watch_diff import WatchDiff, WatchDifference
    from irmapdb.node.watch_lists import ListedWatch, WatchSource

__all__ = ["diff"]

_SOURCE = (
    "An archive or images dir of a checkpoint, a work dir, files.img, inotify.img or fanotify.img, "
    "an irmap-cache, a database, the pid of a root task, or the name of a container. Write ./4711 "
    "for a file with that name. `-` is stdin."
)


def diff(
    before: Annotated[str, argument("A", _SOURCE)],
    after: Annotated[str, argument("B", "The second one.")],
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Compare the watches of two checkpoints, databases or task trees.

    Each difference is one line:

    - added: Only B has the watch.
    - removed: Only A has it.
    - other-path: The same inode has another path.
    - other-mask: The watch is for other events.

    diff matches watches by inode, and the others by path: after a restore on another machine, each
    file has another inode. It leaves out marks on mounts and filesystems. It compares no masks with
    an irmap-cache, which has none. If irmapdb finds no path for a watch of a task or database, diff
    does not compare the path. From a database, diff reads the last pre-dump or dump.

    diff writes nothing and stops no task.

    Exits with 3 if a watch differs.

    Examples:
        irmapdb diff before.tar.zst after.tar.zst

        irmapdb diff checkpoint.tar.zst 4711

        irmapdb diff checkpoint.tar.zst web

        irmapdb diff img irmap.db --json

    """
    from irmapdb.config import load_config
    from irmapdb.node.watch_diff import compare

    loaded = load_config(config)
    found = compare(_source(before, loaded), _source(after, loaded))
    if as_json:
        render.print_json(_document(found))
    else:
        _print(found)
    end_with_findings(found.differences)


def _source(text: str, config: Config) -> WatchSource:
    from irmapdb.node.watch_lists import watches_of_file, watches_of_tree

    if text.isascii() and text.isdecimal():
        pid = int(text[:20])
        if not 0 < pid <= _MOST_PID:
            raise UsageError(f"{text[:30]}: not a process id", advice=PID_ADVICE)
        return watches_of_tree(pid, config)
    path = Path(text)
    if "/" in text or os.path.exists(path) or is_pipe_name(path):
        return watches_of_file(regular_input(path))
    from irmapdb.node.container_info import find_container

    try:
        pid = find_container(text).pid
    except TaskError as error:
        message = f"{render.shown(text)}: no such file; {error.message}"
        raise FileError(message, advice=error.advice) from error
    return watches_of_tree(pid, config)


_MOST_PID = 1 << 22
"""PID_MAX_LIMIT of include/linux/threads.h."""


def _print(found: WatchDiff) -> None:
    if found.differences:
        render.print_table(
            ("change", "kind", "inode", "mask>", "path", "path in B"),
            map(_cells, found.differences),
        )
    differ = render.count(len(found.differences), "difference")
    same = render.count(found.same, "equal watch", "equal watches")
    render.print_line(f"{differ}, {same}")


def _cells(one: WatchDifference) -> tuple[str, ...]:
    old, new = one.before, one.after
    watch = old or new
    if watch is None:
        return ("",) * 6
    masks = [f"{side.mask:x}" for side in (old, new) if side is not None and side.mask is not None]
    other = path_text(new.path) if old and new and old.path != new.path else ""
    return (
        str(one.kind),
        str(watch.kind or "-"),
        str(watch.identity.key),
        " → ".join(dict.fromkeys(masks)) or "-",
        path_text(watch.path),
        other,
    )


def _document(found: WatchDiff) -> dict[str, Any]:
    return {
        "before": _source_json(found.before),
        "after": _source_json(found.after),
        "same": found.same,
        "differences": [
            {
                "change": one.kind,
                "before": _watch_json(one.before),
                "after": _watch_json(one.after),
            }
            for one in found.differences
        ],
    }


def _source_json(source: WatchSource) -> dict[str, Any]:
    return {"name": source.name, "kind": source.kind, "watches": len(source.watches)}


def _watch_json(watch: ListedWatch | None) -> dict[str, Any] | None:
    if watch is None:
        return None
    handle = watch.identity.handle
    return {
        "dev": watch.identity.kdev,
        "ino": watch.identity.ino,
        "handle": None if handle is None else str(handle),
        **render.json_fields(watch, "kind mask path"),
    }
