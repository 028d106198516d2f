"""Implements `irmapdb prune`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from irmapdb.commands import render
from irmapdb.commands.options import (
    AsJson,
    ConfigFile,
    Database,
    DryRun,
    WorkDirOption,
    database_path,
    flag,
    span,
    value_option,
)
from irmapdb.commands.progress import Progress

if TYPE_CHECKING:
    from irmapdb.prune import PruneReport

__all__ = ["prune"]


def prune(
    work_dir: WorkDirOption = None,
    db: Database = None,
    keep_runs: Annotated[
        int | None,
        value_option("N", "Keep the newest N runs, with their watches.  [default: 1000]", min=1),
    ] = None,
    keep_rows: Annotated[
        int | None,
        value_option(
            "N",
            "Keep at most N watches of all these runs, N changes, and N mappings that the last "
            "run did not use.  [default: 200000]",
            min=1,
        ),
    ] = None,
    stale_older_than: Annotated[
        str | None,
        value_option(
            "SPAN", "Keep stale mappings and changes for this long: 12h, 30d, 8w.  [default: 30d]"
        ),
    ] = None,
    unused_older_than: Annotated[
        str | None,
        value_option("SPAN", "Keep a mapping for this long after its last use.  [default: 90d]"),
    ] = None,
    dry_run: DryRun = False,
    vacuum: Annotated[
        bool,
        flag(
            "--vacuum",
            "Rewrite the file without free pages. This needs free space of the size of the file.",
        ),
    ] = False,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Delete old runs and stale mappings.

    Each pre-dump and dump deletes some old rows by itself. Use prune to delete them all at once, or
    to keep fewer. `[retention]` in the configuration sets the defaults. prune always keeps the
    newest pre-dump or dump, and the mappings that it used. The file does not become smaller: SQLite
    uses the free pages again. --vacuum returns them to the filesystem.

    Examples:
        irmapdb prune -W /var/lib/ckpt --dry-run

        irmapdb prune --db irmap.db --keep-runs 20 --stale-older-than 7d

    """
    from irmapdb.config import load_config
    from irmapdb.prune import PruneOptions
    from irmapdb.prune import prune as run

    keep = load_config(config).retention
    if keep_runs is not None:
        keep = keep._replace(keep_runs=keep_runs)
    if keep_rows is not None:
        keep = keep._replace(keep_rows=keep_rows)
    if stale_older_than is not None:
        keep = keep._replace(stale_older_than=span("--stale-older-than", stale_older_than))
    if unused_older_than is not None:
        keep = keep._replace(unused_older_than=span("--unused-older-than", unused_older_than))
    with Progress() as progress:
        report = run(
            PruneOptions(
                database=database_path(db, work_dir),
                keep=keep,
                dry_run=dry_run,
                vacuum=vacuum,
                progress=progress.removing,
            )
        )
    _show(report, dry_run=dry_run, as_json=as_json)


def _show(report: PruneReport, *, dry_run: bool, as_json: bool) -> None:
    from irmapdb.prune import describe

    if as_json:
        render.print_json(
            {
                "dry_run": dry_run,
                **render.json_fields(report, "pruned upgraded_from"),
                "run": report.run_id,
                "bytes": report.size,
                "free_bytes": report.free,
                "private_copy": report.private_copy or None,
            }
        )
        return
    verb = "would delete" if dry_run else "deleted"
    render.print_line(f"{verb}: {describe(report.pruned)}")
    size, free = report.size / 1e6, report.free / 1e6
    render.print_line(f"the file has {size:,.2f} MB; {free:,.2f} MB of this is free for new rows")
