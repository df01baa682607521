"""Settings come from file, environment and flags, and every mistake is named with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance import config
from appliance.errors import ConfigInvalid


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "appliance.toml"


def test_flags_beat_the_environment_which_beats_the_file(file: Path) -> None:
    file.write_text("[http]\nport = 1\ndrain_timeout_s = 7\n")
    settings, explained = config.load(
        file, environ={"APPLIANCE__HTTP__PORT": "2"}, flags={"http.host": "::1"}
    )
    assert (settings.http.port, settings.http.drain_timeout_s) == (2, 7)
    assert settings.http.host == "::1"
    origins = {row.key: row.origin for row in explained}
    assert origins["http.port"] == "env APPLIANCE__HTTP__PORT"
    assert origins["http.drain_timeout_s"] == f"{file}:3"
    assert origins["http.host"] == "flag"
    assert origins["paths.data_dir"] == "default"


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("[http]\n\nprot = 1\n", 3, "http.prot"),
        ("[http]\nport = 99999\n", 2, "http.port"),
        ('[http]\nport = "a"\n', 2, "http.port"),
        ("[htpp]\nport = 1\n", 2, "htpp.port"),
        ("x = 1\n", 1, "x"),
    ],
)
def test_a_mistake_names_file_line_and_key(file: Path, text: str, line: int, key: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigInvalid) as caught:
        config.load(file, environ={})
    assert f"{file}:{line}" in caught.value.detail
    assert key in caught.value.detail


@pytest.mark.parametrize("text", ["[", "a = ", "\x00"])
def test_text_that_is_not_toml_is_named(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigInvalid, match="not valid TOML"):
        config.load(file, environ={})


def test_a_variable_with_an_unknown_key_or_a_bad_value_is_named() -> None:
    with pytest.raises(ConfigInvalid, match="APPLIANCE__HTTP__PROT"):
        config.load(environ={"APPLIANCE__HTTP__PROT": "1"})
    with pytest.raises(ConfigInvalid, match="APPLIANCE__HTTP__PORT"):
        config.load(environ={"APPLIANCE__HTTP__PORT": "many"})


def test_lists_in_variables_are_comma_separated() -> None:
    settings, _ = config.load(
        environ={"APPLIANCE__ADMIN__UIDS": "5, 6", "APPLIANCE__HTTP__NAMES": "a,b"}
    )
    assert settings.admin.uids == (5, 6)
    assert settings.http.names == ("a", "b")


def test_every_setting_says_what_it_means() -> None:
    _, explained = config.load(environ={})
    assert all(row.doc.endswith(".") for row in explained)


def test_a_missing_file_that_was_asked_for_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="cannot be read"):
        config.load(tmp_path / "none.toml", environ={})


FOLDERS = """[http]
port = 8443

[batches.folders.lake]
path = "/srv/lake"
tenants = ["acme", "globex"]

[batches.folders.out]
path = "/srv/out"
writable = true
"""


def test_folders_for_tables_are_read_with_who_may_use_them(tmp_path: Path) -> None:
    file = tmp_path / "appliance.toml"
    file.write_text(FOLDERS)
    settings, explained = config.load(file, environ={})
    assert settings.batches.folders == {
        "lake": config.Folder(path="/srv/lake", tenants=("acme", "globex")),
        "out": config.Folder(path="/srv/out", writable=True),
    }
    (shown,) = [one for one in explained if one.key == "batches.folders"]
    assert shown.origin == f"{file}:4"
    assert shown.value["out"] == {"path": "/srv/out", "tenants": (), "writable": True}
    one = '{"lake": {"path": "/srv/lake", "tenants": ["*"]}}'
    settings, _ = config.load(file, environ={"APPLIANCE__BATCHES__FOLDERS": one})
    assert list(settings.batches.folders) == ["lake"]


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ('lake = {path = "srv/lake"}', "'srv/lake' is no absolute path"),
        ('"La ke" = {path = "/srv/lake"}', "small letters"),
        ('lake = {path = "/var/lib/appliance/blobs"}', "are not apart"),
        ('lake = {path = "/var/lib/../lib"}', "are not apart"),
        ('lake = {path = "/"}', "are not apart"),
        ('lake = {path = "/srv/lake", wirtable = true}', "unknown field `wirtable`"),
        ("lake = {}", "missing required field `path`"),
        ('lake = "/srv/lake"', "Expected `object`"),
        ('lake = {path = "/srv/lake", tenants = "acme"}', "Expected `array`"),
    ],
)
def test_a_folder_without_a_place_of_its_own_is_refused(
    tmp_path: Path, declared: str, said: str
) -> None:
    file = tmp_path / "appliance.toml"
    file.write_text(f"[batches.folders]\n{declared}\n")
    with pytest.raises(ConfigInvalid) as refused:
        config.load(file, environ={})
    assert said in refused.value.detail
    assert f"{file}:1" in refused.value.detail
    with pytest.raises(ConfigInvalid):
        config.load(environ={"APPLIANCE__BATCHES__FOLDERS": "lake=/srv/lake"})
