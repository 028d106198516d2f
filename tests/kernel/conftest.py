"""Tests here need root and say so once."""

from __future__ import annotations

import pytest

from tests.support.audit_files import garden  # noqa: F401 fixture
from tests.support.bind_mounts import bound  # noqa: F401 fixture
from tests.support.features import require_root
from tests.support.freezing import hierarchies, make_cgroup, start, way  # noqa: F401 fixtures
from tests.support.resolver_call import root, watched  # noqa: F401 fixtures
from tests.support.searching import make, nested, stored  # noqa: F401 fixtures
from tests.support.stepping import stack, tree  # noqa: F401 fixtures


@pytest.fixture(autouse=True)
def _root() -> None:
    require_root()
