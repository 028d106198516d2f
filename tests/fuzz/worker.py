"""One target in a process of its own, by atheris or by hypothesis.

`python -m tests.fuzz.worker atheris|hypothesis TARGET DIRECTORY RUNS SECONDS SEED`; `__main__.py`
starts it. The last line of stderr that begins with `RESULT ` is its result, in JSON:
`{"runs": N, "crash": FILE or null}`; after a crash in C there is none. 0: no limit; seed 0: any.

Sources: https://github.com/google/atheris, https://llvm.org/docs/LibFuzzer.html#options,
https://hypothesis.readthedocs.io.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.fuzz.target import Target

__all__ = ["LONGEST_S", "MOST_MEMORY_MIB"]

LONGEST_S = 20
"""An input that takes longer is a fault."""
MOST_MEMORY_MIB = 2048
"""A process that needs more is a fault."""


def _target(name: str) -> Target:
    found: Target = importlib.import_module("tests.fuzz.registry").BY_NAME[name]
    return found


def _inputs(target: Target) -> list[bytes]:
    kept = importlib.import_module("tests.fuzz.corpus").load(target.name)
    return [*target.seeds(), *kept]


# --- atheris ------------------------------------------------------------------------------------


def _atheris(name: str, directory: Path, runs: int, seconds: int, seed: int) -> None:
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["irmapdb"]):
        target = _target(name)
    corpus = directory / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    for one in _inputs(target):
        (corpus / hashlib.sha256(one).hexdigest()[:20]).write_bytes(one)
    words = directory / f"{name}.dict"
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words))
    crashes = directory / "crashes" / name
    crashes.mkdir(parents=True, exist_ok=True)
    options = [
        f"-runs={runs or -1}",
        f"-max_total_time={seconds}",
        f"-seed={seed}",
        f"-timeout={LONGEST_S}",
        f"-rss_limit_mb={MOST_MEMORY_MIB}",
        f"-max_len={target.largest_bytes}",
        f"-artifact_prefix={crashes}/",
        f"-dict={words}",
    ]
    atheris.Setup(["fuzz", *options, str(corpus)], target.run)
    atheris.Fuzz()


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


# --- hypothesis ---------------------------------------------------------------------------------


def _hypothesis(name: str, directory: Path, runs: int, seconds: int, seed: int) -> None:
    target = _target(name)
    limit = (MOST_MEMORY_MIB << 20,) * 2
    resource.setrlimit(resource.RLIMIT_AS, limit)
    signal.signal(signal.SIGALRM, _too_long)
    inputs = _Inputs(target)
    end = time.monotonic() + seconds if seconds else float("inf")
    total = 0
    failed = None
    while failed is None and time.monotonic() < end and (not runs or total < runs):
        batch = min(runs - total, 10_000) if runs else 10_000
        failed = inputs.run(batch, seed + total if seed else 0, end)
        total += max(inputs.count, 1)
    crash = None
    if failed is not None:
        file = directory / "crashes" / name / f"hypothesis-{hashlib.sha256(failed).hexdigest()}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(failed)
        crash = str(file)
    _tell(runs=total, crash=crash)
    sys.exit(1 if crash else 0)


def _too_long(_signal: int, _frame: object) -> None:
    message = f"an input takes longer than {LONGEST_S} s"
    raise TimeoutError(message)


class _Inputs:
    """Inputs made by hypothesis: seeds with changes, and free bytes."""

    def __init__(self, target: Target) -> None:
        strategies = importlib.import_module("hypothesis.strategies")
        self._target = target
        self._last = b""
        self.count = 0
        piece = strategies.binary(max_size=8)
        if target.words:
            piece |= strategies.sampled_from(target.words)
        change = strategies.tuples(
            strategies.integers(0, target.largest_bytes), strategies.integers(0, 8), piece
        )
        self._strategy = strategies.builds(
            _changed,
            strategies.sampled_from(_inputs(target)) | strategies.binary(max_size=256),
            strategies.lists(change, max_size=12),
        )

    def run(self, count: int, seed: int, end: float) -> bytes | None:
        """Run so many inputs; the smallest one that fails, or None."""
        hypothesis = importlib.import_module("hypothesis")
        self.count = 0

        @hypothesis.settings(
            max_examples=count,
            database=None,
            deadline=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(self._strategy)
        def one(data: bytes) -> None:
            if time.monotonic() > end:
                return
            self.count += 1
            self._last = data
            signal.alarm(LONGEST_S)
            try:
                self._target.run(data)
            finally:
                signal.alarm(0)

        test = hypothesis.seed(seed)(one) if seed else one
        try:
            test()
        except BaseException:  # noqa: BLE001 - any exception is the finding
            traceback.print_exc()
            return self._last
        return None


def _changed(data: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    for at, length, piece in changes:
        start = at % (len(data) + 1)
        data = data[:start] + piece + data[start + length :]
    return data


def _tell(**found: object) -> None:
    sys.stderr.write(f"\nRESULT {json.dumps(found)}\n")


def main() -> None:
    """Run the target named on the command line."""
    engine, name, directory, runs, seconds, seed = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    run = _atheris if engine == "atheris" else _hypothesis
    run(name, Path(directory), int(runs), int(seconds), int(seed))


if __name__ == "__main__":
    main()
