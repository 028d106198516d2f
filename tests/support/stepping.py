"""Shared by the tests of the steps: the options of a step, its answers and the truth."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from irmapdb.checkpoint.steps import StepOptions
from irmapdb.config import Config
from irmapdb.model import WatchKind
from tests.support.notify import InotifyEvent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from irmapdb.checkpoint.transaction import StepReport
    from tests.support.watcher import Watcher

# Only the directories that a test names are walked, never the machine's own trees.
NO_HINTS = Config(hints=())


def options_for(watcher: Watcher, work: Path, *scan: Path) -> StepOptions:
    """A step on the watcher, in a work dir."""
    paths = tuple(os.fsencode(path) for path in scan)
    return StepOptions(watcher.pid, images_dir=work, scan_paths=paths, config=NO_HINTS)


def new_work_dir(tmp_path: Path) -> Path:
    """An empty one."""
    work = tmp_path / "work"
    work.mkdir()
    return work


def answers_of(report: StepReport) -> dict[tuple[WatchKind, int, int], bytes | None]:
    """The path that each watch got, by kind, wd and inode number."""
    return {
        (row.watch.kind, row.watch.wd, row.watch.identity.ino): row.path for row in report.watches
    }


def truth_of(watcher: Watcher) -> dict[tuple[WatchKind, int, int], bytes]:
    """The same as the watcher knows it."""
    return {
        (WatchKind(one.kind), one.wd if one.kind == "inotify" else -1, one.st_ino): one.path
        for one in watcher.watched
        if one.what == "inode"
    }


def events_of(watcher: Watcher, written: Path) -> list[InotifyEvent]:
    """The events that the watcher gets when a file is written."""
    watcher.events()
    written.write_text("heard")
    return [event for event in watcher.events() if isinstance(event, InotifyEvent)]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Four directories with a deeper one each, and two files in that."""
    top = tmp_path / "tree"
    for number in range(4):
        directory = top / f"d{number}" / "deep"
        directory.mkdir(parents=True)
        for name in ("a", "b"):
            (directory / name).write_text(name)
    return top


def watch_all(watcher: Watcher, tree: Path) -> None:
    """Watch all of such a tree, by both kinds."""
    for path in sorted(tree.rglob("*")):
        watcher.add_inotify(path)
    for path in sorted(tree.glob("d*/deep/a")):
        watcher.add_fanotify(path)
    watcher.add_fanotify(tree, what="mount")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """The end of the test closes everything that was opened in it."""
    with ExitStack() as opened:
        yield opened
