"""Implements `irmapdb check`: predicts a dump or a restore."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from irmapdb.commands import render
from irmapdb.commands.exit import end_with_findings
from irmapdb.commands.findings import Finding, listed, print_findings
from irmapdb.commands.input_file import regular_input
from irmapdb.commands.log import start_log
from irmapdb.commands.options import (
    AllRows,
    AsJson,
    ConfigFile,
    ContainerName,
    CriuWorkDir,
    LogFile,
    PrevImagesDir,
    ScanPaths,
    Verbose,
    flag,
    path_option,
    root_task,
    tree_option,
    value_option,
)
from irmapdb.commands.progress import Progress
from irmapdb.commands.restore_rows import check_before_restore
from irmapdb.commands.watch_rows import (
    COLUMNS,
    denied_json,
    mark_json,
    say_denied,
    watch_cells,
    watch_json,
)
from irmapdb.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from irmapdb.criu.check.dump import DumpCheck, DumpCheckOptions, MarkCheck, WatchCheck

__all__ = ["check"]


def check(
    pid: Annotated[
        int | None,
        tree_option("Before a dump: the root task of the tree, it and all its descendants."),
    ] = None,
    container: ContainerName = None,
    every: Annotated[
        bool, flag("--all", "Before dumps: check every container of this machine.")
    ] = False,
    services: Annotated[
        bool, flag("--services", "With --all: check also the host's services that watch a file.")
    ] = False,
    images: Annotated[
        Path | None,
        path_option(
            "--images",
            metavar="ARCHIVE",
            text="Before a restore: the images dir of a dump, or the archive of a checkpoint. "
            "`-` is stdin.",
        ),
    ] = None,
    root: Annotated[
        Path | None,
        path_option(
            metavar="PATH",
            text="With --images: the root to restore into.  [default: /; for the checkpoint of a "
            "container engine, the image of the container]",
        ),
    ] = None,
    images_dir: Annotated[
        Path | None,
        path_option(
            "-D",
            "--images-dir",
            metavar="DIR",
            text="With -t: directory of the image files.  [default: .]",
        ),
    ] = None,
    work_dir: CriuWorkDir = None,
    prev_images_dir: PrevImagesDir = None,
    force_irmap: Annotated[
        bool, flag("--force-irmap", "Predict a dump with --force-irmap.")
    ] = False,
    irmap_scan_path: ScanPaths = None,
    criu_version: Annotated[
        str | None, value_option("VERSION", "4.1, 4.2, 4.3 …  [default: from criu --version]")
    ] = None,
    hook: Annotated[
        bool,
        flag("--hook", "Predict a dump in which CRIU calls the hook, which writes irmap-cache."),
    ] = False,
    no_hook: Annotated[
        bool, flag("--no-hook", "With --all or --container: predict the dump without the hook.")
    ] = False,
    config: ConfigFile = None,
    all_rows: AllRows = False,
    as_json: AsJson = False,
    verbose: Verbose = 0,
    log_file: LogFile = None,
) -> None:
    """Predict for each watch whether CRIU can dump or restore it.

    Give check the options that you will give to CRIU, also those of CRIU's configuration files.
    Each watch gets a verdict:

    - path: CRIU finds the path itself, and records it.
    - cache: CRIU takes the path from irmap-cache, and records it.
    - walk: CRIU walks the filesystem in the freeze, finds the path, and records it.
    - no-path: CRIU records no path. A restore works on this filesystem only.
    - no-restore: CRIU records no path, and no restore sets the watch again.
    - symlink: The watch is on a symbolic link. A restore sets it on the target of the link.
    - options: The dump fails with these options. It passes with others, which irmapdb names.
    - wrong-path: CRIU records the path of another file.
    - fails: The whole dump fails on this watch.
    - unknown: irmapdb could not predict it.

    With --all, check predicts a dump of every container of this machine into a new directory. It
    prints one line for each container, with the worst reason, and the advice below. If the hook is
    installed for the engine of a container, the prediction is for a dump with the hook. With --hook
    every prediction is for a dump with the hook, and with --no-hook none is.

    With --container and none of -D, -W and --prev-images-dir, check predicts the dump by the engine
    of the container, as --all does: into a new directory, and with the hook if it is installed for
    the engine.

    With --images, check predicts a restore. It reads an images dir, or the archive of podman, CRI-O
    or containerd (tar, gzip, zstd), and prints the source of each watched path: the root,
    rootfs-diff.tar, the content of a tmpfs, a volume, or a bind mount. The source of a bind mount
    must be on this machine. With --root PATH, check looks up the paths of the root below PATH.

    check writes nothing and stops no task.

    Exits with 3 if a watch would be lost, or restored on another file.

    Examples:
        irmapdb check -t 4711 -W work

        irmapdb check -t 4711 -D img --force-irmap --irmap-scan-path /srv --criu-version 4.3

        irmapdb check --container web

        irmapdb check --all --json | jq '.containers[] | select(.fails) | .advice'

        irmapdb check --images checkpoint.tar.zst

        irmapdb check --images img --root /var/lib/machines/web

    """
    subjects = {"-t": pid, "--container": container, "--all": every, "--images": images}
    _refuse_unused(
        subjects,
        {
            "-D": images_dir,
            "-W": work_dir,
            "--prev-images-dir": prev_images_dir,
            "-o": log_file,
            "--force-irmap": force_irmap,
            "--irmap-scan-path": irmap_scan_path,
            "--criu-version": criu_version,
            "--config": config,
            "--hook": hook,
            "--no-hook": no_hook,
            "--all-rows": all_rows,
            "--services": services,
            "--root": root,
        },
    )
    if images is not None:
        start_log(verbose, None, Path(), ())
        check_before_restore(regular_input(images), root, as_json=as_json, all_rows=all_rows)
        return
    from irmapdb.config import load_config
    from irmapdb.criu.check.version import parse_version

    version = None if criu_version is None else parse_version(criu_version)
    scan_paths = tuple(map(os.fsencode, irmap_scan_path or ()))
    uses_hook = _whether(hook, no_hook)
    of_engine = container is not None and not (images_dir or work_dir or prev_images_dir)
    if every or of_engine:
        from irmapdb.commands import check_all
        from irmapdb.node.check_all import NodeCheckOptions, dump_by_engine
        from irmapdb.node.container_info import find_container

        start_log(verbose, log_file, Path(), (config,))
        asked = NodeCheckOptions(version, force_irmap, scan_paths, load_config(config))
        asked = asked._replace(hook=uses_hook, services=services)
        if container is None:
            check_all.run(asked, as_json=as_json)
        else:
            by_engine = dump_by_engine(find_container(container), asked)
            _check_dump(by_engine, as_json=as_json, all_rows=all_rows)
        return
    from irmapdb.criu.check.dump import DumpCheckOptions

    start_log(verbose, log_file, work_dir or images_dir or Path(), (config,))
    options = DumpCheckOptions(
        root_task(pid, container, "check"),
        images_dir or Path(),
        work_dir,
        prev_images_dir,
        version,
        force_irmap,
        scan_paths,
        load_config(config),
        hook,
    )
    _check_dump(options, as_json=as_json, all_rows=all_rows)


_OF_CRIU = {"--force-irmap", "--irmap-scan-path", "--criu-version", "--config", "--hook"}
_OF_DUMP = {"-D", "-W", "--prev-images-dir", "-o", "--all-rows", *_OF_CRIU}
_USED = {
    "-t": _OF_DUMP,
    "--container": {"--no-hook", *_OF_DUMP},
    "--all": {"--services", "--no-hook", *_OF_CRIU},
    "--images": {"--root", "--all-rows"},
}
"""The options that have an effect, by the option that says what is checked."""


def _refuse_unused(subjects: Mapping[str, object], options: Mapping[str, object]) -> None:
    # Refuse several subjects, and an option that would have no effect.
    given = [option for option, value in subjects.items() if value not in {None, False}]
    if len(given) != 1:
        message = "check needs one of -t PID, --container NAME, --all and --images ARCHIVE"
        raise UsageError(message, advice="--images before a restore, the others before a dump")
    subject = given[0]
    for option, value in options.items():
        if value and option not in _USED[subject]:
            raise UsageError(f"{option} beside {subject}", advice=_advice_on(option, subject))


def _advice_on(option: str, subject: str) -> str:
    if subject == "--images":
        return "it is for a dump that is yet to be made: use -t"
    if option == "--root":
        return "it is for a restore: use --images"
    if option == "--no-hook":
        return "it goes with --all or --container"
    if option == "--services":
        return "it goes with --all"
    return "check one container, with -t or --container"


def _whether(hook: bool, no_hook: bool) -> bool | None:
    if hook and no_hook:
        message = "--hook beside --no-hook"
        raise UsageError(message, advice="give one of them, or none: then as it is installed")
    return True if hook else False if no_hook else None


def _check_dump(options: DumpCheckOptions, *, as_json: bool, all_rows: bool) -> None:
    from irmapdb.criu.check.dump import check_dump
    from irmapdb.criu.usable import unusable_notes

    with Progress() as progress:
        report = check_dump(options._replace(progress=progress.scanning))
    if options.version is None:
        report = report._replace(notes=(*unusable_notes(), *report.notes))
    if as_json:
        render.print_json(_dump_document(report))
    else:
        _print_dump(report, all_rows=all_rows)
    end_with_findings(not report.right)


def _print_dump(report: DumpCheck, *, all_rows: bool) -> None:
    for note in report.notes:  # first, because one may be about an unknown version of CRIU
        render.print_line(f"note: {note}")
    rows = [_watch_row(one) for one in listed(report.watches, all_rows=all_rows)]
    rows += [_mark_row(one) for one in listed(report.marks, all_rows=all_rows)]
    if rows:
        render.print_table((*COLUMNS, "verdict", "path"), rows)
    findings = [
        Finding(str(one.prediction.verdict), one.prediction.why, one.prediction.advice)
        for one in report.watches
    ]
    findings += [Finding("mark", one.why, one.advice) for one in report.marks]
    findings += [Finding("dump", problem.why, problem.advice) for problem in report.problems]
    print_findings(findings, all_rows=all_rows)
    say_denied(report.denied)
    render.print_line(
        _dump_summary(report, unlisted=len(report.watches) + len(report.marks) - len(rows))
    )


def _watch_row(one: WatchCheck) -> tuple[str, ...]:
    path = one.prediction.path
    shown = "-" if path is None else render.printable(path)
    return (*watch_cells(one.watch, one.comm), str(one.prediction.verdict), shown)


def _mark_row(one: MarkCheck) -> tuple[str, ...]:
    verdict = "mount" if one.right else str(one.verdict)
    return (*watch_cells(one.mark, one.comm), verdict, render.printable(one.target))


def _dump_summary(report: DumpCheck, *, unlisted: int) -> str:
    counts = Counter(str(one.prediction.verdict) for one in report.watches)
    verdicts = ", ".join(f"{number:,} {verdict}" for verdict, number in counts.most_common())
    lines = [f"{render.count(len(report.watches), 'watch', 'watches')}: {verdicts or 'nothing'}"]
    if unlisted:
        lines.append(f"({unlisted:,} more are not listed; --all-rows lists all)")
    if report.walk_us:
        from irmapdb.durations import format_estimate

        lines.append(f"walks of overlays in the freeze: about {format_estimate(report.walk_us)}")
    version = report.call.version
    if report.hook:
        cache = f"irmap-cache of the hook ({render.count(report.entries, 'entry', 'entries')})"
    elif report.cache is None:
        cache = "no irmap-cache"
    else:
        cache = f"{render.shown(report.cache)} ({render.count(report.entries, 'entry', 'entries')})"
    lines.append(f"CRIU {version} ({version.source}), {cache}: {_conclusion(report)}")
    return "\n".join(lines)


def _conclusion(report: DumpCheck) -> str:
    if report.fails:
        return "the dump fails"
    if report.right:
        return f"no watch or mark is in its way; {_NOT_LOOKED_AT}"
    watches = sum(not one.right for one in report.watches)
    marks = sum(not one.right for one in report.marks)
    lost = [render.count(watches, "watch", "watches")] if watches else []
    lost += [render.count(marks, "mark")] if marks else []
    doubts = [problem.why for problem in report.problems]
    if report.denied:
        tasks = render.count(len(report.denied), "process", "processes")
        doubts.append(f"{tasks} could not be read")
    said = "; ".join([", ".join(lost), *doubts] if lost else doubts)
    if report.uncertain or doubts:
        return f"the dump may fail or not be right: {said}"
    return f"no watch makes the dump fail, but not right: {said}; {_NOT_LOOKED_AT}"


_NOT_LOOKED_AT = "sockets, terminals and the rest of the tasks were not looked at"


def _dump_document(report: DumpCheck) -> dict[str, Any]:
    call = report.call
    return {
        "pid": call.pid,
        "criu": {"version": str(call.version), "source": call.version.source},
        "force_irmap": call.force_irmap,
        "irmap_scan_path": [render.json_path(path) for path in call.scan_paths],
        "irmap_cache": None if report.cache is None else os.fsdecode(report.cache),
        **render.json_fields(report, "hook entries right fails walk_us problems notes"),
        "watches": [_watch_document(one) for one in report.watches],
        "marks": [
            {
                **mark_json(one.mark, one.comm, one.target),
                "outcome": one.outcome.name.lower().replace("_", "-"),
                **render.json_fields(one, "why advice"),
            }
            for one in report.marks
        ],
        "denied": denied_json(report.denied),
    }


def _watch_document(one: WatchCheck) -> dict[str, Any]:
    prediction = one.prediction
    return {
        **watch_json(one.watch, one.comm),
        **render.json_fields(one, "fstype right"),
        **render.json_fields(prediction, "verdict path why advice entries walk_us"),
        "outcome": prediction.outcome.name.lower().replace("_", "-"),
    }
