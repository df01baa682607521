"""Fixtures named as things. Tests that need Podman fail without it; ``-m 'not podman'`` leaves
them out."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import hypothesis
import pytest
import pytest_asyncio
from http_images import brought, forget, python_image

from appliance import config
from appliance.sandbox import images
from appliance.sandbox.podman import PodmanExecutor

RUNTIME = "python3.11"

# Time on a busy machine says nothing about what is tested.
hypothesis.settings.register_profile(
    "busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("busy")


@pytest.hookimpl(tryfirst=True)  # selection by marker reads them after this
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what starts containers, so that all of it runs in one process beside the rest.

    Two engines at once would compete for the cores that some of these tests measure.
    """
    for item in items:
        if "test_data" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.podman)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write the names of tests that failed, one a line, where ``packaging/test`` looks for them."""
    path = os.environ.get("APPLIANCE_TEST_FAILED")
    if not path or not report.failed:
        return
    name = report.nodeid
    known = Path(path).read_text().splitlines() if os.path.exists(path) else []
    if name not in known:
        with open(path, "a") as out:
            out.write(f"{name}\n")


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder ``APPLIANCE_TEST_DATA`` names: installed runtimes and dependency sets."""
    folder = os.environ.get("APPLIANCE_TEST_DATA")
    if not folder:
        pytest.fail("APPLIANCE_TEST_DATA names no folder with an installed runtime")
    return Path(folder)


@pytest.fixture(scope="session")
def runtime(test_data: Path) -> images.Runtime:
    """The installed Python runtime."""
    return images.require(test_data, RUNTIME)


@pytest.fixture(scope="session")
def served_image(
    runtime: images.Runtime, test_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The name of an imported image whose server knows no appliance; gone at the end."""
    parts = python_image(runtime.rootfs, Cmd=["serve"])
    made = brought(test_data, tmp_path_factory.mktemp("image"), parts, "test-served")
    yield made.name
    forget(made)


@pytest.fixture(scope="session")
def sandbox_settings() -> config.Sandbox:
    """The ``[sandbox]`` section with supervised limits accepted."""
    return config.Sandbox(accept_supervised_limits=True)


@pytest.fixture
def tmpfs_dir() -> Iterator[Path]:
    """A run folder on a tmpfs, gone at the end."""
    base = os.environ.get("APPLIANCE_TEST_RUN") or os.environ.get("XDG_RUNTIME_DIR") or "/dev/shm"
    with tempfile.TemporaryDirectory(prefix="sb-", dir=base, ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def podman_executor(
    runtime: images.Runtime,
    test_data: Path,
    sandbox_settings: config.Sandbox,
) -> AsyncIterator[PodmanExecutor]:
    """One started Podman engine for all tests that need no engine of their own."""
    base = os.environ.get("APPLIANCE_TEST_RUN") or os.environ.get("XDG_RUNTIME_DIR") or "/dev/shm"
    run_dir = Path(tempfile.mkdtemp(prefix="sb-", dir=base))
    executor = PodmanExecutor(sandbox_settings, run_dir=run_dir, data_dir=test_data)
    try:
        await executor.start()
        yield executor
    finally:
        await executor.close()
        shutil.rmtree(run_dir, ignore_errors=True)
