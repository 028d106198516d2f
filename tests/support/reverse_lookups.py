"""The tests of every reverse lookup: btrfs, and xfs with parent pointers."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from irmapdb.checkpoint import steps
from irmapdb.checkpoint.steps import StepOptions
from irmapdb.config import Config
from irmapdb.kernel.proof import disproof
from irmapdb.resolve import engine
from tests.support.every_name import ask, identity_of
from tests.support.filesystems import drop_caches
from tests.support.kernel_paths import open_descriptors

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from irmapdb.kernel.root import Root
    from irmapdb.model import Source
    from tests.support.every_name import Names
    from tests.support.watcher import Watcher

__all__ = ["assert_needs_no_scan", "assert_proved_at_once", "assert_threads_end"]


def assert_proved_at_once(
    root: Root, resolver: engine.Resolver, source: Source, wanted: Names, linked: Path
) -> None:
    """Every answer passes the proof; `linked` has two names, and both are found."""
    drop_caches()
    outcome = engine.resolve(
        wanted, [resolver], lambda identity, path: disproof(root, identity, path)
    )
    assert not outcome.disproved
    assert not outcome.unresolved
    found = outcome.resolved[identity_of(linked)]
    assert found.source is source
    assert {found.path, *found.other_paths} == wanted[found.identity]
    assert len(found.other_paths) == 1


def assert_needs_no_scan(watcher: Watcher, directory: Path, images: Path, source: Source) -> None:
    """A cold watch on `file` of the directory, with the other name `hard`, needs no scan."""
    file = os.fsencode(directory / "file")
    watched = watcher.add_inotify(file)
    drop_caches()
    options = StepOptions(watcher.pid, images_dir=images, config=Config(hints=()))
    report = steps.pre_dump(options)
    assert report.stats.sources == {source: 1}
    assert report.stats.scanned == 0
    (row,) = report.watches
    assert row.watch.wd == watched.wd
    assert row.path in {file, os.fsencode(directory / "hard")}


def assert_threads_end(resolver: Callable[[], engine.Resolver], truth: Names) -> None:
    """A large batch is asked in threads, which end: also if the caller stops early."""
    drop_caches()
    before = open_descriptors(), threading.active_count()
    names, notes = ask(resolver(), truth)
    assert names == truth
    assert not notes
    asked = resolver()(truth.keys())
    next(iter(asked))
    asked.close()
    assert (open_descriptors(), threading.active_count()) == before
