"""Warm and cold calls of one model: what people serve models with, and this appliance.

    python tests/bench/serving

Starts one server at a time, each pinned to the first core with all its processes, asks it from a
process on the second core with 1, 16 and 64 connections, and prints a Markdown table: calls per
second and times against a bare Starlette on Hypercorn that has the model in its own process and
neither authentication, audit nor isolation. Servers of others get a virtual environment each, made
on demand below ``--environments``; one that cannot be had is left out with a word. The appliance is
measured as it is: over TLS, with a key, a real sandbox and its audit log. Rootless Podman needs an
ordinary user. Quote ratios: absolute times are the machine's, and those of a busy one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "support"), str(HERE.parents[2])]
import goals  # noqa: E402 - a script finds its own helpers
import layers  # noqa: E402
import load  # noqa: E402
import servers  # noqa: E402
from running import RunningAppliance, free_port  # noqa: E402

CLIENTS = (1, 16, 64)
HEALTH = "/livez"
MODES = {
    "appliance": ("strict", False),
    "appliance, overlap": ("overlap", False),
    "appliance, batch": ("strict", True),
    "appliance, batch, overlap": ("overlap", True),
}


@dataclass(kw_only=True)
class Result:
    """What was measured of one server."""

    name: str
    tls: bool
    cold_s: float = 0.0
    start_s: float = 0.0
    rss_mib: float = 0.0
    runs: list[dict[str, Any]] = field(default_factory=list)


def measured(
    result: Result,
    target: load.Target,
    options: argparse.Namespace,
    used: Callable[[], tuple[float, float]],
) -> None:
    """Fill in the warm runs.

    Args:
        result: gets them.
        target: what is called.
        options: of the command.
        used: processor seconds of all the server's processes, and of those without the model.
    """
    load.run(target, clients=4, seconds=min(options.seconds, 2.0))  # warm
    for clients in options.clients:
        best: dict[str, Any] | None = None
        for _ in range(options.rounds):
            before = used()
            figures = asdict(load.run(target, clients=clients, seconds=options.seconds))
            after = used()
            figures["cpu_us"] = 1e6 * (after[0] - before[0]) / figures["calls"]
            figures["front_us"] = 1e6 * (after[1] - before[1]) / figures["calls"]
            if best is None or figures["per_s"] > best["per_s"]:
                best = figures
        assert best is not None
        result.runs.append(best)


def tree(pid: int) -> list[psutil.Process]:
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


def cpu_s(pid: int) -> float:
    total = 0.0
    for process in tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def rss_mib(pid: int) -> float:
    total = 0
    for process in tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total / 2**20


@contextlib.contextmanager
def process_of(
    command: list[str], folder: Path, variables: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=variables, stdout=log, stderr=log, preexec_fn=on_first_core
        )
    try:
        yield process
    finally:
        family = tree(process.pid)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()


def on_first_core() -> None:
    if len(CORES) > 1:
        os.sched_setaffinity(0, CORES[:1])


CORES = sorted(os.sched_getaffinity(0))


def measure_peer(
    peer: servers.Peer, place: Path, options: argparse.Namespace, model: Path, tls: Tls
) -> Result:
    bin_dir = servers.environment_for(peer, options.environments)
    folder = place / peer.name.replace(" ", "-").replace(",", "")
    servers.lay_out(peer, folder, bin_dir, model, tls.leaf)
    port = free_port()
    command = peer.command(str(bin_dir), port)
    target = load.Target(
        port=port, path=peer.path, body=peer.body, ca_file=str(tls.ca) if peer.tls else ""
    )
    result = Result(name=peer.name, tls=peer.tls)
    with process_of(command, folder, servers.variables_for(peer, port, bin_dir)) as process:
        try:
            result.cold_s = load.until_answered(target)
        except SystemExit as error:
            last = (folder / "log").read_text(errors="replace").strip().splitlines()[-1:]
            raise servers.LeftOut(f"{error} {' '.join(last)}") from error
        measured(result, target, options, lambda: (cpu_s(process.pid),) * 2)
        result.rss_mib = rss_mib(process.pid)
    return result


@dataclass(frozen=True, kw_only=True)
class Tls:
    """A certificate with its key, and the authority that made it."""

    ca: Path
    leaf: Path


def appliance_files(model: Path, audit: str, has_batch: bool) -> dict[str, bytes]:
    manifest = f'runtime = "python3.11"\nentry = "model:Model"\naudit = "{audit}"\n'
    manifest += f'requirements = ["{servers.SCIKIT}"]\n' + ("\n[batch]\n" if has_batch else "")
    return {
        "appliance.toml": manifest.encode(),
        "model.py": servers.MODEL.encode(),
        "model.joblib": model.read_bytes(),
    }


def restarted(appliance: RunningAppliance, target: load.Target) -> tuple[float, float]:
    """Seconds from the start of the appliance's process to its first answer, and a model's."""
    appliance.stop()
    started = time.perf_counter()
    pinned = os.sched_getaffinity(0)
    on_first_core()
    try:
        appliance.start_process()
    finally:
        os.sched_setaffinity(0, pinned)
    health = load.Target(port=target.port, path=HEALTH, method="GET", ca_file=target.ca_file)
    load.until_answered(health)
    start_s = time.perf_counter() - started
    load.until_answered(target)
    return start_s, time.perf_counter() - started


def measure_appliance(
    appliance: RunningAppliance, secret: str, options: argparse.Namespace, model: Path
) -> Iterator[Result]:
    for name, (audit, has_batch) in MODES.items():
        label = "m-" + name.replace(", ", "-")
        files = appliance_files(model, audit, has_batch)
        made = appliance.push(secret, f"bench/{label}", files, timeout_s=1800)
        if made.status_code != 201:
            raise SystemExit(made.text)
        target = load.Target(
            port=appliance.port,
            path=f"/api/v1/models/bench/{label}/invoke",
            body=servers.PLAIN,
            headers=(("Authorization", f"Bearer {secret}"),),
            ca_file=str(appliance.ca_file()),
        )
        start_s, cold_s = restarted(appliance, target)
        result = Result(name=name, tls=True, cold_s=cold_s, start_s=start_s)

        def boxes(label: str = label) -> list[dict[str, Any]]:
            with appliance.admin() as admin:
                rows = admin.get("/admin/v1/sandboxes").json()["items"]
            return [row for row in rows if row.get("model") == label]

        def used() -> tuple[float, float]:
            assert appliance.process is not None
            front = cpu_s(appliance.process.pid)
            return front + sum(box["cpu_ms"] for box in boxes()) / 1000, front

        measured(result, target, options, used)
        assert appliance.process is not None
        inside = sum(box["rss_bytes"] for box in boxes()) / 2**20
        result.rss_mib = rss_mib(appliance.process.pid) + inside
        if options.layers:
            show_layers(name, appliance.process.pid, target, options)
        yield result


def show_layers(name: str, pid: int, target: load.Target, options: argparse.Namespace) -> None:
    """Print where the processor time of a call goes, if py-spy can be had."""
    with tempfile.TemporaryDirectory() as place:
        try:
            figures, found = layers.measured(
                pid, target, clients=16, seconds=max(options.seconds, 5), place=Path(place),
                environments=options.environments,
            )  # fmt: skip
        except servers.LeftOut as why:
            print(f"left out: layers: {why}", file=sys.stderr)
            return
    print(f"{name}: {figures.per_s:.0f} calls a second, 16 connections\n{layers.table(found)}\n")


def table(results: list[Result]) -> str:
    bare = {result.tls: result for result in results if result.name in _BARE}
    head = "| server | " + " | ".join(f"calls/s c{n} | x bare" for n in _clients(results))
    head += " | p50 / p99 ms c16 | CPU us c16 | first answer s | RSS MiB |"
    lines = [head, "|" + "---|" * head.count(" |")]
    for result in results:
        cells = [result.name]
        base = bare.get(result.tls) or next(iter(bare.values()), None)
        for place, run in enumerate(result.runs):
            ratio = f"{run['per_s'] / base.runs[place]['per_s']:.2f}" if base else "-"
            cells += [f"{run['per_s']:.0f}", ratio]
        middle = next((run for run in result.runs if run["clients"] == 16), result.runs[-1])
        cells += [f"{middle['p50_ms']:.1f} / {middle['p99_ms']:.1f}", f"{middle['cpu_us']:.0f}"]
        cells += [f"{result.cold_s:.1f}", f"{result.rss_mib:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("")
    lines.append("Ratios are to the bare server over the same transport: TLS for the appliance.")
    return "\n".join(lines)


_BARE = (servers.PEERS[0].name, servers.PEERS[1].name)


def _clients(results: list[Result]) -> list[int]:
    return [run["clients"] for run in results[0].runs] if results else []


def measure(options: argparse.Namespace) -> list[Result]:
    results: list[Result] = []
    options.environments.mkdir(parents=True, exist_ok=True)
    run = tempfile.TemporaryDirectory(prefix="ma-", dir=options.run_dir)
    with run, tempfile.TemporaryDirectory(prefix="serving-") as name:
        place = Path(name)
        model = place / "model.joblib"
        bare = servers.environment_for(servers.PEERS[0], options.environments)
        fit = [str(bare / "python"), "-c", servers.FIT, options.model, str(model)]
        subprocess.run(fit, check=True)
        # As an installed package has it; the caller may have turned it off.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = str(options.environments / "bytecode")
        appliance = RunningAppliance(place / "data", Path(run.name), **options.setting)
        appliance.initialise()
        appliance.start()
        try:
            secret = appliance.tenant("bench")
            leaf = place / "data/tls/leaf.pem"
            tls = Tls(ca=appliance.ca_file(), leaf=leaf)
            for peer in servers.PEERS:
                if options.only and not any(word in peer.name for word in options.only):
                    continue
                try:
                    results.append(measure_peer(peer, place, options, model, tls))
                except servers.LeftOut as why:
                    print(f"left out: {peer.name}: {why}", file=sys.stderr)
                else:
                    print(json.dumps(asdict(results[-1])), file=sys.stderr)
            for result in measure_appliance(appliance, secret, options, model):
                results.append(result)
                print(json.dumps(asdict(result)), file=sys.stderr)
        finally:
            appliance.close()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=("linear", "forest"), default="linear")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of each run")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each; the best counts")
    parser.add_argument("--clients", type=int, nargs="+", default=list(CLIENTS))
    parser.add_argument("--only", nargs="*", default=[], help="servers whose name has such a word")
    parser.add_argument(
        "--environments", type=Path, default=Path(tempfile.gettempdir()) / "serving-environments"
    )
    parser.add_argument("--run-dir", default="/dev/shm", help="a tmpfs for the run folder")
    parser.add_argument(
        "--layers", action="store_true", help="and where the appliance's processor time goes"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument(
        "--setting", action="append", default=[], help="section__field=value for the appliance"
    )
    options = parser.parse_args()
    options.setting = dict(pair.split("=", 1) for pair in options.setting)
    if len(CORES) > 1:
        os.sched_setaffinity(0, CORES[1:2])
    results = measure(options)
    if options.json:
        print(json.dumps([asdict(r) for r in results], indent=2))
    else:
        print(table(results), goals.table(results, options.model), sep="\n\n")


if __name__ == "__main__":
    os.umask(0o022)
    main()
