"""Implements `irmapdb check --images`: the prediction of a restore."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from irmapdb.commands import render
from irmapdb.commands.dumped_rows import (
    IMAGE_COLUMNS,
    container_json,
    image_cells,
    inode_text,
    path_text,
    print_container,
    print_sources,
    wd_of,
)
from irmapdb.commands.exit import end_with_findings
from irmapdb.commands.findings import Finding, listed, print_findings

if TYPE_CHECKING:
    from pathlib import Path

    from irmapdb.criu.check.restore import RestoreCheck, WatchRestore

__all__ = ["check_before_restore"]


def check_before_restore(images: Path, root: Path | None, *, as_json: bool, all_rows: bool) -> None:
    """Print the prediction, and end with 3 if a watch does not come back."""
    from irmapdb.criu.check.restore import check_images
    from irmapdb.criu.usable import unusable_notes

    report = check_images(images, root)
    notes = (*unusable_notes(), *report.notes)
    if as_json:
        render.print_json({**_restore_document(report), "notes": list(notes)})
    else:
        for note in notes:
            render.print_line(f"note: {note}")
        _print_restore(report, all_rows=all_rows)
    end_with_findings(not report.right)


def _print_restore(report: RestoreCheck, *, all_rows: bool) -> None:
    print_container(report.container)
    rows = [_restore_row(one) for one in listed(report.watches, all_rows=all_rows)]
    if rows:
        render.print_table((*IMAGE_COLUMNS, "verdict", "from", "path"), rows)
    print_sources((one.origin, one.mount_source) for one in report.watches if one.right)
    findings = [Finding(str(one.verdict), one.why, one.advice) for one in report.watches]
    findings += [Finding("restore", problem.why, problem.advice) for problem in report.problems]
    print_findings(findings, all_rows=all_rows)
    replaced = [one for one in report.watches if one.verdict.name == "REPLACED"]
    if replaced:
        render.print_line(f"note: {render.count(len(replaced), 'path')}: {replaced[0].why}")
    counts = Counter(str(one.verdict) for one in report.watches)
    verdicts = ", ".join(f"{number:,} {verdict}" for verdict, number in counts.most_common())
    watches = render.count(len(report.watches), "watch", "watches")
    render.print_line(f"{watches} in {render.shown(report.image)}: {verdicts or 'nothing'}")
    if unlisted := len(report.watches) - len(rows):
        render.print_line(f"({unlisted:,} more are not listed; --all-rows lists all)")


def _restore_row(one: WatchRestore) -> tuple[str, ...]:
    cells = image_cells(one.file, one.watch)
    return (*cells, str(one.verdict), str(one.kind or "-"), path_text(one.watch.path))


def _restore_document(report: RestoreCheck) -> dict[str, Any]:
    def document(one: WatchRestore) -> dict[str, Any]:
        return {
            "file": one.file.id,
            "kind": one.file.kind,
            "wd": wd_of(one.watch),
            "inode": inode_text(one.watch),
            "path": render.json_path(one.watch.path),
            "from": one.origin or None,
            "origin": one.kind,
            **render.json_fields(one, "verdict right source why advice"),
        }

    return {
        **render.json_fields(report, "image root right"),
        "container": container_json(report.container),
        "problems": [problem._asdict() for problem in report.problems],
        "watches": [document(one) for one in report.watches],
    }
