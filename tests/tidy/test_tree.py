"""The shape of the tree: length, docstrings, vocabulary."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINES_MAX = 600
FUNCTION_LINES_MAX = 60


def python_files(*folders):
    return sorted(
        path
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        if "__pycache__" not in path.parts
    )


SOURCES = python_files("appliance", "tui")
EVERYTHING = [*SOURCES, *python_files("tests", "examples", "packaging")]


def name_of(path):
    return str(path.relative_to(ROOT))


def functions(tree):
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def docstring_lines(node):
    first = node.body[0]
    is_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    if is_text and isinstance(first.value.value, str):
        return first.end_lineno - first.lineno + 1
    return 0


def test_no_file_is_longer_than_600_lines():
    lengths = {name_of(p): len(p.read_text().splitlines()) for p in EVERYTHING}
    assert {n: length for n, length in lengths.items() if length > LINES_MAX} == {}


def test_no_function_is_longer_than_60_lines_without_its_docstring():
    long = {}
    for path in SOURCES:
        for node in functions(ast.parse(path.read_text())):
            length = node.end_lineno - node.lineno + 1 - docstring_lines(node)
            if length > FUNCTION_LINES_MAX:
                long[f"{name_of(path)}:{node.lineno} {node.name}"] = length
    assert long == {}


@pytest.mark.parametrize("path", python_files("appliance"), ids=name_of)
def test_a_module_says_what_it_owns_what_it_never_does_and_where_to_read_on(path):
    if path == ROOT / "appliance/__init__.py":
        pytest.skip("the map of the package")
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    missing = [word for word in ("Owns:", "Never:", "Read next:") if word not in docstring]
    assert missing == [], f"{name_of(path)}: the module docstring lacks {missing}"


# The vocabulary of ARCHITECTURE.md, as far as a banned word has no innocent meaning in Python.
BANNED_NAMES = re.compile(
    r"(^|_)(org|organisation|organization|kek|dek|provenance|rollout|lambda_function)(_|$)",
    re.IGNORECASE,
)


def test_banned_words_are_not_used_as_names():
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(node, "name", None) or getattr(node, "attr", None)
            name = name or getattr(node, "id", None) or getattr(node, "arg", None)
            if isinstance(name, str) and BANNED_NAMES.search(name):
                found.append(f"{name_of(path)}:{node.lineno} {name}")
    assert found == []


# Verbs that act and tell whether they did, and words that are questions by themselves.
ACTS = (
    "stop", "remove", "wait", "ensure", "freeze", "prepare", "shed", "alive", "exist", "may",
    "pids",
)  # fmt: skip


def test_public_functions_that_answer_yes_or_no_are_named_so():
    found = []
    for path in SOURCES:
        if "guest" in path.parts:
            continue
        for node in functions(ast.parse(path.read_text())):
            returns_bool = isinstance(node.returns, ast.Name) and node.returns.id == "bool"
            is_named = node.name.startswith(("_", "is_", "has_", "can_", "wants_", *ACTS))
            if returns_bool and not is_named:
                found.append(f"{name_of(path)}:{node.lineno} {node.name}")
    assert found == []


def test_no_module_is_named_like_one_of_the_standard_library():
    import sys

    names = {p.stem for p in (ROOT / "appliance").glob("*.py")} - {"__init__", "__main__"}
    assert names & set(sys.stdlib_module_names) == set()


def test_the_packaging_folder_never_becomes_a_python_package():
    assert not (ROOT / "packaging/__init__.py").exists()


def test_tests_are_no_package_and_use_no_mocks_outside_fault():
    assert list((ROOT / "tests").rglob("__init__.py")) == []
    mocks = re.compile(r"unittest\.mock|mock\.patch|monkeypatch\.setattr\((?!\w+, \"[A-Z_]+\")")
    found = [
        name_of(path)
        for path in python_files("tests")
        if "fault" not in path.parts and path.name != Path(__file__).name
        if mocks.search(path.read_text())
    ]
    assert found == []


def test_nobody_but_the_command_line_prints():
    found = []
    for path in python_files("appliance"):
        relative = path.relative_to(ROOT / "appliance").as_posix()
        if relative.startswith(("cli/", "sandbox/guest/")):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print":
                found.append(f"{relative}:{node.lineno}")
    assert [f for f in found if not f.startswith("store/verify.py")] == []
