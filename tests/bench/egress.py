"""What a connection out of a sandbox costs: 200 MB through the proxy, and the time of a first byte.

Run with an installed Python runtime::

    APPLIANCE_TEST_DATA=... APPLIANCE_TEST_RUN=... PYTHONPATH=.:tests/support \
        python tests/bench/egress.py
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path

import uvloop
from boxes import box, spec_of
from outside import outside, serving

from appliance import config
from appliance.sandbox.podman import PodmanExecutor

SIZE = 200_000_000

READ = """
import socket, time
def connected():
    if inputs["how"] == "name":
        return socket.create_connection(("bench.test", inputs["port"]), 10)
    link = socket.create_connection(("127.0.0.1", 3128), 10)
    target = f"bench.test:{inputs['port']}"
    link.sendall(f"CONNECT {target} HTTP/1.1\\r\\nHost: {target}\\r\\n\\r\\n".encode())
    assert link.recv(4096).startswith(b"HTTP/1.1 200"), "refused"
    return link
times = []
for _ in range(30):
    started = time.perf_counter()
    link = connected()
    link.sendall(b"1")
    link.recv(1)
    times.append(time.perf_counter() - started)
    link.close()
link = connected()
started = time.perf_counter()
link.sendall(b"%d\\n" % inputs["size"])
buffer, left = bytearray(1 << 20), inputs["size"]
while left:
    got = link.recv_into(buffer)
    assert got, "cut off"
    left -= got
answer = [time.perf_counter() - started, sorted(times)[15] * 1000]
"""


async def source(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send as many bytes as the first line says."""
    asked = await reader.read(32)
    left, piece = int(asked), bytes(1 << 18)
    while left:
        writer.write(piece[:left])
        left -= min(left, len(piece))
        await writer.drain()
    writer.close()


async def measure(data: Path, run: Path, base: Path) -> None:
    """Measure both forms in one sandbox."""
    settings = config.Sandbox(accept_supervised_limits=True)
    executor = PodmanExecutor(settings, run_dir=run, data_dir=data)
    await executor.start()
    try:
        async with outside(base, executor) as out, serving(source) as port:
            out.name("127.0.0.7 bench.test")
            await out.rule("allow", "127.0.0.7", port)
            await out.rule("allow", "bench.test", port)
            plain = spec_of("mod_1/1", invoke_timeout_ms=120_000)
            for name, spec in (("no rule", plain), ("with rules", out.spec(plain))):
                times = []
                for _ in range(8):
                    started = time.perf_counter()
                    sandbox = await executor.create(spec)
                    times.append((time.perf_counter() - started) * 1000)
                    await sandbox.destroy()
                print(f"start, {name}: {sorted(times)[4]:.0f} ms")
            async with box(executor, out.spec(plain)) as one:
                for how in ("connect", "name"):
                    taken, first = await one.run(READ, how=how, port=port, size=SIZE)
                    rate = SIZE / 1e6 / taken
                    print(f"{how}: 200 MB in {taken:.2f} s ({rate:.0f} MB/s), "
                          f"connection to first byte {first:.1f} ms")  # fmt: skip
    finally:
        await executor.close()


def main() -> int:
    """Print figures."""
    data = Path(os.environ["APPLIANCE_TEST_DATA"])
    root = os.environ.get("APPLIANCE_TEST_RUN", "/dev/shm")
    with (
        tempfile.TemporaryDirectory(prefix="eb-", dir=root) as run,
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as base,
    ):
        Path(run).chmod(0o711)
        uvloop.run(measure(data, Path(run), Path(base)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
