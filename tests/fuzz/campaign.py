"""Fuzz one target: start the worker, and read its result."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from tests.fuzz.scratch import PARENT, scratch_parent

__all__ = ["Result", "engine", "fuzz"]

_CHECKOUT = Path(__file__).parent.parent.parent
_DONE = re.compile(r"^Done (\d+) runs in (\d+) second", re.MULTILINE)
_SO_FAR = re.compile(r"^#(\d+)\t", re.MULTILINE)
_CRASH = re.compile(r"Test unit written to (\S+)")
_COVERAGE = re.compile(r" cov: (\d+) ft: (\d+) corp: (\d+)/")


class Result(NamedTuple):
    """The result of one campaign."""

    name: str
    runs: int
    took_s: float
    features: int
    """libFuzzer's count of the code that the inputs reached; 0 with hypothesis."""
    crash: Path | None
    """The input that failed."""
    log: str
    exit_code: int

    @property
    def ok(self) -> bool:
        return self.exit_code == 0 and self.crash is None and self.runs > 0


def engine() -> str:
    """atheris where it is installed, else hypothesis."""
    return "atheris" if importlib.util.find_spec("atheris") else "hypothesis"


def fuzz(
    name: str,
    directory: Path,
    *,
    runs: int = 0,
    seconds: int = 0,
    seed: int = 0,
    by: str | None = None,
) -> Result:
    """Run a target so many times, or so long; crashes are kept below `directory`."""
    command = [sys.executable, "-m", "tests.fuzz.worker", by or engine(), name, str(directory)]
    start = time.monotonic()
    with scratch_parent() as scratch:
        done = subprocess.run(
            [*command, str(runs), str(seconds), str(seed)],
            cwd=_CHECKOUT,
            env={**os.environ, "PYTHONWARNINGS": "ignore", PARENT: scratch},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
    took_s = time.monotonic() - start
    log = done.stdout.decode(errors="replace")
    count, crash = _read(log)
    features = max((int(found[2]) for found in _COVERAGE.finditer(log)), default=0)
    return Result(name, count, took_s, features, crash, log, done.returncode)


def _read(log: str) -> tuple[int, Path | None]:
    told = re.findall(r"^RESULT (.*)$", log, re.MULTILINE)
    if told:
        found = json.loads(told[-1])
        return found["runs"], Path(found["crash"]) if found["crash"] else None
    done, crash = _DONE.search(log), _CRASH.search(log)
    # A run that was ended from outside has its last report.
    so_far = max((int(found[1]) for found in _SO_FAR.finditer(log)), default=0)
    return int(done[1]) if done else so_far, Path(crash[1]) if crash else None
