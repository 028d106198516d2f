"""CRIU itself, and a process that it can dump."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support import criu_versions
from tests.support.check_outcome import Bench
from tests.support.criu import Criu
from tests.support.features import require_root
from tests.support.hook import action_script
from tests.support.packages import RigError
from tests.support.warm import Warm, write_hook
from tests.support.watcher import Watcher

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _root() -> None:
    require_root()


@pytest.fixture
def criu(rig: Path) -> Criu:
    """CRIU from the packages of Debian 13: the one that must be there."""
    program = rig / "criu"
    return Criu(program, rig / "crit", criu_versions.version_of(program))


@pytest.fixture(params=criu_versions.KNOWN)
def each_criu(request: pytest.FixtureRequest, rig: Path) -> Criu:
    """CRIU of one version after the other.

    One that no suite has any more is a skip, also where the kernel's features are required: the
    suites move on. The one of `criu` is there all the same.
    """
    try:
        program = criu_versions.criu_of(request.param)
    except RigError as error:
        pytest.skip(str(error))
    return Criu(program, rig / "crit", request.param)


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Watcher]:
    """A process without ties that CRIU could not dump; watches are for the test to add."""
    with Watcher(pipes=tmp_path / "pipes", cwd="/") as made:
        yield made


@pytest.fixture
def warm(tmp_path: Path) -> Iterator[Warm]:
    """The service, for the containers of the tests."""
    service = Warm(tmp_path)
    try:
        yield service
    finally:
        service.end(9)


@pytest.fixture
def lone_service(tmp_path: Path, warm: Warm) -> Path:
    """The script for a host that has the service, and no program to start."""
    return write_hook(tmp_path, warm.run, program=tmp_path / "no-such-program")


@pytest.fixture
def served(lone_service: Path) -> Iterator[None]:
    """CRIU under runc calls that script."""
    with action_script(lone_service):
        yield


def _bench(criu: Criu, target: Watcher, directory: Path) -> Bench:
    directory.mkdir()
    return Bench(criu, target, directory)


@pytest.fixture
def bench(criu: Criu, target: Watcher, tmp_path: Path) -> Bench:
    """check beside the CRIU that must be there."""
    return _bench(criu, target, tmp_path / "dumps")


@pytest.fixture
def each_bench(each_criu: Criu, target: Watcher, tmp_path: Path) -> Bench:
    """check beside one version after the other."""
    return _bench(each_criu, target, tmp_path / "dumps")
