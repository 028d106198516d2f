"""Implements `irmapdb pre-dump` and `irmapdb dump`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from irmapdb.commands import render
from irmapdb.commands.exit import end_with_findings
from irmapdb.commands.log import start_log
from irmapdb.commands.options import (
    AllRows,
    AsJson,
    ConfigFile,
    ContainerName,
    CriuWorkDir,
    Database,
    ImagesDir,
    LogFile,
    Pid,
    PrevImagesDir,
    ScanPaths,
    Verbose,
    flag,
    named_database,
    path_option,
    positive_seconds,
    root_task,
)
from irmapdb.commands.progress import Progress
from irmapdb.commands.watch_rows import (
    COLUMNS,
    denied_json,
    mark_json,
    path_cell,
    row_json,
    say_denied,
    watch_cells,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from irmapdb.checkpoint.steps import StepOptions
    from irmapdb.checkpoint.transaction import StepReport

__all__ = ["dump", "pre_dump"]


def pre_dump(
    pid: Pid = None,
    container: ContainerName = None,
    images_dir: ImagesDir = Path(),
    work_dir: CriuWorkDir = None,
    prev_images_dir: PrevImagesDir = None,
    irmap_scan_path: ScanPaths = None,
    db: Database = None,
    config: ConfigFile = None,
    all_rows: AllRows = False,
    as_json: AsJson = False,
    verbose: Verbose = 0,
    log_file: LogFile = None,
) -> None:
    """Find the path of every watch while the tasks run.

    pre-dump reads the inotify watches and fanotify inode marks of PID and all its descendants. It
    proves a path for each, and writes `irmap.db` and `irmap-cache` into the work dir. It stops no
    task. `criu dump -W DIR` then loads `irmap-cache` before it freezes the tasks.

    Examples:
        irmapdb pre-dump -t 4711 -D /var/lib/ckpt

        irmapdb pre-dump --container web -D img

        irmapdb pre-dump -t 4711 -D img -W work --irmap-scan-path /srv/data

        irmapdb pre-dump -t 4711 --json | jq '.watches[] | select(.path == null)'

    """
    from irmapdb.checkpoint.steps import pre_dump as run

    tree = root_task(pid, container, "pre-dump")
    given = (tree, images_dir, work_dir, prev_images_dir, irmap_scan_path, db, config)
    report = _run(run, *given, verbose, log_file)
    _show(report, as_json=as_json, all_rows=all_rows)


def dump(
    pid: Pid = None,
    container: ContainerName = None,
    images_dir: ImagesDir = Path(),
    work_dir: CriuWorkDir = None,
    prev_images_dir: PrevImagesDir = None,
    irmap_scan_path: ScanPaths = None,
    freeze_cgroup: Annotated[
        Path | None,
        path_option(
            metavar="PATH",
            text="Freeze the tasks with this cgroup (v1 freezer or v2), and not only with ptrace.",
        ),
    ] = None,
    timeout: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            callback=positive_seconds,
            help="Fail if the tasks have not stopped after this time.",
        ),
    ] = 10.0,
    leave_stopped: Annotated[
        bool, flag("-s --leave-stopped", "Leave the tasks stopped (SIGSTOP).")
    ] = False,
    db: Database = None,
    config: ConfigFile = None,
    all_rows: AllRows = False,
    as_json: AsJson = False,
    verbose: Verbose = 0,
    log_file: LogFile = None,
) -> None:
    """Confirm every path with the tasks frozen, and write inotify.img and fanotify.img.

    dump does a pre-dump, then freezes the tasks, reads their watches again, and lets the tasks run.
    It writes `inotify.img` and `fanotify.img` into the images dir (`crit decode` reads them), and
    `irmap-cache` and `irmap.db` into the work dir.

    With CRIU you do not need it: `criu dump` freezes the tasks itself.

    Examples:
        irmapdb dump -t 4711 -D img -W work

        irmapdb dump -t 4711 -D img --freeze-cgroup /sys/fs/cgroup/app --json

    """
    from irmapdb.checkpoint.steps import FreezeOptions
    from irmapdb.checkpoint.steps import dump as run

    freeze = FreezeOptions(freeze_cgroup, timeout, leave_stopped)
    tree = root_task(pid, container, "dump")
    given = (tree, images_dir, work_dir, prev_images_dir, irmap_scan_path, db, config)
    report = _run(lambda options: run(options, freeze), *given, verbose, log_file)
    _show(report, as_json=as_json, all_rows=all_rows, left_stopped=leave_stopped)


def _run(
    run: Callable[[StepOptions], StepReport],
    pid: int,
    images_dir: Path,
    work_dir: Path | None,
    prev_images_dir: Path | None,
    scan_paths: Sequence[str] | None,
    db: Path | None,
    config: Path | None,
    verbose: int,
    log_file: Path | None,
) -> StepReport:
    """Run a step with the options that both commands have."""
    from irmapdb.checkpoint.steps import StepOptions
    from irmapdb.checkpoint.work_dir import made_directory
    from irmapdb.config import load_config

    db = named_database(db, work_dir)
    with made_directory(images_dir), made_directory(work_dir), Progress() as progress:
        start_log(verbose, log_file, work_dir or images_dir, (db, config))
        return run(
            StepOptions(
                pid=pid,
                images_dir=images_dir,
                work_dir=work_dir,
                database=db,
                prev_images_dir=prev_images_dir,
                scan_paths=tuple(map(os.fsencode, scan_paths or ())),
                config=load_config(config),
                progress=progress.scanning,
            )
        )


def _show(report: StepReport, *, as_json: bool, all_rows: bool, left_stopped: bool = False) -> None:
    if as_json:
        render.print_json(_document(report, left_stopped=left_stopped))
    else:
        _print_report(report, all_rows=all_rows)
        if left_stopped:
            let_go = f"`kill -CONT {report.pid}`, and the same for its descendants"
            render.print_line(f"the tasks are left stopped; {let_go}, lets them go on")
    end_with_findings(report.stats.unresolved or report.denied)


_MANY_WATCHES = 50
_LISTED = "a mark without an inode: listed, not resolved"
_DROPPED = "CRIU leaves it out: let the task set it again after the restore"


def _print_report(report: StepReport, *, all_rows: bool) -> None:
    many = len(report.watches) > _MANY_WATCHES and not all_rows
    rows = [
        (*watch_cells(row.watch, row.comm), path_cell(row.path, row.why, row.mntns))
        for row in report.watches
        if row.path is None or not many
    ]
    for row in report.marks:
        target = render.in_namespace(row.target, row.mntns)
        what = f"{target} ({_DROPPED if row.is_dropped else _LISTED})"
        rows.append((*watch_cells(row.mark, row.comm), what))
    if rows:
        render.print_table((*COLUMNS, "path"), rows)
    say_denied(report.denied)
    for change in report.changes:
        if change.kind != "found":
            render.print_line(render.change_line(change))
    render.print_line(_summary(report, many=many))


def _summary(report: StepReport, *, many: bool) -> str:
    stats = report.stats
    nested = sum(row.path is not None and row.mntns != 0 for row in report.watches)
    where = f" ({nested:,} of them in another mount namespace: not handed to CRIU)"
    parts = [
        f"{render.count(stats.watches, 'watch', 'watches')}: {stats.resolved:,} resolved"
        + (where if nested else ""),
        f"{stats.unresolved:,} unresolved",
    ]
    if stats.stale:
        parts.append(f"{render.count(stats.stale, 'mapping')} went stale")
    if report.loaded:
        parts.append(f"{render.count(report.loaded, 'entry', 'entries')} loaded from irmap-cache")
    if stats.scanned:
        parts.append(f"{render.count(stats.scanned, 'entry', 'entries')} scanned")
    lines = [", ".join(parts)]
    if many:
        lines.append("(only watches without a path are listed; --all-rows lists all)")
    times = f"irmap_resolve {stats.resolve_us:,} µs"
    if report.event == "dump":
        times = (
            f"freezing_time {stats.freezing_us:,} µs, frozen_time {stats.frozen_us:,} µs, {times}"
        )
    lines.append(times)
    lines.append("wrote " + ", ".join(map(render.shown, report.written)))
    return "\n".join(lines)


def _document(report: StepReport, *, left_stopped: bool) -> dict[str, Any]:
    stats = report.stats
    return {
        **render.json_fields(report, "event pid loaded written"),
        "run": report.run_id,
        "watches": list(map(row_json, report.watches)),
        "marks": [
            {
                **mark_json(row.mark, row.comm, row.target),
                "mntns": row.mntns,
                "mask": row.mark.mask,
                "dropped": row.is_dropped,
            }
            for row in report.marks
        ],
        "denied": denied_json(report.denied),
        "changes": [render.change_json(change) for change in report.changes],
        "stats": {
            "freezing_time": stats.freezing_us,
            "frozen_time": stats.frozen_us,
            "irmap_resolve": stats.resolve_us,
            **render.json_fields(stats, "watches resolved unresolved hits stale scanned"),
            "sources": dict(stats.sources),
        },
        "left_stopped": left_stopped,
        "private_copy": report.private_copy or None,
    }
