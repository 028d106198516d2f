"""Where a scenario of `test_scenarios.py` runs: a task, a directory, and two ways to look at it.

The task is in the host's mount namespace, or in one of its own with a small root: the filesystem
under test, into which Python is bound. CRIU takes those binds as external mounts, as runc has it.

Sources: criu(8) (`--external`, `--root`); criu.org/External_bind_mounts.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.runc import fill_rootfs, python_homes
from tests.support.watcher import Watcher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.area import MountArea
    from tests.support.criu import Criu, CriuRun

__all__ = ["FILESYSTEMS", "NAMESPACES", "Outcome", "Scene", "Stage", "play", "stage"]

FILESYSTEMS = ("ext4", "overlay")
NAMESPACES = ("host", "own")

_SUPPORT = Path(__file__).parent
_DIRS = 64


@dataclass(frozen=True)
class Stage:
    """A mounted filesystem with a directory for each play."""

    root: Path
    """The mount point; the root of a task in a namespace of its own."""
    namespace: str

    @contextmanager
    def task(self, pipes: Path) -> Iterator[Watcher]:
        """A task that CRIU can dump."""
        pipes.mkdir(parents=True)
        if self.namespace == "host":
            with Watcher(pipes=pipes, cwd="/") as made:
                yield made
            return
        binds = self.binds(pipes)
        for path in binds:
            Path(f"{self.root}{path}").mkdir(parents=True, exist_ok=True)
        with Watcher(pipes=pipes, unshare={"mount"}, rootfs=self.root, binds=binds) as made:
            for fd in (0, 1, 2):
                made.close_fd(fd)  # its last ties to the mounts outside
            made.exec()
            made.mount("proc", "/proc", "proc")  # CRIU's restore wants one
            yield made

    def binds(self, pipes: Path) -> list[Path]:
        return [*python_homes(), _SUPPORT, pipes]

    def seen(self, directory: Path) -> bytes:
        """The same directory as the task calls it."""
        if self.namespace == "host":
            return os.fsencode(directory)
        return b"/" + os.fsencode(directory.relative_to(self.root))

    def dump_options(self, pipes: Path) -> list[str]:
        if self.namespace == "host":
            return []
        return [f"--external=mnt[{path}]:bind{n}" for n, path in enumerate(self.binds(pipes))]

    def restore_options(self, pipes: Path) -> list[str]:
        if self.namespace == "host":
            return []
        binds = [f"--external=mnt[bind{n}]:{path}" for n, path in enumerate(self.binds(pipes))]
        return [f"--root={self.root}", *binds]


def _fill(directory: Path) -> None:
    """Make the files that the scenarios need."""
    for name in ("file", "one", "two", "other"):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(b"content")
    for number in range(_DIRS):
        (directory / "dirs" / f"{number:02}").mkdir(parents=True)
    (directory / "going" / "below").mkdir(parents=True)
    (directory / "mountpoint").mkdir()
    (directory / "link").symlink_to("file")


@contextmanager
def stage(filesystem: str, namespace: str, area: MountArea) -> Iterator[Stage]:
    """An ext4, or an overlay whose lower layer has everything; `alone` and `helped` are alike."""
    base = area.ext4("base").mountpoint
    layer = base / "lower" if filesystem == "overlay" else base
    if namespace == "own":
        fill_rootfs(layer)
        (layer / "proc").mkdir()
    for play_name in ("alone", "helped"):
        _fill(layer / play_name)
    root = base
    if filesystem == "overlay":
        root = area.overlay(lower=layer, upper_base=base).mountpoint
    yield Stage(root, namespace)


@dataclass
class Scene:
    """The arguments of a scenario: the task, and its directory by both names."""

    task: Watcher
    directory: Path
    """For the driver, which is in the host's namespace."""
    base: bytes
    """For the task."""
    images: Path
    """CRIU's images and work directory."""
    dump_options: list[str] = field(default_factory=list)
    force_irmap: bool = False
    env: dict[str, str] = field(default_factory=dict)

    def path(self, name: str) -> bytes:
        """A name in the directory, for the task."""
        return self.base + b"/" + name.encode()


@dataclass(frozen=True)
class Outcome:
    """The result of one run of a scenario."""

    dump: CriuRun
    restore: CriuRun | None
    heard: dict[str, bool]
    """The events that the task got after the restore."""

    @property
    def passed(self) -> set[str]:
        """The steps that passed."""
        done = {"dump"} if self.dump.ok else set()
        if self.restore is not None and self.restore.ok:
            done.add("restore")
        return done | {name for name, right in self.heard.items() if right}

    @property
    def failed(self) -> set[str]:
        """The steps that failed."""
        if not self.dump.ok:
            return {"dump"}
        if self.restore is None or not self.restore.ok:
            return {"restore"}
        return {name for name, right in self.heard.items() if not right}

    def __str__(self) -> str:
        return f"failed: {sorted(self.failed)} {self.dump!r} {self.restore!r}"


def _pin(directory: Path, stack: ExitStack) -> None:
    """Keep all names below in the kernel's cache, also if another process drops caches."""
    for path in (directory, *directory.rglob("*")):
        stack.callback(os.close, os.open(path, os.O_PATH | os.O_NOFOLLOW))


def play(
    scenario: Callable[[Scene], Iterator[dict[str, bool]]],
    where: Stage,
    criu: Criu,
    directory: Path,
    hook: Path | None,
) -> Outcome:
    """Set up, dump, restore, and listen; with the hook as the action script, or without."""
    name = "alone" if hook is None else "helped"
    pipes, images = directory / f"pipes-{name}", directory / f"images-{name}"
    with ExitStack() as stack:
        task = stack.enter_context(where.task(pipes))
        criu_view = Scene(task, where.root / name, where.seen(where.root / name), images)
        steps = scenario(criu_view)
        next(steps)
        pinned = stack.enter_context(ExitStack())
        _pin(where.root / name, pinned)
        dump = criu.dump(
            task.pid,
            images,
            leave_running=False,
            force_irmap=criu_view.force_irmap,
            action_script=hook,
            options=[*where.dump_options(pipes), *criu_view.dump_options],
            env=criu_view.env,
        )
        pinned.close()
        if not dump.ok:
            return Outcome(dump, None, {})
        restore = criu.restore(
            task, images, action_script=hook, options=where.restore_options(pipes)
        )
        heard = next(steps) if restore.ok else {}
        return Outcome(dump, restore, heard)
