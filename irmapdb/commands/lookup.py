"""Implements `irmapdb lookup`: prints everything about an inode or a path."""

from __future__ import annotations

import os
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import typer

from irmapdb.commands import render
from irmapdb.commands.exit import end_with_findings
from irmapdb.commands.keys import Key, parse_keys, spellings
from irmapdb.commands.options import (
    AsJson,
    Database,
    WorkDirOption,
    argument,
    database_path,
)
from irmapdb.commands.watch_rows import mapping_json, path_cell, wd_cell
from irmapdb.model import format_kdev

if TYPE_CHECKING:
    from collections.abc import Sequence

    from irmapdb.model import Mapping
    from irmapdb.store.database import Store
    from irmapdb.store.inode_report import InodeReport, Sighting
    from irmapdb.store.records import ChangeRow

__all__ = ["lookup"]


def lookup(
    keys: Annotated[
        list[str],
        argument(
            "KEY…", "`fe00000:2e3` as in CRIU's log, `254:0 739`, an inode number, or a path."
        ),
    ],
    work_dir: WorkDirOption = None,
    db: Database = None,
    as_json: AsJson = False,
) -> None:
    """Print everything that the database has about an inode or a path.

    lookup prints the live and stale paths of the inode, the watches on it in each run, and the
    changes. For a path, lookup prints each inode that has or had this path. Write a path as the
    tasks see it, or as irmapdb prints it. You may paste a whole line of CRIU's log. `254:0 739` is
    a device and an inode number, as mountinfo and stat print them. Without a second number, `254:0`
    is a device and an inode number in hex, as in CRIU's log.

    Exits with 3 if the database does not know one of the keys.

    Examples:
        irmapdb lookup fe00000:2e3 -W /var/lib/ckpt

        irmapdb lookup 254:0 739

        irmapdb lookup '(00.012345) irmap: Resolving fe00000:2e3 path'

        irmapdb lookup /etc/passwd --json

    """
    from irmapdb.store.database import Store

    wanted = list(parse_keys(keys))
    with Store.open_readonly(database_path(db, work_dir)) as store:
        known = [(one, _find(store, one)) for one in wanted]
    if as_json:
        render.print_json(
            [{"key": one.text, "inodes": list(map(_document, found))} for one, found in known]
        )
    else:
        _print(known)
    _say_limits(known)
    unknown = [one for one, found in known if not found]
    for one in unknown:
        render.say(
            f"{render.printable(os.fsencode(one.text))}: the database does not know it{_hint(one)}"
        )
    end_with_findings(unknown)


def _find(store: Store, wanted: Key) -> list[InodeReport]:
    if wanted.key is not None:
        keys = [wanted.key]
    elif wanted.ino is not None:
        keys = store.find_by_ino(wanted.ino)
    else:
        tried = map(store.find_by_path, spellings(wanted.path or b"/"))
        keys = next(filter(None, tried), [])
    found = (store.inode_report(key) for key in keys)
    return [one for one in found if one is not None]


def _say_limits(known: Sequence[tuple[Key, Sequence[InodeReport]]]) -> None:
    from irmapdb.store.inode_report import MOST_INODES
    from irmapdb.store.mappings import ROWS_OF_INODE

    for one, found in known:
        if len(found) >= MOST_INODES:
            name = render.printable(os.fsencode(one.text))
            render.say(f"{name}: only {MOST_INODES} inodes are shown; name one of them")
        for report in found:
            if report.cut:
                which = f"the last {ROWS_OF_INODE:,} paths, watches and changes are shown"
                render.say(f"{report.key}: {which}; `irmapdb sql` has all")


def _hint(wanted: Key) -> str:
    if wanted.is_like_a_device:
        return " (read as CRIU's hex; a device goes before an inode number, as in 254:0 739)"
    return ""


# For people


def _print(known: list[tuple[Key, list[InodeReport]]]) -> None:
    reports = {one.key: one for _, found in known for one in found}
    for index, report in enumerate(reports.values()):
        if index:
            typer.echo()
        _print_report(report)


def _print_report(report: InodeReport) -> None:
    key = report.key
    typer.echo(f"{key}: device {format_kdev(key.kdev)}, inode {key.ino}")
    if report.mappings:
        typer.echo()
        render.print_table(
            ("state", "since", "found by", "handle", "path"),
            [
                (
                    _state(one),
                    render.time_cell(one.stale_at or one.validated_at or one.first_seen_at),
                    str(one.source),
                    str(one.identity.handle or "-"),
                    render.in_namespace(one.path, one.mntns),
                )
                for one in report.mappings
            ],
        )
    if report.sightings:
        typer.echo()
        render.print_table(
            ("runs", "last seen", "pid>", "process", "fd>", "wd>", "kind", "watched as"),
            list(map(_watch_cells, _grouped(report.sightings))),
        )
    if report.changes:
        typer.echo()
        render.print_table(
            ("at", "run>", "what happened"),
            [
                (render.time_cell(one.at), str(one.run_id or "-"), render.change_line(one.change))
                for one in report.changes
            ],
        )


def _state(mapping: Mapping) -> str:
    if mapping.stale_reason is not None:
        return f"stale: {mapping.stale_reason}"
    return "to be proved" if mapping.revalidate else "proved"


def _grouped(sightings: Sequence[Sighting]) -> list[list[Sighting]]:
    """Group the same watch of consecutive runs."""

    def watch(seen: Sighting) -> tuple[Any, ...]:
        row = seen.row
        one = row.watch
        return (
            one.pid,
            one.fd,
            one.wd,
            str(one.kind),
            row.comm or b"",
            row.path or b"",
            row.why or "",
        )

    by_watch = sorted(sightings, key=watch)  # stable: the runs stay in their order
    groups = [list(group) for _, group in groupby(by_watch, key=watch)]
    return sorted(groups, key=lambda group: (group[0].run_id, group[-1].run_id))


def _watch_cells(group: list[Sighting]) -> tuple[str, ...]:
    first, last = group[0], group[-1]
    row = last.row
    runs = f"{first.run_id}" if first is last else f"{first.run_id} to {last.run_id}"
    if first is not last and last.run_id - first.run_id >= len(group):
        runs += f" ({len(group)} of them)"
    return (
        runs,
        render.time_cell(last.at),
        str(row.watch.pid),
        render.printable(row.comm or b"?"),
        str(row.watch.fd),
        wd_cell(row.watch.wd),
        str(row.watch.kind),
        path_cell(row.path, row.why, row.mntns),
    )


# For programs


def _document(report: InodeReport) -> dict[str, Any]:
    key = report.key
    return {
        "dev": key.kdev,
        "ino": key.ino,
        "device": format_kdev(key.kdev),
        "in_criu_log": str(key),
        "mappings": list(map(_mapping_json, report.mappings)),
        "watches": [
            {
                "run": seen.run_id,
                **render.json_fields(seen, "event at"),
                **render.json_fields(seen.row.watch, "pid fd kind mask"),
                **render.json_fields(seen.row, "comm path why mntns"),
                "wd": None if seen.row.watch.wd < 0 else seen.row.watch.wd,
            }
            for seen in report.sightings
        ],
        "changes": list(map(_change_json, report.changes)),
        "cut": report.cut,
    }


def _mapping_json(mapping: Mapping) -> dict[str, Any]:
    return {
        **render.json_fields(mapping, "id path mntns"),
        "state": _state(mapping).partition(":")[0],
        "handle": str(mapping.identity.handle) if mapping.identity.handle else None,
        **mapping_json(mapping),
    }


def _change_json(row: ChangeRow) -> dict[str, Any]:
    return {"at": render.json_time(row.at), "run": row.run_id, **render.change_json(row.change)}
