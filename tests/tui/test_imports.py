"""The console stands alone and starts fast."""

from __future__ import annotations

import ast
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "tui").rglob("*.py"))
START_S = 0.7


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_nothing_of_the_appliance_is_imported(file):
    for node in ast.walk(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        assert not [n for n in names if n.split(".")[0] == "appliance"]


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_files_are_short_and_say_what_they_own(file):
    source = file.read_text()
    assert len(source.splitlines()) <= 600
    doc = ast.get_docstring(ast.parse(source)) or ""
    assert all(word in doc for word in ("Owns:", "Never:", "Read next:"))


def test_the_command_line_does_not_load_the_console():
    code = (
        "import sys, appliance.cli.tui; sys.exit('textual' in sys.modules or 'tui' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_console_is_loaded_in_time():
    code = "import tui.app, tui.screens.dashboard, httpx"
    best = 9.0
    for _ in range(5):  # processor time: other work on the machine is not the console's
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert best < START_S, f"{best:.2f} s"


def test_without_a_terminal_it_says_so():
    done = subprocess.run(
        [sys.executable, "-m", "tui", "--socket", "/nowhere"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 64
    assert "needs a terminal" in done.stderr
