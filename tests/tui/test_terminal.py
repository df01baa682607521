"""The console in a real terminal, against a real server that dies and comes back.

Owns: one tmux session on a private socket; waits poll the captured text.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STUB = Path(__file__).parent / "stub_server.py"
TIMEOUT_S = 30.0

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")


class Terminal:
    """A tmux session running the console, and the stub server it talks to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = f"tui-{os.getpid()}-{folder.name}"  # a server each: one may still be ending
        self.socket = folder / "admin.sock"
        self.server: subprocess.Popen[bytes] | None = None
        # tmux starts commands with the user's own shell, which a service user has none of.
        own = {"PYTHONPATH": str(ROOT), "LANG": "C.UTF-8", "SHELL": "/bin/sh"}
        self.environment = {**os.environ, **own}

    def tmux(self, *words: str) -> str:
        done = subprocess.run(
            ["tmux", "-L", self.name, "-f", os.devnull, *words],
            capture_output=True,
            text=True,
            check=False,
            env=self.environment,
        )
        return done.stdout

    def start_server(self, state: str = "ready") -> None:
        self.socket.unlink(missing_ok=True)
        self.server = subprocess.Popen(
            [sys.executable, str(STUB), str(self.socket), state], env=self.environment
        )
        deadline = time.monotonic() + TIMEOUT_S
        while not self.socket.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def kill_server(self) -> None:
        if self.server is not None:
            self.server.kill()
            self.server.wait()
            self.server = None

    def open(self, *flags: str, prefix: str = "", size: tuple[int, int] = (80, 24)) -> None:
        command = f"{prefix} {sys.executable} -m tui --socket {self.socket} {' '.join(flags)}"
        self.tmux(
            "new-session", "-d", "-s", "a", "-x", str(size[0]), "-y", str(size[1]),
            "-c", str(ROOT), f"{command}; echo LEFT $?; sleep 60",
        )  # fmt: skip

    def screen(self, *flags: str) -> str:
        return self.tmux("capture-pane", "-p", "-t", "a", *flags)

    def keys(self, *names: str) -> None:
        self.tmux("send-keys", "-t", "a", *names)

    def until(self, test: Callable[[str], bool]) -> str:
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            shown = self.screen()
            if test(shown):
                return shown
            assert time.monotonic() < deadline, shown
            time.sleep(0.1)

    def wait(self, words: str) -> str:
        return self.until(lambda shown: words in shown)

    def close(self) -> None:
        self.tmux("kill-server")
        self.kill_server()


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path)
    yield terminal
    terminal.close()


def test_a_server_that_dies_and_comes_back_is_followed(terminal: Terminal) -> None:
    terminal.start_server()
    terminal.open()
    terminal.wait("LIVE")
    terminal.keys(":", "m", "Enter")
    shown = terminal.wait("appliance > models")
    assert max(len(line) for line in shown.splitlines()) <= 80
    terminal.wait("fraud0")
    terminal.kill_server()
    shown = terminal.wait("DISCONNECTED")
    assert "fraud0" in shown
    terminal.start_server()
    terminal.wait("LIVE")
    terminal.kill_server()
    terminal.start_server("sealed")
    terminal.wait("Unseal with")
    terminal.keys("-l", "correct horse battery")
    terminal.until(lambda shown: shown.count("•") >= 10)
    assert "correct" not in terminal.screen()
    terminal.keys("Enter")
    terminal.wait("appliance > models")
    terminal.keys("Escape")
    terminal.wait("appliance > dashboard")
    terminal.keys("q")
    terminal.wait("LEFT 0")


def test_an_empty_machine_is_set_up_from_the_terminal(terminal: Terminal) -> None:
    terminal.start_server("uninitialised")
    terminal.open()
    terminal.wait("preflight")
    terminal.keys("Enter")
    terminal.wait("Once more")
    for key in ("Enter", "Enter"):
        terminal.keys("-l", "correct horse battery")
        terminal.keys(key)
    terminal.wait("First tenant")
    terminal.keys("-l", "risk")
    terminal.keys("Enter")
    shown = terminal.wait("mak_")
    secret = next(word for word in shown.split() if word.startswith("mak_"))
    terminal.keys("-l", secret[-4:])
    terminal.keys("Enter")
    shown = terminal.wait("appliance > dashboard")
    assert "mak_" not in terminal.screen()


def test_no_colour_is_emitted_when_none_is_wanted(terminal: Terminal) -> None:
    terminal.start_server()
    terminal.open("--readonly", prefix="env NO_COLOR=1")
    terminal.wait("LIVE")
    terminal.keys(":", "t", "Enter")
    terminal.wait("appliance > tenants")
    with_codes = terminal.screen("-e")
    assert "\x1b[" in with_codes
    codes = [c for part in with_codes.split("\x1b[")[1:] for c in part.split("m")[0].split(";")]
    coloured = {*range(30, 39), *range(40, 49), *range(90, 108)}
    assert not [c for c in codes if c.isdigit() and int(c) in coloured]
    terminal.keys("n")
    terminal.wait("--readonly")


def test_small_and_old_terminals_are_served(terminal: Terminal) -> None:
    terminal.start_server()
    terminal.open(prefix="env TERM=vt100", size=(60, 15))
    terminal.wait("LIVE")
    terminal.tmux("resize-window", "-t", "a", "-x", "40", "-y", "10")
    terminal.keys(":", "h", "Enter")
    terminal.wait("health")
    terminal.tmux("resize-window", "-t", "a", "-x", "120", "-y", "40")
    terminal.wait("REMEDY")
