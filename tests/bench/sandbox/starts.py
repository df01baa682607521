"""What a start costs: from nothing, from a zygote, warm, woken; in time and in memory.

    python tests/bench/sandbox/starts.py --data DIR

``DIR`` holds an installed Python runtime and a dependency set with scikit-learn: a data folder of
an appliance that has a model of it. Runs as the service user, on rootless Podman, through the pool
as calls do. A start is measured from asking the pool to the first answer. Prints a Markdown table,
targets beside it, and, with ``--json``, the figures; ``load`` is how busy the machine was before
and after: quote nothing of a busy machine.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2] / "support"), str(Path(__file__).parents[3])]
from boxes import RUN_MODEL, box, pieces, spec_of, tar_of  # noqa: E402 - as a script

from appliance import config  # noqa: E402
from appliance.sandbox import kernel  # noqa: E402
from appliance.sandbox.lease import Lease  # noqa: E402
from appliance.sandbox.podman import PodmanExecutor  # noqa: E402
from appliance.sandbox.pool import Pool  # noqa: E402
from appliance.sandbox.spec import MIB, Request, SandboxSpec  # noqa: E402

BLANK = {"model.py": b"def load(path): return lambda inputs: inputs"}
TRAIN = """
import base64, pickle
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import RandomForestClassifier
x, y = load_breast_cancer(return_X_y=True)
fitted = RandomForestClassifier(n_estimators=100, random_state=0).fit(x, y)
answer = [base64.b64encode(pickle.dumps(fitted)).decode(), x[0].tolist()]
"""
FOREST = b"""
import pickle
class Model:
    def __init__(self, path):
        with open(path + "/forest.pickle", "rb") as file:
            self.forest = pickle.load(file)
    def predict(self, inputs):
        return self.forest.predict([inputs]).tolist()
"""


TARGETS = {
    "blank, from nothing [ms]": 100.0,
    "scikit-learn, from a zygote [ms]": 100.0,
    "blank at rest: with conmon [MiB]": 8.0,
}


class Bench:
    """One engine and what is asked of it."""

    def __init__(self, executor: PodmanExecutor, rounds: int) -> None:
        self.executor = executor
        self.rounds = rounds
        self.found: dict[str, dict[str, float]] = {}

    def note(self, name: str, unit: str, values: list[float]) -> None:
        """Keep p50 and p99 of a row."""
        ordered = sorted(values)
        p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
        self.found[f"{name} [{unit}]"] = {
            "p50": round(statistics.median(ordered), 2),
            "p99": round(p99, 2),
            "n": len(ordered),
        }

    @asynccontextmanager
    async def pool(self, zygotes: bool) -> AsyncIterator[Pool]:
        """A pool with or without zygotes."""
        made = Pool(self.executor, config.Sandbox(zygote_memory_bytes_max=-1 if zygotes else 0))
        try:
            yield made
        finally:
            await made.close()

    async def starts(
        self, name: str, spec: SandboxSpec, files: dict[str, bytes], body: bytes, *, zygotes: bool
    ) -> None:
        """Time starts, one at a time; with zygotes only those that had one."""
        tar = tar_of(files)
        took: list[float] = []
        async with self.pool(zygotes) as pool:
            while len(took) < self.rounds:
                started = time.perf_counter()
                lease = await ask(pool, spec, tar, body)
                elapsed = (time.perf_counter() - started) * 1000
                if lease.ahead == zygotes:
                    took.append(elapsed)
                await quiet(pool, zygotes=zygotes)
        self.note(name, "ms", took)

    async def warm(
        self, name: str, spec: SandboxSpec, files: dict[str, bytes], body: bytes
    ) -> None:
        """Round trips of a loaded sandbox."""
        took = []
        async with box(self.executor, spec, files) as one:
            for _ in range(self.rounds * 50):
                started = time.perf_counter()
                await one.ask(body)
                took.append((time.perf_counter() - started) * 1000)
        self.note(name, "ms", took)

    async def woken(
        self, name: str, spec: SandboxSpec, files: dict[str, bytes], body: bytes
    ) -> None:
        """Round trips of a loaded sandbox that was frozen before each."""
        took = []
        async with box(self.executor, spec, files) as one:
            for _ in range(self.rounds * 5):
                await one.sandbox.freeze()
                started = time.perf_counter()
                await one.ask(body)
                took.append((time.perf_counter() - started) * 1000)
        self.note(name, "ms", took)

    async def memory(self, name: str, spec: SandboxSpec, modules: tuple[str, ...]) -> None:
        """Proportional memory of zygotes at rest: their processes and their conmon."""
        from boxes import key_of

        boxes = [await self.executor.create_ahead(key_of(spec, *modules)) for _ in range(4)]
        await asyncio.sleep(1)
        inside = [pss([one.pid, *kernel.descendants(one.pid)]) / MIB for one in boxes]
        around = [pss([parent_of(one.pid)]) / MIB for one in boxes]
        self.note(f"{name}: container", "MiB", inside)
        self.note(f"{name}: with conmon", "MiB", [sum(p) for p in zip(inside, around, strict=True)])
        await asyncio.gather(*(one.destroy() for one in boxes))

    async def lives(self, at_once: int) -> None:
        """Whole lives of blank sandboxes a second: made, loaded, ended."""
        tar, left = tar_of(BLANK), self.rounds * 2

        async def worker() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                sandbox = await self.executor.create(spec_of(files=BLANK, entry="model:load"))
                await sandbox.load(pieces(tar))
                await sandbox.destroy()

        started = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(at_once)))
        rate = self.rounds * 2 / (time.perf_counter() - started)
        self.found[f"lives, {at_once} at once [1/s]"] = {
            "p50": round(rate, 2),
            "n": self.rounds * 2,
        }


async def ask(pool: Pool, spec: SandboxSpec, tar: bytes, body: bytes) -> Lease:
    """One call through the pool."""
    async with pool.lease(spec, lambda: pieces(tar)) as lease:
        request = Request(id="1", content_type="application/json", body=body, timeout_ms=30_000,
                          reply_bytes_max=1 << 20)  # fmt: skip
        await lease.request(request)
        return lease


async def quiet(pool: Pool, *, zygotes: bool) -> None:
    """Wait until the last sandbox is gone and, with zygotes, the next is ready."""
    for _ in range(1000):
        states = [info.state for info in pool.list()]
        if states == (["zygote"] if zygotes else []):
            break
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.4)  # Podman still cleans up


def found_key(data: Path) -> str:
    """The first dependency set that has scikit-learn."""
    for folder in sorted((data / "deps").iterdir()):
        if (folder / "sklearn").is_dir():
            return folder.name
    raise SystemExit(f"{data}/deps holds no dependency set with scikit-learn")


def pss(pids: list[int]) -> int:
    """Proportional set size of processes, bytes; of others' too where this user may look."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def parent_of(pid: int) -> int:
    """The parent's process id."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


async def trained(executor: PodmanExecutor, deps_key: str) -> tuple[dict[str, bytes], bytes]:
    """A random forest, trained in a sandbox, and a row to ask it for."""
    spec = spec_of("train", deps_key=deps_key, memory_mb=1024, invoke_timeout_ms=120_000)
    async with box(executor, spec, {"model.py": RUN_MODEL}) as one:
        pickled, row = await one.run(TRAIN, reply_bytes_max=64 * MIB)
    return {"model.py": FOREST, "forest.pickle": base64.b64decode(pickled)}, json.dumps(
        row
    ).encode()


async def modules_of(
    executor: PodmanExecutor, spec: SandboxSpec, files: dict[str, bytes]
) -> tuple[str, ...]:
    """What a load of the model imports."""
    async with box(executor, spec, files) as one:
        return tuple(sorted(one.sandbox.modules))


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All rows."""
    base = os.environ.get("XDG_RUNTIME_DIR", "/dev/shm")
    run_dir = Path(tempfile.mkdtemp(prefix="b-", dir=base))
    settings = config.Sandbox(accept_supervised_limits=True)
    executor = PodmanExecutor(settings, run_dir=run_dir, data_dir=Path(options.data))
    await executor.start()
    bench = Bench(executor, options.rounds)
    before = os.getloadavg()[0]
    try:
        blank = spec_of("blank", files=BLANK, entry="model:load", idle_timeout_s=0, memory_mb=512)
        await bench.starts("blank, from nothing", blank, BLANK, b"1", zygotes=False)
        await bench.starts("blank, from a zygote", blank, BLANK, b"1", zygotes=True)
        await bench.warm("blank, warm", blank, BLANK, b"1")
        await bench.woken("blank, warm, frozen before", blank, BLANK, b"1")
        await bench.memory("blank at rest", blank, ())
        deps_key = options.deps_key or found_key(Path(options.data))
        files, row = await trained(executor, deps_key)
        forest = spec_of("forest", files=files, deps_key=deps_key, idle_timeout_s=0, memory_mb=512)
        await bench.starts("scikit-learn, from nothing", forest, files, row, zygotes=False)
        await bench.starts("scikit-learn, from a zygote", forest, files, row, zygotes=True)
        await bench.warm("scikit-learn, warm", forest, files, row)
        modules = await modules_of(executor, forest, files)
        await bench.memory("scikit-learn zygote", forest, modules)
        for at_once in (1, 2, 4):
            await bench.lives(at_once)
    finally:
        await executor.close()
        shutil.rmtree(run_dir, ignore_errors=True)
    return {"load": [round(before, 1), round(os.getloadavg()[0], 1)], "rows": bench.found}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="folder with runtimes/ and deps/")
    parser.add_argument("--deps-key", default="", help="the dependency set; default: found")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = asyncio.run(measure(options))
    if options.json:
        print(json.dumps(found, indent=1))
        return
    print(f"load {found['load'][0]} before, {found['load'][1]} after\n")
    print("| what | p50 | p99 | n | target, p50 |\n|---|---|---|---|---|")
    for name, row in found["rows"].items():
        target = f"<= {TARGETS[name]:g}" if name in TARGETS else ""
        print(f"| {name} | {row['p50']} | {row.get('p99', '')} | {row['n']} | {target} |")


if __name__ == "__main__":
    main()
