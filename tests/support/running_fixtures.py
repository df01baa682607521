"""Fixtures: a real appliance process with rootless Podman, fresh for each module."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import RunningAppliance


@pytest.fixture(scope="module")
def run_root() -> Iterator[Path]:
    """A folder on a tmpfs with a short name: Podman's run folder must not exceed 50 bytes."""
    base = os.environ.get("APPLIANCE_TEST_RUN", "/dev/shm")
    with tempfile.TemporaryDirectory(prefix="ma-", dir=base, ignore_cleanup_errors=True) as path:
        Path(path).chmod(0o711)
        yield Path(path)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, run_root: Path) -> Iterator[RunningAppliance]:
    """An initialised appliance that is up and ready."""
    folder = tmp_path_factory.mktemp("appliance")
    appliance = RunningAppliance(folder / "data", run_root, drift__period_s=1)
    appliance.initialise()
    try:
        appliance.start()
        yield appliance
    finally:
        appliance.close()
