"""A full, failing or slow disk: clean refusals, nothing lost, no retry on a file that failed."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import store_child
from storing import ACTOR, Folder, fill, intent, read_blob, write_blob

from appliance import config
from appliance.errors import ApplianceError, AuditUnavailable, CapacityExhausted, DiskFull

ROOT = Path(store_child.__file__).parents[2]


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path).make()


def can_mount():
    if shutil.which("unshare") is None:
        return False
    probe = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]
    return subprocess.run(probe, capture_output=True).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="this user may not mount a tmpfs in a namespace")
def test_a_full_disk_refuses_cleanly_and_recovers_without_a_restart(tmp_path):
    script = 'mount -t tmpfs -o size=24m none "$1" && exec "$2" "$3" "$1"'
    command = ["unshare", "-rm", "sh", "-c", script, "sh", str(tmp_path), sys.executable]
    command.append(store_child.__file__)
    paths = f"{ROOT}:{ROOT / 'tests/support'}"
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "recovered"


async def test_a_file_size_limit_is_a_full_disk_too(folder):
    async with folder.open() as store:
        await fill(store, 5)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (80, limits[1]))
        try:
            for _ in range(3):
                with pytest.raises(DiskFull):
                    await store.ledger.append(intent(), actor=ACTOR)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert store.ledger.state == "ok"
        await fill(store, 5)
        assert store.ledger.head.size == 10
        assert (await store.verify()).ok
    async with folder.open() as store:
        assert len(store.ledger.read(0, 99)) == 10


async def test_new_calls_are_refused_when_space_is_low_but_commands_are_recorded(folder):
    async with folder.open(config.Store(free_bytes_min=1 << 60)) as store:
        await asyncio.sleep(1.2)  # the free space is looked at every second
        with pytest.raises(DiskFull):
            await store.ledger.append(intent(), actor=ACTOR)
        await store.registry.create_tenant(name="acme", actor=ACTOR)


async def test_a_failed_sync_is_never_retried(folder, monkeypatch):
    async with folder.open() as store:
        await fill(store, 3)
        calls = []

        def fail(fd):
            calls.append(fd)
            raise OSError(errno.EIO, "injected")

        monkeypatch.setattr(os, "fdatasync", fail)
        for _ in range(3):
            with pytest.raises(AuditUnavailable):
                await store.ledger.append(intent(), actor=ACTOR)
        monkeypatch.undo()
        with pytest.raises(AuditUnavailable):
            await store.ledger.append(intent(), actor=ACTOR)
        assert (len(calls), store.ledger.state) == (1, "failed")
        assert len(store.ledger.read(0, 99)) == 3
    async with folder.open() as store:
        assert store.ledger.head.size in (3, 4)  # never acknowledged: either is right
        await fill(store, 1)
        assert (await store.verify()).ok


async def test_a_slow_disk_fills_the_queue_and_then_refuses(folder, monkeypatch):
    async with folder.open(config.Store(free_bytes_min=0, queue_max=50)) as store:
        sync = os.fdatasync

        def slow(fd):
            time.sleep(0.05)
            sync(fd)

        monkeypatch.setattr(os, "fdatasync", slow)
        results = await asyncio.gather(
            *(store.ledger.append(intent(n), actor=ACTOR) for n in range(500)),
            return_exceptions=True,
        )
        refused = [r for r in results if isinstance(r, CapacityExhausted)]
        assert len(refused) >= 400
        assert store.ledger.head.size == 500 - len(refused)
        assert store.ledger._pending == 0


class Failing:
    """Makes the Nth call that writes (and every later one, like a dead disk) fail."""

    NAMES = ("write", "fsync", "fdatasync", "ftruncate", "rename", "replace")

    def __init__(self, monkeypatch, code):
        self.left = None
        self.code = code
        for name in self.NAMES:
            monkeypatch.setattr(os, name, self.wrap(getattr(os, name)))

    def wrap(self, real):
        def call(*arguments, **more):
            if self.left is not None:
                self.left -= 1
                if self.left < 0:
                    raise OSError(self.code, "injected")
            return real(*arguments, **more)

        return call


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
async def test_whatever_write_fails_first_what_was_acknowledged_is_there(
    tmp_path, monkeypatch, code
):
    failing = Failing(monkeypatch, code)
    base = Folder(tmp_path / "0")
    (tmp_path / "0").mkdir()
    base.make()
    nth, acked = 0, {}
    while "closed" not in acked:
        nth += 1 + nth // 6
        folder = base.copy(tmp_path / "n")
        acked = await scenario(folder, failing, nth)
        failing.left = None
        async with folder.open() as store:
            assert {"acme"} & acked.keys() <= {t.name for t in store.registry.snapshot.tenants()}
            assert store.ledger.head.size >= acked.get("seq", 0)
            if "blob" in acked:
                blob = acked["blob"]
                assert await read_blob(store, acked["acme"], blob.id) == b"z" * 600_000
            assert (await store.verify()).ok
            await fill(store, 1)
            assert (await store.blobs.scrub()).damaged == ()
    assert nth > 20


async def scenario(folder, failing, nth):
    acked = {}
    try:
        async with folder.open() as store:
            failing.left = nth
            tenant = await store.registry.create_tenant(name="acme", actor=ACTOR)
            acked["acme"] = tenant.id
            for _ in range(3):
                (entry,) = await store.ledger.append(intent(), actor=ACTOR)
                acked["seq"] = entry.seq
            blob = await write_blob(store, tenant.id, b"z" * 600_000)
            acked["blob"] = blob
            (entry,) = await store.ledger.append(intent(), actor=ACTOR)
            acked["seq"] = entry.seq
            is_failed = failing.left < 0
        if not is_failed and failing.left >= 0:
            acked["closed"] = True
    except (ApplianceError, OSError):
        pass
    return acked
