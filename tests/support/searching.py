"""Shared by the tests of `Search`: its store, a search in a watcher's root, and the watches."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from irmapdb.kernel.proc import fdinfo
from irmapdb.kernel.root import open_root
from irmapdb.model import Mapping, Source
from irmapdb.resolve.search import Search
from tests.support.stepping import NO_HINTS
from tests.support.watcher import Watcher

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path

    from irmapdb.config import Config
    from irmapdb.kernel.root import Root
    from irmapdb.model import Identity, InodeKey, StaleReason, WatchFile
    from irmapdb.resolve.stored import Load
    from tests.support.area import MountArea
    from tests.support.watcher import Task


class Stored:
    """The store's rows, and the keys of its calls."""

    def __init__(self) -> None:
        self.rows: dict[tuple[InodeKey, int], list[Mapping]] = {}
        self.asked: list[tuple[InodeKey, int]] = []

    def add(
        self, identity: Identity, *paths: Path, mntns: int = 0, stale: StaleReason | None = None
    ) -> None:
        """Rows of one inode."""
        for path in paths:
            found = self.rows.setdefault((identity.key, mntns), [])
            row = Mapping(
                identity,
                os.fsencode(path),
                Source.SCAN,
                revalidate=True,
                first_seen_at=datetime.now(UTC),
                stale_at=None if stale is None else datetime.now(UTC),
                stale_reason=stale,
                mntns=mntns,
                id=sum(map(len, self.rows.values())),
            )
            found.append(row)

    def __call__(self, keys: Collection[InodeKey], mntns: int = 0) -> dict[InodeKey, list[Mapping]]:
        self.asked += [(key, mntns) for key in keys]
        return {key: self.rows[key, mntns] for key in keys if (key, mntns) in self.rows}


@pytest.fixture
def stored() -> Stored:
    """Nothing, until a test adds to it."""
    return Stored()


@pytest.fixture
def make(watcher: Watcher, stored: Stored) -> Iterator[Callable[..., Search]]:
    """A Search in the root of `watcher`."""
    made: list[tuple[Search, Root]] = []

    def make(config: Config = NO_HINTS, load: Load = stored, **more: object) -> Search:
        root = open_root(watcher.pid)
        found = Search(root, load, config=config, **more)  # type: ignore[arg-type]
        made.append((found, root))
        return found

    yield make
    for found, root in made:
        found.__exit__(None, None, None)
        root.__exit__(None, None, None)


@pytest.fixture
def nested(area: MountArea) -> Iterator[tuple[Watcher, Path]]:
    """A task with a mount of its own, which no other task sees."""
    place = area.path / "place"
    place.mkdir()
    with Watcher(unshare={"mount"}) as task:
        task.mount("tmpfs", place, "tmpfs")
        task.write(place / "own")
        yield task, place


def files_of(*tasks: Task) -> list[WatchFile]:
    """The descriptors of these tasks with watches."""
    return [
        fdinfo.read_raw(task.pid, fd, kind).parse()
        for task in tasks
        for fd, kind in fdinfo.watch_descriptors(task.pid)
    ]


def mntns_of(task: Task) -> int:
    """A task's mount namespace."""
    return os.stat(f"/proc/{task.pid}/ns/mnt").st_ino
