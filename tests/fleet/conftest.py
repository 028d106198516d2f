"""Fixtures of the fleet's tests: a real PostgreSQL server, and databases to push."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from irmapdb.fleet.server import find_server
from tests.support.cli import irmapdb
from tests.support.fleet_rows import Maker
from tests.support.postgres import Postgres

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """The server of this session."""
    with Postgres() as server:
        yield server


@pytest.fixture(scope="session")
def _template(postgres: Postgres) -> str:
    made = postgres.new_database()
    done = irmapdb("fleet", "init", "--to", made)
    assert done.code == 0, done.said
    return find_server(made).url.database


@pytest.fixture
def url(postgres: Postgres, _template: str) -> str:
    """The URL of a database with the tables of irmapdb."""
    return postgres.new_database(_template)


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    """Makes databases to push."""
    return Maker(tmp_path)
