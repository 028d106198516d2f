"""Tests here need root and say so once."""

from __future__ import annotations

import pytest

from tests.kernel.asking import root, watched  # noqa: F401 fixtures
from tests.kernel.binding import bound  # noqa: F401 fixture
from tests.kernel.freezing import hierarchies, make_cgroup, start, way  # noqa: F401 fixtures
from tests.kernel.garden import garden  # noqa: F401 fixture
from tests.kernel.searching import make, nested, stored  # noqa: F401 fixtures
from tests.kernel.stepping import stack, tree  # noqa: F401 fixtures
from tests.support.features import require_root


@pytest.fixture(autouse=True)
def _root() -> None:
    require_root()
