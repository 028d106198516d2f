"""Real CRIU: dump, restore, their results, and a cache image written by hand.

The process to dump is a `Watcher(pipes=…)`: a session leader with /dev/null for stdio, whose
only ties to the outside are two named pipes.

Sources: criu(8); images/fsnotify.proto, images/stats.proto, images/irmap.proto of CRIU 4.1.1 (the
field names and numbers).
"""

from __future__ import annotations

import enum
import json
import os
import struct
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.support.programs import SYSTEM_PATH, run

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from tests.support.watcher import Watched, Watcher

__all__ = ["Criu", "CriuRun", "DumpedWatch", "Verdict", "write_cache"]


class Verdict(enum.StrEnum):
    """CRIU's result for one watch."""

    PATH = "dumped with its path"
    WRONG_PATH = "dumped with the path of another file"
    NO_PATH = "dumped without a path"
    FAILS = "dump failed"


class DumpedWatch(NamedTuple):
    """A watch in CRIU's files.img."""

    kind: str
    """"inotify" or "fanotify"; only fanotify's inode marks."""
    wd: int
    """-1 for fanotify."""
    s_dev: int
    i_ino: int
    path: str | None
    """As crit prints it; only ASCII is sure to be right."""


@dataclass(frozen=True)
class CriuRun:
    """One call of CRIU that has ended."""

    action: str
    exit_code: int
    images: Path
    work: Path
    log: str

    @property
    def ok(self) -> bool:
        return self.exit_code == 0

    @property
    def errors(self) -> list[str]:
        """The lines of the log with `Error`."""
        return [line for line in self.log.splitlines() if "Error" in line]

    def __repr__(self) -> str:
        # For pytest's report of a failed assertion, where the whole log would be too much.
        shown = "\n  ".join(self.errors)
        return f"<criu {self.action}: exit code {self.exit_code}\n  {shown}>"


@dataclass(frozen=True)
class Criu:
    """CRIU and crit of one version."""

    program: Path
    crit: Path
    version: str
    """`4.2`."""
    default_config: bool = False
    """Whether CRIU reads /etc/criu/default.conf and the like of this machine."""

    def dump(
        self,
        pid: int,
        images: Path,
        *,
        work: Path | None = None,
        leave_running: bool = True,
        force_irmap: bool = False,
        scan_paths: Sequence[Path] = (),
        action_script: Path | None = None,
        options: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> CriuRun:
        """`criu dump -t PID`; with `leave_running` (-R) the task continues in every case."""
        flags = ["--tree", str(pid)]
        if leave_running:
            flags.append("--leave-running")
        if force_irmap:
            flags.append("--force-irmap")
        for path in scan_paths:
            flags += ["--irmap-scan-path", os.fspath(path)]
        return self._call("dump", images, work, action_script, [*flags, *options], env)

    def restore(
        self,
        watcher: Watcher,
        images: Path,
        *,
        work: Path | None = None,
        action_script: Path | None = None,
        options: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> CriuRun:
        """`criu restore` of a watcher that was dumped and ended; it is ours to drive again."""
        watcher.await_dumped()
        # A sibling of CRIU is a child of ours, so that we can wait for its end.
        flags = ["--restore-detached", "--restore-sibling", *options]
        done = self._call("restore", images, work, action_script, flags, env)
        if done.ok:
            watcher.restored()
        else:
            watcher.not_restored()
        return done

    def _call(
        self,
        action: str,
        images: Path,
        work: Path | None,
        action_script: Path | None,
        flags: Sequence[str],
        env: Mapping[str, str] | None,
    ) -> CriuRun:
        work = work or images
        for directory in (images, work):
            directory.mkdir(parents=True, exist_ok=True)
        command: list[Path | str] = [self.program, action, "-v4", "--log-file", f"{action}.log"]
        command += ["--images-dir", images, "--work-dir", work]
        if not self.default_config:
            command.append("--no-default-config")
        if action_script is not None:
            command += ["--action-script", action_script]
        done = subprocess.run(
            [*command, *flags],
            env={**os.environ, "PATH": SYSTEM_PATH, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        log = work / f"{action}.log"
        # An option that CRIU does not take is told before there is a log.
        text = log.read_text(errors="replace") if log.exists() else done.stderr.decode()
        return CriuRun(action, done.returncode, images, work, text)

    def show(self, image: Path) -> list[dict[str, Any]]:
        """The entries of any image, as crit decodes them."""
        return list(json.loads(run(self.crit, "decode", "-i", image))["entries"])

    def stats(self, done: CriuRun) -> dict[str, int]:
        """`stats-dump`: freezing_time, frozen_time, irmap_resolve and others, in µs."""
        return dict(self.show(done.work / "stats-dump")[0]["dump"])

    def dumped_watches(self, images: Path) -> list[DumpedWatch]:
        """All watches of a dump, in the order of its files.img."""
        found = []
        for file in self.show(images / "files.img"):
            for watch in file.get("ify", {}).get("wd", ()):
                handle = watch["f_handle"]
                place = watch["s_dev"], watch["i_ino"], handle.get("path")
                found.append(DumpedWatch("inotify", watch["wd"], *place))
            for mark in file.get("ffy", {}).get("mark", ()):
                if "ie" in mark:
                    place = mark["s_dev"], mark["ie"]["i_ino"], mark["ie"]["f_handle"].get("path")
                    found.append(DumpedWatch("fanotify", -1, *place))
        return found

    def verdict(self, done: CriuRun, watched: Watched) -> Verdict:
        """The result of a dump of a task with this one watch of its kind."""
        if not done.ok:
            return Verdict.FAILS
        (dumped,) = (w for w in self.dumped_watches(done.images) if w.kind == watched.kind)
        if dumped.path is None:
            return Verdict.NO_PATH
        try:
            there = os.lstat(dumped.path)
        except FileNotFoundError:
            return Verdict.WRONG_PATH
        # Any hard link is right.
        right = (there.st_dev, there.st_ino) == (watched.st_dev, watched.st_ino)
        return Verdict.PATH if right else Verdict.WRONG_PATH


def _varint(number: int) -> bytes:
    low, rest = number & 0x7F, number >> 7
    return bytes((low | 0x80,)) + _varint(rest) if rest else bytes((low,))


def write_cache(work: Path, entries: Iterable[tuple[int, int, bytes]]) -> Path:
    """An `irmap-cache` of (kdev, ino, path) in a CRIU work dir, byte by byte."""
    work.mkdir(parents=True, exist_ok=True)
    image = struct.pack("<II", 0x55105940, 0x57004059)
    for kdev, ino, path in entries:
        # dev = 1 and inode = 2 are varints (wire type 0), path = 3 is bytes (wire type 2).
        entry = b"\x08" + _varint(kdev) + b"\x10" + _varint(ino)
        entry += b"\x1a" + _varint(len(path)) + path
        image += struct.pack("<I", len(entry)) + entry
    file = work / "irmap-cache"
    file.write_bytes(image)
    return file
