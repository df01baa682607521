"""What a sandbox gets next to its socket, and the kernel helpers of binding."""

from __future__ import annotations

import importlib.util
import marshal
import os
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.sandbox import kernel, link, scripts

OWN = f"python{sys.version_info[0]}.{sys.version_info[1]}"


def test_python_of_the_same_version_is_compiled_under_its_own_name() -> None:
    data = scripts.content("python_serve.py", OWN)
    assert data[:4] == importlib.util.MAGIC_NUMBER
    assert marshal.loads(data[16:]).co_filename == "/run/app/python_serve.py"


def test_a_compiled_runner_is_run_as_it_is(tmp_path: Path) -> None:
    for name in ("python_runner.py", "python_serve.py"):
        (tmp_path / name).write_bytes(scripts.content(name, OWN))
    command = [sys.executable, "-I", "-S", "-B", str(tmp_path / "python_runner.py"), "/no/socket"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "FileNotFoundError" in done.stderr


def test_other_versions_and_languages_get_the_text() -> None:
    for name, runtime in (("python_serve.py", "python2.7"), ("node_runner.js", OWN)):
        text = Path(scripts.__file__).parent.joinpath("guest", name).read_bytes()
        assert scripts.content(name, runtime) == text


def test_module_names_of_a_guest_are_cleaned() -> None:
    body = (
        b"sklearn\nsklearn.tree\nsklearn\n../x\nos; import y\n\n.a\nb.\n1a\n\xff\nn\xc3\xa4me\n"
        + (b"m." * 20 + b"m\n")
    )
    assert link.modules_from_body(body) == ("sklearn", "sklearn.tree")
    many = "\n".join(f"m{n}" for n in range(10_000)).encode()
    assert len(link.modules_from_body(many)) == link.NAMES_MAX


def test_descendants_are_found_whoever_made_them() -> None:
    script = (
        "import subprocess, sys, time; c = [sys.executable, '-c', 'import time; time.sleep(9)']\n"
    )
    script += "p = [subprocess.Popen(c) for _ in range(2)]; print(p[0].pid, p[1].pid, flush=True)\n"
    script += "time.sleep(9)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        made = {int(word) for word in process.stdout.readline().split()}
        assert set(kernel.descendants(process.pid)) == made
        assert process.pid in kernel.descendants(os.getpid())
        for pid in (*made, process.pid):
            os.kill(pid, 9)
    assert kernel.descendants(process.pid) == []


def cgroup(tmp_path: Path, line: str) -> Path:
    (tmp_path / "proc" / "7").mkdir(parents=True)
    (tmp_path / "proc" / "7" / "cgroup").write_text(line)
    folder = tmp_path / "root" / "unit" / "container"
    folder.mkdir(parents=True)
    (folder / "memory.max").write_text("1\n")
    return folder / "memory.max"


def test_memory_max_of_a_container_is_set_and_looked_at(tmp_path: Path) -> None:
    file = cgroup(tmp_path, "0::/unit/container\n")
    where = {"proc": str(tmp_path / "proc"), "root": str(tmp_path / "root")}
    kernel.set_memory_max(7, 4096 * 100, **where)
    assert file.read_text() == "409600\n"
    file.unlink()
    file.symlink_to("/dev/null")  # takes what is written and keeps nothing
    with pytest.raises(OSError, match=r"memory\.max is"):
        kernel.set_memory_max(7, 4096 * 100, **where)


@pytest.mark.parametrize("line", ["0::/\n", "4:memory:/x\n", ""])
def test_a_process_without_a_cgroup_of_its_own_is_refused(tmp_path: Path, line: str) -> None:
    cgroup(tmp_path, line)
    with pytest.raises(OSError, match="no cgroup of its own"):
        kernel.set_memory_max(7, 4096, proc=str(tmp_path / "proc"), root=str(tmp_path / "root"))
