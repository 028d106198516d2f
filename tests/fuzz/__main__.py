"""`python -m tests.fuzz`: long runs, and inputs that failed once."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.fuzz import corpus
from tests.fuzz.campaign import engine, fuzz
from tests.fuzz.registry import BY_NAME

_DIRECTORY = Path(".fuzz")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make fuzz ARGS=…", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(BY_NAME))
    parser.add_argument("--runs", type=int, default=0, help="inputs a target")
    parser.add_argument("--seconds", type=int, default=0, help="time a target (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="the same inputs again")
    parser.add_argument("--engine", choices=("atheris", "hypothesis"), default=engine())
    parser.add_argument("--directory", type=Path, default=_DIRECTORY, help="corpus and crashes")
    parser.add_argument("--replay", type=Path, nargs="+", help="run these inputs of one target")
    parser.add_argument("--keep", type=Path, nargs="+", help="add inputs to tests/data/fuzz")
    given = parser.parse_args()
    if unknown := [name for name in given.targets if name not in BY_NAME]:
        parser.error(f"no target {', '.join(unknown)}; there are {', '.join(BY_NAME)}")
    if (given.replay or given.keep) and len(given.targets) != 1:
        parser.error("name one target")
    if not given.runs and not given.seconds:
        given.seconds = 60
    return given


def main() -> int:
    """Exit code 1 where an input failed."""
    given = _arguments()
    if given.keep:
        new = corpus.add(given.targets[0], [path.read_bytes() for path in given.keep])
        _say(f"{given.targets[0]}: {new} new inputs")
        return 0
    if given.replay:
        for path in given.replay:
            BY_NAME[given.targets[0]].run(path.read_bytes())
            _say(f"{path}: no fault")
        return 0
    failed = False
    for name in given.targets or BY_NAME:
        found = fuzz(
            name,
            given.directory.absolute(),
            runs=given.runs,
            seconds=given.seconds,
            seed=given.seed,
            by=given.engine,
        )
        line = f"{name}: {found.runs:,} runs in {found.took_s:.0f} s, {found.features:,} features"
        if found.ok:
            _say(f"{line}, no fault")
            continue
        failed = True
        _say(f"{found.log[-6000:]}\n{line}")
        _say(f"FAULT: {found.crash or f'the worker ended with {found.exit_code}'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
