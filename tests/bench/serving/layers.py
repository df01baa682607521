"""Where the appliance's own processor time goes in a warm call, by thread and layer.

py-spy looks at the running process from outside, without stopping it; what it sees of a thread is
scaled to the processor time the kernel counted for that thread.
"""

from __future__ import annotations

import collections
import re
import subprocess
import threading
from pathlib import Path

import load
import servers

PY_SPY = servers.Peer(name="py-spy", needs=("py-spy",), command=lambda *_: [], path="", body=b"")
LAYERS = (
    ("HTTP framing", r"appliance/serve/"),
    ("addresses, keys, rights, headers", r"appliance/(api|auth|wire|policy|room)"),
    ("the call: intent, outcome, version", r"appliance/(invoke|inputs|provision|routing|traffic)"),
    ("whose turn, which sandbox", r"appliance/sandbox/(pool|waiting|lease|joining|nesting|keeper)"),
    ("frames to and from the sandbox", r"appliance/sandbox/"),
    ("records: encoded, digested, queued", r"appliance/store/(ledger|appended|keyring)"),
    ("figures, drift, canaries", r"appliance/(metrics|watch|drift|canary|shadow|samples)"),
    ("the rest of ours", r"appliance/"),
)
LOOP = "event loop, sockets and TLS"
_FRAME = re.compile(r"\(([^():]+\.py):\d+\)$")
_PERIODS = 200


def thread_s(pid: int) -> dict[int, float]:
    """Processor seconds of each thread, by its kernel id (schedstat counts nanoseconds)."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            found[int(task.name)] = int((task / "schedstat").read_text().split()[0]) / 1e9
        except OSError:
            continue
    return found


def layer_of(stack: list[str]) -> str:
    """The layer of the innermost frame that is ours."""
    for frame in reversed(stack):
        match = _FRAME.search(frame)
        for name, pattern in LAYERS:
            if match and re.search(pattern, match.group(1)):
                return name
    return LOOP


def measured(
    pid: int, target: load.Target, *, clients: int, seconds: float, place: Path, environments: Path
) -> tuple[load.Figures, dict[tuple[str, str], float]]:
    """Figures of a run, and microseconds a call by (thread, layer).

    Raises:
        servers.LeftOut: py-spy cannot be had, or may not look.
    """
    spy = servers.environment_for(PY_SPY, environments) / "py-spy"
    out = place / "stacks"
    command = [str(spy), "record", "--pid", str(pid), "--duration", str(int(seconds)),
               "--rate", str(_PERIODS), "--format", "raw", "--threads", "--gil", "--nonblocking",
               "--output", str(out)]  # fmt: skip
    looking: list[subprocess.CompletedProcess[str]] = []

    def look() -> None:
        looking.append(subprocess.run(command, capture_output=True, text=True, check=False))

    watcher = threading.Thread(target=look)
    before = thread_s(pid)
    watcher.start()
    figures = load.run(target, clients=clients, seconds=seconds)
    used = {task: spent - before.get(task, 0.0) for task, spent in thread_s(pid).items()}
    watcher.join()
    if looking[0].returncode or not out.exists():
        raise servers.LeftOut(f"py-spy: {looking[0].stderr.strip().splitlines()[-1:]}")
    return figures, spread(out.read_text().splitlines(), used, figures.calls)


def spread(lines: list[str], used: dict[int, float], calls: int) -> dict[tuple[str, str], float]:
    """Each thread's processor time a call in microseconds, divided as its samples are."""
    samples: dict[int, collections.Counter[str]] = {}
    names: dict[int, str] = {}
    for line in lines:
        stack, _, count = line.rpartition(" ")
        thread, *frames = stack.split(";")
        match = re.fullmatch(r"thread \((\d+)\)(?:: (.*))?", thread)
        if match is None or not frames:
            continue
        task = int(match.group(1))
        names[task] = match.group(2) or "thread"
        samples.setdefault(task, collections.Counter())[layer_of(frames)] += int(count)
    found: dict[tuple[str, str], float] = collections.defaultdict(float)
    for task, spent in used.items():
        layers, each_us = samples.get(task), 1e6 * spent / calls
        if layers is None:
            found["other threads", ""] += each_us
            continue
        for layer, seen in layers.items():
            is_main = names[task] == "MainThread"
            where = layer if is_main else ""
            thread = "main" if is_main else names[task]
            found[thread, where] += each_us * seen / layers.total()
    return dict(found)


def table(found: dict[tuple[str, str], float]) -> str:
    """The same as Markdown, the most expensive first."""
    lines = ["| thread | what it does | us a call |", "|---|---|---|"]
    order = sorted(found.items(), key=lambda item: (item[0][0] != "main", -item[1]))
    lines += [
        f"| {thread} | {layer} | {spent:.0f} |" for (thread, layer), spent in order if spent >= 1
    ]
    lines.append(f"| all | | {sum(found.values()):.0f} |")
    return "\n".join(lines)
