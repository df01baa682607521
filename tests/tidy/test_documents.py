"""What the documents say is true: settings, problems, events, promises, commands, the map."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec
import pytest

from appliance import config, errors, events, manifest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()
PROMISES = (ROOT / "SECURITY-PROMISES.md").read_text()

MANIFEST_PAGE = (ROOT / "docs/manifest.md").read_text()

TEST_ID = re.compile(r"`(tests/[\w/.-]+\.py)(?:::(\w+))?`")


def test_every_setting_says_what_it_means():
    _, explained = config.load(None, environ={})
    assert [e.key for e in explained if len(e.doc) < 10 or not e.doc.endswith(".")] == []


def test_every_problem_has_a_page_a_title_and_an_exit_code():
    bad = []
    codes = {0, 64, 65, 66, 69, 70, 73, 74, 75, 77, 78}
    for cls in errors.problem_classes():
        has_page = bool(cls.__doc__ and cls.__doc__.strip().split("\n")[0].endswith("."))
        if not (has_page and cls.title and cls.exit_code in codes):
            bad.append(cls.__name__)
    assert bad == []


def test_every_event_says_what_happened_and_has_a_kind_of_its_own():
    classes = events.event_classes()
    assert len(classes) == len({c.__name__ for c in events.Event.__subclasses__()})
    assert [
        k for k, c in classes.items() if not (c.__doc__ and re.match(r"^[a-z]+\.[a-z-]+$", k))
    ] == []


def promise_rows():
    rows = [line for line in PROMISES.splitlines() if re.match(r"^\| \d", line)]
    assert rows, "SECURITY-PROMISES.md has no rows"
    return rows


@pytest.mark.parametrize("row", promise_rows(), ids=lambda row: row.split("|")[1].strip())
def test_every_promise_names_a_test_that_exists(row):
    found = TEST_ID.findall(row)
    assert found, f"no test is named: {row}"
    for file, name in found:
        path = ROOT / file
        assert path.is_file(), f"{file} does not exist"
        if name:
            assert re.search(rf"def {name}\b", path.read_text()), f"{file} has no test {name}"


def test_the_files_named_in_the_documents_exist():
    named = re.compile(r"`((?:appliance|packaging|tests|examples|tui|\.ci)/[\w./-]+|[A-Z-]+\.md)`")
    missing = [
        name
        for text in (README, ARCHITECTURE, PROMISES)
        for name in named.findall(text)
        if not (ROOT / name).exists()
    ]
    assert missing == []


def page_of_table(name):
    """The whole page; for the tables written out in its example only their own lines."""
    shown = re.search(rf"(?ms)^\[{name}\].*?^(?=\[|```)", MANIFEST_PAGE) if name else None
    return shown[0] if shown else MANIFEST_PAGE


def test_every_key_of_a_manifest_and_its_default_is_on_its_page():
    tables = {name: page_of_table(name) for name in manifest.TABLES}
    missing = [
        f"{name}.{field.name}"
        for name, table in manifest.TABLES.items()
        for field in msgspec.structs.fields(table)
        if not re.search(rf"(?m)(`\[?{field.name}\]?`|^\[?{field.name}\b)", tables[name])
    ]
    assert missing == []
    for name in ("resources", "limits"):
        said = tomllib.loads(re.search(r"(?s)```toml\n(.*?)```", MANIFEST_PAGE)[1])[name]
        assert said == msgspec.structs.asdict(manifest.TABLES[name]()), name


def test_the_manifest_of_the_page_is_accepted():
    text = re.search(r"(?s)```toml\n(.*?)```", MANIFEST_PAGE)[1].encode()
    files = {manifest.FILE: text, "requirements.txt": b"six==1.17.0\n"}
    assert manifest.parse(files).tags == {"team": "risk"}


def test_every_place_the_documents_link_to_exists():
    pages = (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
    wrong = []
    for page in pages:
        text = page.read_text()
        titles = re.findall(r"(?m)^#+ (.+)$", text)
        anchors = {re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles}
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if target.startswith("#"):
                wrong += [] if target[1:] in anchors else [f"{page.name}: {target}"]
            elif "://" not in target and not (page.parent / target.split("#")[0]).exists():
                wrong.append(f"{page.name}: {target}")
    assert wrong == []


def test_every_section_of_the_readme_is_in_its_list():
    sections = re.findall(r"(?m)^## (.+)$", README)
    linked = set(re.findall(r"\]\(#([^)]+)\)", README))
    anchors = {re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in sections}
    assert anchors - linked == set()


def test_the_map_names_every_module_of_the_package():
    package = (ROOT / "appliance/__init__.py").read_text()
    modules = {p.stem for p in (ROOT / "appliance").glob("*.py")} - {"__init__"}
    modules |= {
        p.name for p in (ROOT / "appliance").iterdir() if p.is_dir() and list(p.glob("*.py"))
    }
    assert {m for m in modules if not re.search(rf"\b{m}\b", package)} == set()


def test_the_readme_names_the_two_commands_and_every_command_it_names_exists():
    assert "sudo packaging/quickstart" in README
    assert "packaging/test" in README
    from appliance.cli.root import COMMANDS

    used = set(re.findall(r"^\s*(?:\$ )?(?:sudo )?appliance ([a-z]+)", README, re.MULTILINE))
    assert used - set(COMMANDS) == set()


@pytest.mark.parametrize(
    "script",
    ["packaging/quickstart", "packaging/test", "packaging/check", "packaging/gpu-check", ".ci/run"],
)
def test_the_scripts_parse_and_can_be_run(script):
    path = ROOT / script
    assert path.stat().st_mode & 0o111
    done = subprocess.run(["bash", "-n", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_interpreter_is_new_enough():
    assert sys.version_info >= (3, 11)
