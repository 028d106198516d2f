"""The benchmark: the same work by irmapdb, by the bare kernel and by the peers found here.

`make bench`, or `python bench/run.py` with the Python of .venv; `--help` tells the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bench import machine, report
from bench.errors import BenchError
from bench.figures import Figure, Goal, Row
from bench.harness import Bench, Settings
from bench.sections import (
    archive,
    audit,
    check,
    containerd,
    criu,
    dump,
    equal,
    fleet,
    forms,
    freeze,
    hook,
    overlay,
    pre_dump,
    ps,
    reverse,
    start,
    warm,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

_MODULES = (
    start,
    forms,
    archive,
    pre_dump,
    dump,
    equal,
    hook,
    freeze,
    containerd,
    audit,
    reverse,
    overlay,
    criu,
    warm,
    check,
    ps,
    fleet,
)
SECTIONS = {section.NAME: section for section in _MODULES}

_EPILOG = """\
Everything runs on one core, turn by turn, so that ratios are fair also where times are not; an
idle machine gives both. The tree (1,000,000 empty files) stays for the next run; remove DIR when
you are done. As root, "one scan" drops the caches of the whole machine.
"""


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench", description="Measure irmapdb.", epilog=_EPILOG, allow_abbrev=False
    )
    add = parser.add_argument
    place = Path("/var/tmp/irmapdb-bench")
    add("--dir", type=Path, default=place, help="where the tree lies  [%(default)s]")
    add("--directories", type=_positive, default=10_000, metavar="N", help="[%(default)s]")
    add("--files", type=_positive, default=1_000_000, metavar="N", help="[%(default)s]")
    add(
        "--watches",
        type=_list,
        default=(1_000, 10_000, 100_000),
        metavar="N,N,…",
        help="numbers of watches  [1000,10000,100000]",
    )
    add(
        "--entries",
        type=_positive,
        default=100_000,
        metavar="N",
        help="entries of the image that is converted  [%(default)s]",
    )
    add("--repeats", type=_positive, default=5, metavar="N", help="[%(default)s]")
    add(
        "--start-repeats",
        type=_positive,
        default=10,
        metavar="N",
        help="repeats of very short commands: cold starts  [%(default)s]",
    )
    add(
        "--cold",
        type=int,
        choices=(2, 3),
        default=2,
        help="caches to drop before a scan: 2 names and inodes, 3 also the content of files  "
        "[%(default)s]",
    )
    add(
        "--core",
        type=int,
        default=machine.quietest_core(),
        help="where it runs  [%(default)s, which has the fewest interrupts of devices]",
    )
    add(
        "--only",
        action="append",
        choices=sorted(SECTIONS),
        help="this section; repeatable  [all]",
    )
    add("--json", type=Path, metavar="FILE", help="write all figures there")
    add(
        "--irmapdb",
        type=shlex.split,
        default=[sys.executable, "-m", "irmapdb"],
        metavar="COMMAND",
        help="another irmapdb to measure  [this checkout's]",
    )
    add("--crit", default="crit", metavar="COMMAND", help="CRIU's image tool  [%(default)s]")
    arguments = parser.parse_args(words)
    if arguments.files % arguments.directories:
        parser.error("--files is to be a multiple of --directories")
    if max(arguments.watches) > arguments.files:
        parser.error("more --watches than --files")
    if arguments.core not in os.sched_getaffinity(0):
        parser.error(f"--core {arguments.core}: not one that this process may use")
    return arguments


def _positive(word: str) -> int:
    number = int(word.replace(",", "").replace("_", ""))
    if number < 1:
        raise ValueError
    return number


def _list(word: str) -> tuple[int, ...]:
    return tuple(map(_positive, word.split(",")))


def main() -> None:
    """Measure, print, write."""
    arguments = _arguments(sys.argv[1:])
    settings = Settings(
        place=arguments.dir.resolve(),
        directories=arguments.directories,
        files=arguments.files,
        watches=arguments.watches,
        entries=arguments.entries,
        repeats=arguments.repeats,
        start_repeats=arguments.start_repeats,
        cold=arguments.cold,
        core=arguments.core,
        irmapdb=tuple(arguments.irmapdb),
        crit=arguments.crit,
    )
    wanted = arguments.only or list(SECTIONS)
    try:
        figures, described = _measure(settings, wanted)
        sys.stdout.write(report.tables(described, figures) + "\n")
        if arguments.json:
            shown = {**settings._asdict(), "place": str(settings.place), "sections": wanted}
            text = json.dumps(report.document(described, shown, figures), indent=2)
            arguments.json.write_text(text + "\n", encoding="utf-8")
    except (BenchError, OSError) as error:
        sys.exit(f"bench: {error}")


def _measure(settings: Settings, wanted: Sequence[str]) -> tuple[list[Figure], dict[str, object]]:
    figures: list[Figure] = []
    if {pre_dump.NAME, dump.NAME, audit.NAME} & set(wanted):
        machine.check_watches(max(settings.watches))
    with Bench(settings, _say) as bench:
        described = machine.describe(settings.place, settings.core)
        for name in wanted:
            _say(f"measuring {name}")
            for figure in SECTIONS[name].measure(bench):
                _say(f"  {_line(figure)}")
                figures.append(figure)
    return figures, described


def _line(figure: Figure) -> str:
    match figure:
        case Row():
            size = "" if figure.size is None else f", {figure.size:,}"
            return f"{figure.what}{size}: {report.seconds(figure.median)}"
        case Goal():
            return f"{figure.what}: {'ok' if figure.reached else 'missed'}"
        case _:
            return f"{figure.what}: not measured, {figure.why}"


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
