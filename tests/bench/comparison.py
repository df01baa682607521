"""What a comparison holds in memory: ``python tests/bench/comparison.py 180000``.

Prints the figures of docs/comparison.md: a table of 31 columns and so many rows through two
versions that answer at once. The caller is in the same process, and counts too.
"""

from __future__ import annotations

import asyncio
import functools
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from inside import inside
from scripted import ScriptedExecutor


def script(_number: int, body: Any) -> Any:
    return {"predictions": [1] * len(body["rows"])}


async def main(rows: int) -> None:
    """Measure and print."""
    line = b",".join(b"%.6f" % (number * 1.234567) for number in range(30))
    names = b",".join(b"c%d" % number for number in range(30))
    data = names + b",y\n" + (line + b",1\n") * rows
    process, peak = psutil.Process(), 0

    async def look() -> None:
        nonlocal peak
        while True:
            peak = max(peak, process.memory_info().rss)
            await asyncio.sleep(0.05)

    executor = functools.partial(ScriptedExecutor, script=script)
    with tempfile.TemporaryDirectory() as base:
        async with inside(Path(base), executor=executor) as it:
            await it.tenant("acme")
            for _ in range(2):
                await it.version("acme", "m")
            async with it.client(await it.key("acme")) as client:
                before = process.memory_info().rss
                looking = asyncio.create_task(look())
                made = await client.post(
                    "/api/v1/comparisons/acme",
                    params={"models": "m:1,m:2", "label": "y", "batch": "1000"},
                    content=data,
                    headers={"Content-Type": "text/csv"},
                )
                found = made.json()
                while found["status"] in ("starting", "processing"):
                    url = found["urls"]["get"]
                    found = (await client.get(url, params={"wait_s": 10})).json()
                looking.cancel()
    took = (peak - before) / 2**20
    print(f"{rows} rows, {len(data) / 2**20:.1f} MiB: {found['status']}, {took:.0f} MiB more")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
