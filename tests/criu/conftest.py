"""CRIU itself, and a process that it can dump."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.criu import Criu
from tests.support.features import require_root
from tests.support.watcher import Watcher

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _root() -> None:
    require_root()


@pytest.fixture
def criu(rig: Path) -> Criu:
    """CRIU 4.1.1 from packages."""
    return Criu(rig / "criu", rig / "crit")


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Watcher]:
    """A process without ties that CRIU could not dump; watches are for the test to add."""
    with Watcher(pipes=tmp_path / "pipes", cwd="/") as made:
        yield made
