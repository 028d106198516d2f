"""Compares check's prediction of a dump with the result of real CRIU."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from irmapdb.checkpoint import steps
from irmapdb.criu.check.dump import DumpCheck, DumpCheckOptions, check_dump
from irmapdb.criu.check.verdicts import CriuOutcome, Prediction
from irmapdb.criu.check.version import parse_version
from irmapdb.image.fsnotify import decode_files_img

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from irmapdb.criu.check.verdicts import WatchVerdict
    from tests.support.criu import Criu, CriuRun
    from tests.support.watcher import Watched, Watcher

__all__ = ["TRIES", "Bench", "Compared"]

TRIES = 6
"""The number of repeats after another process may have dropped the caches."""


class Compared(NamedTuple):
    """A prediction, and the result of CRIU."""

    verdict: WatchVerdict
    predicted: CriuOutcome
    did: CriuOutcome
    path: bytes | None
    """The predicted path."""
    run: CriuRun
    prediction: Prediction


class Bench:
    """Predicts and dumps, with one pair of directories for each dump."""

    def __init__(self, criu: Criu, target: Watcher, directory: Path) -> None:
        self.criu = criu
        self.target = target
        self.directory = directory
        self.version = parse_version(criu.version)
        self._dumps = 0

    def pre_dump(self) -> bytes:
        """The irmap-cache that pre-dump writes."""
        work = self.new(None)
        steps.pre_dump(steps.StepOptions(self.target.pid, images_dir=work))
        return (work / "irmap-cache").read_bytes()

    def new(self, cache: bytes | None) -> Path:
        """A directory for a dump, with this irmap-cache in it."""
        self._dumps += 1
        work = self.directory / f"dump-{self._dumps}"
        work.mkdir()
        if cache is not None:
            (work / "irmap-cache").write_bytes(cache)
        return work

    def check(
        self, work: Path, *, forced: bool = False, scan_paths: Sequence[Path] = ()
    ) -> DumpCheck:
        return check_dump(
            DumpCheckOptions(
                self.target.pid,
                images_dir=work,
                version=self.version,
                force_irmap=forced,
                scan_paths=tuple(map(os.fsencode, scan_paths)),
            )
        )

    def compare(
        self,
        watched: Watched,
        *,
        prepare: Callable[[], object] = lambda: None,
        cache: bytes | None = None,
        forced: bool = False,
        scan_paths: Sequence[Path] = (),
    ) -> Compared:
        """The prediction and CRIU's outcome for the only watch of the target.

        Any process can drop caches at any time; if the prediction after the dump differs from the
        one before, both are repeated.
        """
        for _ in range(TRIES):
            work = self.new(cache)
            prepare()
            (before,) = self.check(work, forced=forced, scan_paths=scan_paths).watches
            run = self.criu.dump(self.target.pid, work, force_irmap=forced, scan_paths=scan_paths)
            did = self.outcome(run, watched)
            (after,) = self.check(work, forced=forced, scan_paths=scan_paths).watches
            said = before.prediction
            if said.outcome is did or said.outcome is after.prediction.outcome:
                break
        return Compared(said.verdict, said.outcome, did, said.path, run, said)

    def outcome(self, run: CriuRun, watched: Watched) -> CriuOutcome:
        """CRIU's result for the only watch: a path is right if the watch reports its events."""
        if not run.ok:
            return CriuOutcome.FAILS
        data = (run.images / "files.img").read_bytes()
        ((dumped,),) = (file.watches for file in decode_files_img(data, "files.img"))
        if dumped.path is None:
            return CriuOutcome.NO_PATH
        path = Path(os.fsdecode(dumped.path))
        return CriuOutcome.PATH if self.leads_to(path, watched) else CriuOutcome.WRONG_PATH

    def leads_to(self, path: Path, watched: Watched) -> bool:
        """Whether the watch reports the events of the file at the path.

        It must be one for IN_OPEN and, of a symbolic link, for IN_ATTRIB.
        """

        def touch() -> None:
            if path.is_symlink():
                os.utime(path, follow_symlinks=False)
            else:
                os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY))

        return os.path.lexists(path) and self.target.hears(watched, touch)
