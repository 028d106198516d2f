"""Implements `irmapdb audit`."""

from __future__ import annotations

import os
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from irmapdb.commands import render
from irmapdb.commands.exit import end_with_findings
from irmapdb.commands.keys import spellings
from irmapdb.commands.log import start_log
from irmapdb.commands.options import (
    AsCsv,
    AsJson,
    ConfigFile,
    ContainerName,
    Database,
    Verbose,
    WorkDirOption,
    database_path,
    flag,
    path_option,
    refuse_two_forms,
    root_task_if_given,
    span,
    tree_option,
    value_option,
)
from irmapdb.commands.progress import Progress
from irmapdb.commands.watch_rows import mapping_json
from irmapdb.errors import UsageError
from irmapdb.model import format_kdev, parse_kdev

if TYPE_CHECKING:
    from collections.abc import Iterable

    from irmapdb.audit.check import AuditOptions, AuditReport
    from irmapdb.audit.findings import AuditFinding, Evidence, Selection
    from irmapdb.audit.fix import Mended
    from irmapdb.model import Identity, Mapping

__all__ = ["VERDICTS", "audit"]

_NOT_THERE = {"gone", "unmounted"}
_MANY = 10
VERDICTS = ("valid", "moved", "replaced", "reused", "deleted", "gone", "unmounted", "unreachable")


def audit(
    work_dir: WorkDirOption = None,
    db: Database = None,
    tree: Annotated[
        int | None,
        tree_option(
            "Look up the paths in the root of this task, for example of a container. irmapdb looks "
            "up a path of another mount namespace of its tree in that namespace."
        ),
    ] = None,
    container: ContainerName = None,
    root: Annotated[
        Path | None,
        path_option(
            metavar="DIR",
            text="Look below this directory: an unpacked image, a mounted rootfs.  [default: /]",
        ),
    ] = None,
    search: Annotated[
        bool, flag("--search", "Scan the filesystem for files whose new path is not known.")
    ] = False,
    only: Annotated[
        list[str] | None,
        value_option(
            "VERDICT",
            f"List only this verdict, and fix no other: {', '.join(VERDICTS)}. Repeatable.",
        ),
    ] = None,
    path: Annotated[
        list[str] | None,
        value_option("GLOB", "Check only paths that match (`*` matches `/` too). Repeatable."),
    ] = None,
    dev: Annotated[
        list[str] | None,
        value_option("MAJOR:MINOR", "Check only paths on this device. Repeatable."),
    ] = None,
    older_than: Annotated[
        str | None,
        value_option(
            "SPAN", "Check only mappings whose last proof is older: 45s, 90m, 2h, 30d, 4w."
        ),
    ] = None,
    list_all: Annotated[
        bool, flag("--all", "List valid mappings and earlier stale ones too.")
    ] = False,
    fix: Annotated[
        bool, flag("--fix", "Mark stale mappings, store new paths, and log both.")
    ] = False,
    config: ConfigFile = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    show_evidence: Annotated[
        bool, flag("--evidence", "Show the evidence: expected, found, times.")
    ] = False,
    verbose: Verbose = 0,
) -> None:
    """Check every stored mapping against the filesystem as it is now.

    Each mapping gets a verdict:

    - valid: The path names the inode.
    - moved: The inode has another path now. irmapdb shows it.
    - replaced: Another file has the path.
    - reused: Another file has the path and the inode number.
    - deleted: The file does not exist any more.
    - gone: No file has the path, and irmapdb does not know another path of the inode.
    - unmounted: The device is not mounted here.
    - unreachable: irmapdb could not look at the path.

    audit writes nothing without --fix. A mapping that came from an image and was never proved has
    no file handle. audit then compares only its device and inode number, and says so.

    Exits with 3 if a live mapping is stale or audit could not check it, also if --fix has corrected
    it or --only does not list it.

    Examples:
        irmapdb audit -W /var/lib/ckpt

        irmapdb audit -t 4711 --only moved --only deleted --evidence

        irmapdb audit -t 4711 --path '/srv/*' --older-than 2h --search --fix

        irmapdb audit --json | jq '.mappings[] | select(.verdict == "moved") | .moved_to'

    """
    from irmapdb.audit.check import AuditOptions
    from irmapdb.audit.fix import mend
    from irmapdb.config import load_config

    refuse_two_forms(as_json, as_csv)
    tree = root_task_if_given(tree, container)
    if fix and tree is None and root is None:
        # In our own root, all paths of a container would be wrong.
        message = "--fix without a root"
        raise UsageError(
            message, advice="name the root of the paths: -t PID, or --root / for this machine's own"
        )
    select = _selection(only, path, dev, older_than)
    start_log(verbose, None, work_dir or Path(), ())
    with Progress() as progress:
        options = AuditOptions(
            database=database_path(db, work_dir),
            root=None if root is None else os.fsencode(root),
            pid=tree,
            select=select,
            search=search,
            config=load_config(config),
            on_checked=progress.checking,
            on_scanned=progress.scanning,
        )
        done = mend(options) if fix else _only_audit(options)
    report = done.report
    listed = [one for one in report.shown if list_all or _is_of_interest(one, chosen=bool(only))]
    if not report.findings:
        _say_why_nothing(report)
    if as_json:
        render.print_json(_document(done, listed, fix=fix))
    elif as_csv:
        _print_csv(listed)
    elif report.findings:
        _print_counts(report)
        _print_findings(listed, evidence=show_evidence)
        _print_summary(done, options, listed, fix=fix)
    if report.left_out:
        left_out = render.count(report.left_out, "mapping")
        render.say(
            f"{left_out} of mount namespaces that this tree is not in left out: audit without -t "
            "lists them"
        )
    end_with_findings(report.lost or report.unseen)


def _only_audit(options: AuditOptions) -> Mended:
    from irmapdb.audit.check import audit as run
    from irmapdb.audit.fix import Mended

    return Mended(run(options), None, ())


def _is_of_interest(finding: AuditFinding, *, chosen: bool) -> bool:
    # Differences from the database: live mappings that are wrong, stale ones that are right. With
    # a wanted verdict, every live one.
    if finding.mapping.stale:
        return finding.verdict == "valid"
    return finding.is_news or chosen


def _say_why_nothing(report: AuditReport) -> None:
    if report.left_out:
        return  # printed in any case
    if report.stored:
        render.say(
            f"nothing to check: none of {render.count(report.stored, 'mapping')} is selected"
        )
    else:
        render.say("nothing to check: the database has no mappings")


def _selection(
    only: list[str] | None,
    paths: list[str] | None,
    devices: list[str] | None,
    older_than: str | None,
) -> Selection:
    from irmapdb.audit.findings import AuditVerdict, Selection
    from irmapdb.durations import before

    for word in only or ():
        if word not in VERDICTS:
            message = f"--only {word}: no such verdict"
            raise UsageError(message, advice=f"there are {', '.join(VERDICTS)}")
    since = None
    if older_than is not None:
        since = before(datetime.now(UTC), span("--older-than", older_than))
    return Selection(
        paths=tuple(one for path in paths or () for one in spellings(os.fsencode(path))),
        kdevs=frozenset(map(_kdev, devices or ())),
        unproved_since=since,
        verdicts=frozenset(map(AuditVerdict, only or ())),
    )


def _kdev(word: str) -> int:
    try:
        return parse_kdev(word)
    except ValueError as error:
        message = f"--dev {word}: {error}"
        raise UsageError(message, advice="write it as mountinfo and ls do: 254:0") from error


# For people


def _counts(findings: Iterable[AuditFinding]) -> dict[str, tuple[int, int]]:
    """For each verdict, the number of live mappings, and of those that were stale before."""
    counts = Counter((str(one.verdict), one.mapping.stale) for one in findings)
    return {
        verdict: (counts[verdict, False], counts[verdict, True])
        for verdict in VERDICTS
        if counts[verdict, False] or counts[verdict, True]
    }


def _print_counts(report: AuditReport) -> None:
    rows = [
        (verdict, f"{live:,}" if live else "", f"{marked:,}" if marked else "")
        for verdict, (live, marked) in _counts(report.findings).items()
    ]
    render.print_table(("verdict", "mappings>", "marked stale>"), rows)


def _print_findings(findings: list[AuditFinding], *, evidence: bool) -> None:
    if not findings:
        return
    findings = sorted(findings, key=lambda one: VERDICTS.index(one.verdict))
    if evidence:
        for finding in findings:
            typer.echo()
            render.print_line(_evidence(finding))
        return
    typer.echo()
    render.print_table(
        ("verdict", "dev>", "ino>", "last proved", "path"),
        [
            (
                str(one.verdict),
                format_kdev(one.mapping.identity.kdev),
                str(one.mapping.identity.ino),
                render.time_cell(one.mapping.validated_at) or "never",
                _path_cell(one),
            )
            for one in findings
        ],
    )


def _path_cell(finding: AuditFinding) -> str:
    mapping, evidence = finding.mapping, finding.evidence
    cell = render.in_namespace(mapping.path, mapping.mntns)
    said = []
    if evidence is not None:
        if evidence.moved_to:
            cell += f" → {render.printable(evidence.moved_to[0])}"
            if more := len(evidence.moved_to) - 1:
                said.append(f"and {render.count(more, 'other name')}")
        if evidence.reason == "symlink":
            said.append("a symbolic link is in the path")
        elif evidence.found is not None and not evidence.moved_to:
            said.append(f"now inode {evidence.found.ino}")
        elif evidence.unseen:
            said.append(f"not looked at: {evidence.unseen}")
        if evidence.note:
            said.append(evidence.note)
    elif finding.by_number:
        said.append("by number alone")
    if mapping.stale:
        said.append(f"marked {mapping.stale_reason} {render.time_cell(mapping.stale_at)}")
    return f"{cell} ({'; '.join(said)})" if said else cell


def _evidence(finding: AuditFinding) -> str:
    mapping, evidence = finding.mapping, finding.evidence
    lines = [f"{finding.verdict}  {render.in_namespace(mapping.path, mapping.mntns)}"]

    def add(title: str, text: str | None) -> None:
        if text:
            lines.append(f"    {title:9} {text}")

    for path in () if evidence is None else evidence.moved_to:
        add("moved to", render.printable(path))
    add("expected", _identity(mapping.identity) + (" (no handle)" if finding.by_number else ""))
    if evidence is not None:
        add("found", _found(evidence))
        add("changed", render.time_cell(evidence.changed_at))
        add("reason", evidence.reason)
        add("found by", evidence.source)
        add("note", evidence.note)
    add("proved", render.time_cell(mapping.validated_at) or "never")
    add("used", render.time_cell(mapping.last_used_at))
    add("seen", f"{render.time_cell(mapping.first_seen_at)}, first, by {mapping.source}")
    if mapping.stale:
        add("marked", f"{render.time_cell(mapping.stale_at)}: {mapping.stale_reason}")
    return "\n".join(lines)


def _found(evidence: Evidence) -> str:
    if evidence.found is not None:
        return _identity(evidence.found)
    return f"not looked at: {evidence.unseen}" if evidence.unseen else "nothing"


def _identity(identity: Identity) -> str:
    text = f"{format_kdev(identity.kdev)} inode {identity.ino}"
    return f"{text} handle {identity.handle}" if identity.handle else text


def _print_summary(
    done: Mended, options: AuditOptions, listed: list[AuditFinding], *, fix: bool
) -> None:
    report = done.report
    typer.echo()
    for change in done.changes:
        render.print_line(render.change_line(change))
    checked = render.count(len(report.findings), "mapping")
    line = f"{checked} checked in {report.root}: "
    line += _how_many_hold(report)
    by_number = sum(one.by_number and one.verdict == "valid" for one in report.findings)
    if by_number:
        line += f"; {by_number:,} of the valid ones by number alone, without a handle"
    if options.select.verdicts:
        line += f"; shown: {_how_many_shown(listed)}"
    render.print_line(line)
    if fix:
        wrote = "nothing to write" if done.run_id is None else f"written as run {done.run_id}"
        render.print_line(f"{render.count(len(done.changes), 'change')}, {wrote}")
    missing = sum(one.is_news and one.verdict in _NOT_THERE for one in report.findings)
    chosen = options.pid is not None or options.root is not None
    if not chosen and missing >= _MANY and 2 * missing > len(report.findings):
        render.say("most are not there: paths of a container's tasks are looked for with -t PID")


def _how_many_hold(report: AuditReport) -> str:
    said = []
    if report.lost:
        said.append("1 no longer holds" if report.lost == 1 else f"{report.lost:,} no longer hold")
    if report.unseen:
        said.append(f"{report.unseen:,} could not be checked")
        if not report.lost:
            said.append("all other live ones hold")
    return ", ".join(said) or "all live ones hold"


def _how_many_shown(listed: list[AuditFinding]) -> str:
    counts = Counter(str(one.verdict) for one in listed)
    return ", ".join(f"{counts[one]:,} {one}" for one in VERDICTS if one in counts) or "none"


# For programs


def _document(done: Mended, listed: list[AuditFinding], *, fix: bool) -> dict[str, Any]:
    report = done.report
    document: dict[str, Any] = {
        "root": report.root,
        "stored": report.stored,
        "checked": len(report.findings),
        "left_out": report.left_out,
        "stale": report.lost,
        "not_looked_at": report.unseen,
        "counts": {
            verdict: {"live": live, "marked_stale": marked}
            for verdict, (live, marked) in _counts(report.findings).items()
        },
        "scanned": report.scanned,
        "took_us": report.took_us,
        "private_copy": report.private_copy or None,
        "mappings": [_as_json(one) for one in listed],
    }
    if fix:
        document["run"] = done.run_id
        document["changes"] = [render.change_json(change) for change in done.changes]
    return document


def _as_json(finding: AuditFinding) -> dict[str, Any]:
    evidence = finding.evidence
    return {
        "verdict": finding.verdict,
        **_row(finding.mapping),
        "by_number": finding.by_number,
        "reason": evidence and evidence.reason,
        "found": evidence and evidence.found and _identity_json(evidence.found),
        "changed_at": evidence and render.json_time(evidence.changed_at),
        "moved_to": [render.json_path(path) for path in evidence.moved_to] if evidence else [],
        "found_by": evidence and evidence.source,
        "not_looked_at": (evidence and evidence.unseen) or None,
        "note": evidence.note if evidence else "",
    }


def _row(mapping: Mapping) -> dict[str, Any]:
    return {
        **render.json_fields(mapping, "id path mntns"),
        **_identity_json(mapping.identity),
        **mapping_json(mapping),
    }


def _identity_json(identity: Identity) -> dict[str, Any]:
    return {
        "dev": identity.kdev,
        "device": format_kdev(identity.kdev),
        "ino": identity.ino,
        "in_criu_log": str(identity.key),
        "handle": str(identity.handle) if identity.handle else None,
    }


_CSV_COLUMNS = (
    *("verdict", "id", "path", "dev", "device", "ino", "in_criu_log", "handle", "mntns", "source"),
    *("first_seen_at", "validated_at", "last_used_at", "stale_at", "stale_reason", "by_number"),
    *("reason", "changed_at", "found_by", "not_looked_at", "note", "moved_to"),
    *("found_device", "found_ino", "found_handle"),
)


def _print_csv(findings: list[AuditFinding]) -> None:
    rows = (_flat(_as_json(finding)) for finding in findings)
    render.print_csv(_CSV_COLUMNS, ([row[name] for name in _CSV_COLUMNS] for row in rows))


def _flat(document: dict[str, Any]) -> dict[str, Any]:
    found = document.pop("found") or {}
    names = document.pop("moved_to")
    row = {**document, "moved_to": names[0] if names else None}
    row |= {f"found_{name}": found.get(name) for name in ("device", "ino", "handle")}
    return row
