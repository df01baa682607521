"""A real appliance process for the modules that ask for one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from boxes import Ways
from running_fixtures import run_root, running  # noqa: F401


@pytest.fixture(params=["made", "bound"])
def each_way(request: pytest.FixtureRequest) -> Iterator[None]:
    """Sandboxes made for their version, then sandboxes made ahead and bound to it."""
    Ways.ahead = request.param == "bound"
    yield
    Ways.ahead = False
