"""Fixtures for every test: they make real filesystems and processes, and remove them."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.support import packages
from tests.support.area import MountArea
from tests.support.caches import has_own_mounts
from tests.support.ending import interrupt_on_sigterm
from tests.support.features import require
from tests.support.heap import lift_heap_limit
from tests.support.own_mounts import give_disk, unshare_mounts
from tests.support.program_starts import starts_program
from tests.support.watcher import Watcher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_MARKED = ("kernel", "criu")
_HERE = Path(__file__).parent

# For a path on such an overlay the whole machine must have no filesystem that irmapdb cannot see,
# and those of another worker are such.
_ALONE = ("overlay-two-filesystems", "overlay-two-subvolumes")

# The time of an example depends on the other work of the machine.
settings.register_profile("irmapdb", deadline=None)
settings.register_profile("fast", settings.get_profile("irmapdb"), max_examples=10)
settings.load_profile("irmapdb")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--phase",
        choices=("together", "alone"),
        help="run only the tests that may run beside others, or only those marked `alone`",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Ctrl-C and SIGTERM work; the process that runs tests gets a mount namespace of its own."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell's background job ignores it, and so would every program that it starts.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupt_on_sigterm()
    if os.geteuid() == 0 and (hasattr(config, "workerinput") or not config.option.numprocesses):
        with suppress(PermissionError):  # root in a container may not
            unshare_mounts()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark a test by its directory, as `kernel` if it mounts, `slow` if it starts a program."""
    for item in items:
        if any(kind in item.name for kind in _ALONE):
            item.add_marker("alone")
        directory = item.path.relative_to(_HERE).parts[0]
        if directory in _MARKED:
            item.add_marker(directory)
        elif "area" in getattr(item, "fixturenames", ()):
            item.add_marker("kernel")
        elif isinstance(item, pytest.Function) and starts_program(item.obj, *_fixtures(item)):
            item.add_marker("slow")
    _choose(items, config)


def _fixtures(item: pytest.Function) -> Iterator[Callable[..., object]]:
    """The functions of its fixtures; those of a session are called once, for all tests."""
    for definitions in item._fixtureinfo.name2fixturedefs.values():
        for definition in definitions:
            if definition.scope != "session":
                yield definition.func


def _choose(items: list[pytest.Item], config: pytest.Config) -> None:
    phase = config.option.phase
    if phase is None:
        return
    chosen, others = [], []
    for item in items:
        is_alone = item.get_closest_marker("alone") is not None
        (chosen if is_alone == (phase == "alone") else others).append(item)
    config.hook.pytest_deselected(items=others)
    items[:] = chosen


@pytest.fixture(scope="session", autouse=True)
def _disk(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The tests of this process write to a filesystem of their own."""
    if has_own_mounts():
        give_disk(tmp_path_factory.getbasetemp())


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
    """CRIU's image tool, for comparison with the images of irmapdb."""
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
    """A process that sets the watches that the test asks for."""
    with Watcher() as made:
        yield made


@pytest.fixture(autouse=True)
def _cwd() -> Iterator[None]:
    """A test that changes the cwd leaves it to none after it: its directory is removed."""
    yield
    os.chdir(_HERE.parent)


@pytest.fixture(autouse=True)
def _heap() -> Iterator[None]:
    yield
    lift_heap_limit()
