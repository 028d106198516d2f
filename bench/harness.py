"""The tools of every section: the tree, a watched process, the stopwatch, irmapdb itself.

irmapdb runs as a user runs it: a new process for each command, on one core. The harness reads the
answers of a run from its database, and compares them with the watched paths: the time of a wrong
answer is no result.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from bench import machine, tree
from bench.errors import BenchError
from bench.figures import Timing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bench.tree import Tree

__all__ = ["Bench", "Settings", "Watched"]

_HERE = Path(__file__).parent
_FULL_TREE = (10_000, 1_000_000)


class Settings(NamedTuple):
    """The options of the command line."""

    place: Path
    directories: int
    files: int
    watches: tuple[int, ...]
    entries: int
    repeats: int
    start_repeats: int
    cold: int
    """2 or 3: what goes into drop_caches."""
    core: int
    irmapdb: tuple[str, ...]
    crit: str


class Watched(NamedTuple):
    """A process and its inotify descriptor."""

    pid: int
    fd: int


class StepRow(NamedTuple):
    """The last row of the `run` table; times in microseconds."""

    freezing_us: int
    frozen_us: int
    resolve_us: int
    watches: int
    resolved: int
    scanned: int


class Bench:
    """The argument of each section. A context manager: its end removes all files but the tree."""

    def __init__(self, settings: Settings, say: Callable[[str], None]) -> None:
        self.settings = settings
        self.say = say
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        place = self.settings.place
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BenchError(f"{place}: {error.strerror}", advice="name one with --dir") from error
        if place.lstat().st_uid != os.geteuid():
            raise BenchError(f"{place} is not yours", advice="name another place with --dir")
        holder = tempfile.TemporaryDirectory(prefix="run-", dir=place)
        self._scratch = Path(self._stack.enter_context(holder))
        self._cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {self.settings.core})
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @cached_property
    def tree(self) -> Tree:
        """The tree, built when it is first asked for."""
        settings = self.settings
        told = 0

        def progress(files: int) -> None:
            nonlocal told
            if files * 10 // settings.files > told:
                told = files * 10 // settings.files
                self.say(f"building the tree: {files:,} of {settings.files:,} files")

        return tree.prepare(settings.place, settings.directories, settings.files, progress)

    @contextlib.contextmanager
    def on_every_core(self) -> Iterator[None]:
        """For the start of a server, which is not what is measured: it may use every core."""
        os.sched_setaffinity(0, self._cores)
        try:
            yield
        finally:
            os.sched_setaffinity(0, {self.settings.core})

    @property
    def every_core(self) -> tuple[str, ...]:
        """The begin of a command that may use every core."""
        return "taskset", "--cpu-list", ",".join(map(str, sorted(self._cores)))

    @property
    def full_size(self) -> bool:
        """Whether the tree has the size that the goals are for."""
        return (self.settings.directories, self.settings.files) == _FULL_TREE

    @cached_property
    def _environment(self) -> dict[str, str]:
        # For where irmapdb is not installed, but lies in this checkout.
        path = filter(None, [os.environ.get("PYTHONPATH"), str(_HERE.parent)])
        # An installed package has its bytecode.
        bytecode = {"PYTHONDONTWRITEBYTECODE": ""}
        return {**os.environ, **bytecode, "PYTHONPATH": os.pathsep.join(path)}

    @cached_property
    def crit(self) -> str | None:
        """CRIU's image tool, where there is one."""
        return shutil.which(self.settings.crit)

    def new_directory(self) -> Path:
        """An empty directory beside the tree."""
        return Path(tempfile.mkdtemp(dir=self._scratch))

    def time(self, *command: str | Path, cwd: Path | None = None) -> Timing:
        """Run a command; BenchError with its last line if its exit code is not 0.

        `cwd`: of the command and of its parent; else a directory beside the tree.
        """
        output = self._scratch / "output"
        words = [os.fspath(word) for word in command]
        core = str(self.settings.core)
        stopwatch = [sys.executable, "-I", "-S", str(_HERE / "launch.py"), core, str(output)]
        done = subprocess.run(
            [*stopwatch, *words],
            stdout=subprocess.PIPE,
            cwd=self._scratch if cwd is None else cwd,
            env=self._environment,
            check=True,
        )
        timing = Timing(**json.loads(done.stdout))
        if timing.code:
            said = output.read_text(errors="backslashreplace").splitlines()
            last = said[-1] if said else "and said nothing"
            raise BenchError(f"{' '.join(words)}: exit code {timing.code}: {last}")
        return timing

    @property
    def checkout(self) -> Path:
        """The directory that bench/ and tests/ lie in."""
        return _HERE.parent

    def output(self, *command: str | Path) -> str:
        """The stdout of a command, run on the core."""
        done = subprocess.run(
            ["taskset", "--cpu-list", str(self.settings.core), *command],
            stdout=subprocess.PIPE,
            env=self._environment,
            check=True,
            text=True,
        )
        return done.stdout

    def irmapdb(self, *arguments: str | Path) -> Timing:
        """Run irmapdb, which has to succeed."""
        return self.time(*self.settings.irmapdb, *arguments)

    def start_irmapdb(self, *arguments: str | Path) -> subprocess.Popen[bytes]:
        """Start irmapdb on the core, and do not wait for it."""
        core = str(self.settings.core)
        command = ["taskset", "--cpu-list", core, *self.settings.irmapdb, *map(str, arguments)]
        return subprocess.Popen(command, cwd=self._scratch, env=self._environment)

    @contextlib.contextmanager
    def watching(self, paths: Sequence[bytes]) -> Iterator[Watched]:
        """A process that watches these paths."""
        machine.check_watches(len(paths))
        blob = b"".join(path + b"\0" for path in paths)
        command = [sys.executable, "-I", "-S", str(_HERE / "watcher.py"), str(len(blob))]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(blob)
                process.stdin.flush()
                said = process.stdout.readline().decode().strip()
                if not said.startswith("ready "):
                    raise BenchError(f"the process to be watched: {said or 'ended'}")
                yield Watched(process.pid, int(said.split()[1]))
            finally:
                process.kill()

    def check(self, work: Path, paths: Sequence[bytes]) -> StepRow:
        """The figures of the last step in a work dir, whose answers have to be these paths."""
        try:
            figures, answers = _last_run(work / "irmap.db")
        except (sqlite3.Error, TypeError) as error:
            raise BenchError(f"{work / 'irmap.db'}: no run in it ({error})") from error
        if answers != set(paths):
            wrong = len(set(paths) - answers)
            raise BenchError(f"{work}: {wrong} of {len(paths)} watches without their right path")
        return figures

    @cached_property
    def why_not_cold(self) -> str | None:
        """Why dentries cannot be made cold here."""
        return machine.why_not_cold(self.settings.place)

    def make_cold(self) -> None:
        """Drop the cached names of all files that no process has open."""
        machine.drop_caches(self.settings.cold)

    @staticmethod
    def make_warm(paths: Sequence[bytes]) -> None:
        """Make the kernel cache these names."""
        for path in paths:
            os.stat(path, follow_symlinks=False)


def _last_run(path: Path) -> tuple[StepRow, set[bytes]]:
    columns = ", ".join(StepRow._fields)
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        run_id, *figures = database.execute(
            f"SELECT id, {columns} FROM run ORDER BY id DESC LIMIT 1"  # noqa: S608 our own names
        ).fetchone()
        paths = "SELECT CAST(path AS BLOB) FROM watch WHERE run_id = ?"
        return StepRow(*figures), {path for (path,) in database.execute(paths, (run_id,))}
