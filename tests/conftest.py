"""Fixtures for every test: what makes the real thing, and takes it down again."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.support import packages
from tests.support.area import MountArea
from tests.support.features import require
from tests.support.heap import lift_heap_limit
from tests.support.watcher import Watcher

if TYPE_CHECKING:
    from collections.abc import Iterator

_MARKED = ("kernel", "criu")
_HERE = Path(__file__).parent

# How long an example may take depends on what else the machine does.
settings.register_profile("irmapdb", deadline=None)
settings.load_profile("irmapdb")


def pytest_configure() -> None:
    """A shell's background job ignores Ctrl-C, and so would every program that it starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test is marked with the directory it lies in, and as `kernel` where it mounts."""
    for item in items:
        room = item.path.relative_to(_HERE).parts[0]
        if room in _MARKED:
            item.add_marker(room)
        elif "area" in getattr(item, "fixturenames", ()):
            item.add_marker("kernel")


@pytest.fixture(scope="session")
def rig() -> Path:
    """The directory with criu, crit, mkfs.xfs and xfs_db of a newer Debian."""
    try:
        return packages.rig()
    except packages.RigError as error:
        require(condition=False, what=f"CRIU and xfsprogs from packages: {error}")
        raise


@pytest.fixture(scope="session")
def crit(rig: Path) -> Path:
    """CRIU's image tool: a peer for what is read and written here."""
    return rig / "crit"


@pytest.fixture
def area(tmp_path: Path) -> Iterator[MountArea]:
    """Where real filesystems are made and mounted for this test."""
    path = tmp_path / "area"
    path.mkdir()
    with MountArea(path) as made:
        yield made


@pytest.fixture
def watcher() -> Iterator[Watcher]:
    """A process that watches what it is told to."""
    with Watcher() as made:
        yield made


@pytest.fixture(autouse=True)
def _heap() -> Iterator[None]:
    yield
    lift_heap_limit()
