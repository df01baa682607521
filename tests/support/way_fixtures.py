"""Fixtures that run a test once for each way a sandbox is made, and each tier it can be of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from boxes import Ways

from appliance.sandbox import tiers


@pytest.fixture(params=["made", "bound", "image"])
def each_way(request: pytest.FixtureRequest) -> Iterator[None]:
    """Sandboxes made for their version, made ahead and bound to it, and of an imported image."""
    Ways.image = request.getfixturevalue("served_image") if request.param == "image" else ""
    with _way(request.param):
        yield


@pytest.fixture(params=["made", "bound", "gvisor", "image"])
def each_way_and_tier(request: pytest.FixtureRequest) -> Iterator[None]:
    """Sandboxes made for their version, bound to it, with an own kernel, and of an image."""
    Ways.image = request.getfixturevalue("served_image") if request.param == "image" else ""
    with _way(request.param):
        yield


@pytest.fixture(params=["standard", "gvisor"])
def each_tier(request: pytest.FixtureRequest) -> Iterator[None]:
    """Sandboxes on the host's kernel, then with a kernel of their own."""
    with _way(request.param):
        yield


@pytest.fixture(params=["standard", "gvisor", "image"])
def each_tier_and_image(request: pytest.FixtureRequest) -> Iterator[None]:
    """Sandboxes on the host's kernel, with a kernel of their own, and of an imported image."""
    Ways.image = request.getfixturevalue("served_image") if request.param == "image" else ""
    with _way(request.param):
        yield


@contextmanager
def _way(name: str) -> Iterator[None]:
    if name == "gvisor" and not tiers.runsc_path():
        pytest.skip(f"gVisor is not installed here: {tiers.INSTALL}")
    Ways.ahead = name == "bound"
    Ways.isolation = "gvisor" if name == "gvisor" else "standard"
    try:
        yield
    finally:
        Ways.ahead, Ways.isolation, Ways.image = False, "standard", ""
