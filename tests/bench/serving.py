"""Cold and warm calls of one model: a bare Starlette+Hypercorn process against the appliance.

    python tests/bench/serving.py --model build/example/model --rows rows.json

Both run on this machine in one go, both over TLS, both asked by the same client process: first the
bare server, which has the model in its own process and neither authentication, audit nor
isolation; then ``appliance serve`` with the model registered, sandboxed and audited. Prints a
Markdown table and, with ``--json``, the figures. Quote the ratios: absolute times are the
machine's.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

sys.path[:0] = [str(Path(__file__).parents[1] / "support"), str(Path(__file__).parents[2])]
from running import RunningAppliance, free_port  # noqa: E402 - a script finds its own helpers

BARE = """
import sys
from starlette.applications import Starlette
from starlette.requests import Request
import json
from starlette.responses import Response
from starlette.routing import Route
sys.path.insert(0, sys.argv[1])
from model import Model

loaded = Model(sys.argv[1])


async def invoke(request: Request) -> Response:
    answer = loaded.predict(await request.json())
    text = json.dumps(answer, default=lambda array: array.tolist())
    return Response(text, media_type="application/json")


app = Starlette(routes=[Route("/invoke", invoke, methods=["POST"])])

import asyncio
from hypercorn.asyncio import serve
from hypercorn.config import Config

config = Config()
config.bind = [f"127.0.0.1:{sys.argv[2]}"]
config.certfile, config.keyfile = sys.argv[3], sys.argv[4]
config.alpn_protocols = ["http/1.1"]
config.keep_alive_max_requests = 10**9
asyncio.run(serve(app, config))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Latencies in milliseconds of one run of calls, and calls per second."""

    clients: int
    calls: int
    p50_ms: float
    p99_ms: float
    per_s: float


def figures(clients: int, taken_s: list[float], wall_s: float) -> Figures:
    ordered = sorted(taken_s)
    return Figures(
        clients=clients,
        calls=len(ordered),
        p50_ms=1000 * statistics.median(ordered),
        p99_ms=1000 * ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))],
        per_s=len(ordered) / wall_s,
    )


async def closed_loop(
    port: int, head: bytes, body: bytes, context: ssl.SSLContext, *, clients: int, seconds: float
) -> Figures:
    """Each client sends its next call when the last one was answered, and at least one."""
    taken: list[float] = []
    request = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    end = time.perf_counter() + seconds

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        is_over = False
        while not is_over:
            start = time.perf_counter()
            writer.write(request)
            await read_reply(reader)
            taken.append(time.perf_counter() - start)
            is_over = time.perf_counter() > end
        writer.close()

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
    return figures(clients, taken, time.perf_counter() - started)


async def read_reply(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    if b" 200" not in status:
        raise SystemExit(f"not answered with 200: {head!r}")
    length = next(int(x.split(b":")[1]) for x in lines if x.lower().startswith(b"content-length"))
    return await reader.readexactly(length)


def head_of(path: str, secret: str = "") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    if secret:
        lines.append(f"Authorization: Bearer {secret}")
    return ("\r\n".join(lines) + "\r\n").encode()


@contextlib.contextmanager
def bare(model: Path, certificate: Path, key: Path) -> Iterator[tuple[int, psutil.Process]]:
    port = free_port()
    command = [sys.executable, "-c", BARE, str(model), str(port), str(certificate), str(key)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        yield port, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def rss_mib(process: psutil.Process) -> float:
    return float(process.memory_info().rss) / 2**20


def until_answered(port: int, head: bytes, body: bytes, context: ssl.SSLContext) -> float:
    """Seconds until the first answer."""
    start = time.perf_counter()
    while time.perf_counter() - start < 60:
        try:
            asyncio.run(closed_loop(port, head, body, context, clients=1, seconds=0.001))
        except* (OSError, asyncio.IncompleteReadError):
            time.sleep(0.02)
        else:
            return time.perf_counter() - start
    raise SystemExit("the server did not answer")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    body = options.rows.read_bytes()
    with tempfile.TemporaryDirectory(prefix="ma-", dir=options.run_dir) as run:
        folder = Path(tempfile.mkdtemp(prefix="appliance-bench-"))
        appliance = RunningAppliance(folder / "data", Path(run), **options.setting)
        appliance.initialise()
        appliance.start()
        try:
            return compare(options, appliance, body)
        finally:
            appliance.close()


def compare(
    options: argparse.Namespace, appliance: RunningAppliance, body: bytes
) -> dict[str, Any]:
    secret = appliance.tenant("bench")
    files = {p.name: p.read_bytes() for p in sorted(options.model.iterdir()) if p.is_file()}
    started = time.perf_counter()
    made = appliance.push(secret, "bench/example", files)
    if made.status_code != 201:
        raise SystemExit(made.text)
    result: dict[str, Any] = {"register_s": time.perf_counter() - started}
    tls = ssl.create_default_context(cafile=str(appliance.ca_file()))
    plain = head_of("/invoke")
    ours = head_of("/api/v1/models/bench/example/invoke", secret)
    certificate, key = appliance.data_dir / "tls/leaf.pem", appliance.data_dir / "tls/leaf.pem"
    with bare(options.model, certificate, key) as (port, process):
        result["bare_first_answer_s"] = until_answered(port, plain, body, tls)
        result["bare"] = [
            asdict(
                asyncio.run(closed_loop(port, plain, body, tls, clients=n, seconds=options.seconds))
            )
            for n in (1, 16)
        ]
        result["bare_rss_mib"] = rss_mib(process)
    result["cold"] = asdict(cold_calls(appliance, ours, body, tls, options.cold))
    result["appliance"] = [
        asdict(
            asyncio.run(
                closed_loop(appliance.port, ours, body, tls, clients=n, seconds=options.seconds)
            )
        )
        for n in (1, 16)
    ]
    assert appliance.process is not None
    result["appliance_rss_mib"] = rss_mib(psutil.Process(appliance.process.pid))
    return result


def cold_calls(
    appliance: RunningAppliance, head: bytes, body: bytes, tls: ssl.SSLContext, count: int
) -> Figures:
    """Calls that each find no sandbox: the last one was destroyed before."""
    taken = []
    for _ in range(count):
        with appliance.admin() as client:
            for row in client.get("/admin/v1/sandboxes").json()["items"]:
                client.delete(f"/admin/v1/sandboxes/{row['id']}")
        one = asyncio.run(closed_loop(appliance.port, head, body, tls, clients=1, seconds=0))
        taken.append(one.p50_ms / 1000)
    return figures(1, taken, sum(taken))


def table(result: dict[str, Any]) -> str:
    rows = [
        "| server | clients | calls/s | p50 ms | p99 ms | x bare |",
        "|---|---|---|---|---|---|",
    ]
    cold = result["cold"]
    rows.append(f"| appliance, cold | 1 | - | {cold['p50_ms']:.0f} | {cold['p99_ms']:.0f} | - |")
    for name in ("bare", "appliance"):
        for row, base in zip(result[name], result["bare"], strict=True):
            rows.append(
                f"| {name}, warm | {row['clients']} | {row['per_s']:.0f} | {row['p50_ms']:.2f} "
                f"| {row['p99_ms']:.2f} | {row['per_s'] / base['per_s']:.2f} |"
            )
    rows.append(
        f"\nRSS: bare {result['bare_rss_mib']:.0f} MiB, "
        f"appliance without its sandboxes {result['appliance_rss_mib']:.0f} MiB; "
        f"bare process to first answer {result['bare_first_answer_s']:.2f} s; "
        f"registration with everything cached {result['register_s']:.1f} s."
    )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of the trained example")
    parser.add_argument("--rows", type=Path, required=True, help="JSON body of a call")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of each warm run")
    parser.add_argument("--cold", type=int, default=20, help="number of cold calls")
    parser.add_argument("--run-dir", default="/dev/shm", help="a tmpfs for the run folder")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument(
        "--setting", action="append", default=[], help="section__field=value for the appliance"
    )
    options = parser.parse_args()
    options.setting = dict(pair.split("=", 1) for pair in options.setting)
    result = measure(options)
    print(json.dumps(result, indent=2) if options.json else table(result))


if __name__ == "__main__":
    os.umask(0o022)
    main()
