"""The command line as a whole: help, exit codes, problems, and where things are printed."""

import json

import click
import httpx
import pytest

from appliance import cli
from appliance.cli.audit import _short
from appliance.cli.client import problem_from_document, problem_from_reply
from appliance.cli.output import Output, clean
from appliance.cli.root import COMMANDS, Root
from appliance.errors import FieldError, GuestError, ManifestInvalid, problem_classes


def every_command():
    """Every command with the words that name it, ``(("model", "push"), Command)``."""
    root = Root()
    ctx = click.Context(root)

    def walk(words, command):
        yield words, command
        if isinstance(command, click.Group):
            for name in command.list_commands(ctx):
                yield from walk((*words, name), command.get_command(ctx, name))

    for name in root.list_commands(ctx):
        yield from walk((name,), root.get_command(ctx, name))


ALL = list(every_command())
IDS = [" ".join(words) for words, _ in ALL]


@pytest.mark.parametrize(("words", "command"), ALL, ids=IDS)
def test_every_command_has_help_that_starts_with_its_examples(words, command, capsys):
    if isinstance(command, click.Group) or command.examples:
        assert all("appliance " in line for line in command.examples)
    assert cli.main([*words, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Examples:"), f"{' '.join(words)} has no example"
    assert "Usage: appliance" in out
    assert command.help


def test_the_verbs_of_the_product_are_there():
    wanted = "init unseal seal serve status doctor tenant key model alias audit backup config tui"
    assert set(wanted.split()) <= set(COMMANDS)
    names = {" ".join(words) for words, _ in ALL}
    assert {"model push", "model list", "model show", "model call", "model rm"} <= names
    assert {"audit list", "audit verify", "audit prove", "config check"} <= names


def test_version_is_printed_on_stdout(capsys):
    assert cli.main(["--version"]) == 0
    fast = capsys.readouterr().out
    assert fast.startswith("appliance ")
    assert cli.main(["--json", "--version"]) == 0
    assert capsys.readouterr().out == fast


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["status", "--nonsense"],
        ["model", "push"],
        ["model", "call", "no-slash", "--data", "{}"],
        ["model", "call", "a/b:1@live", "--data", "{}"],
        ["key", "create", "only-a-name"],
        ["alias", "set", "a/b", "live", "zero"],
    ],
)
def test_a_mistyped_command_line_ends_with_64_and_says_where_help_is(arguments, capsys):
    assert cli.main(arguments) == 64
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert "--help" in captured.err


def test_a_mistyped_verb_gets_the_nearest_one(capsys):
    cli.main(["modle"])
    assert "Did you mean model" in capsys.readouterr().err
    cli.main(["audit", "verfy"])
    assert "Did you mean verify" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["before", "after"])
def test_without_an_appliance_the_command_that_starts_one_is_named(place, tmp_path, capsys):
    options = ["--socket", str(tmp_path / "admin.sock")]
    arguments = [*options, "status"] if place == "before" else ["status", *options]
    assert cli.main(arguments) == 69
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "No appliance answers at" in captured.err
    assert "hint: appliance serve" in captured.err


def test_with_json_the_problem_is_a_problem_document_on_stderr(tmp_path, capsys):
    assert cli.main(["--json", "status", "--socket", str(tmp_path / "none")]) == 69
    captured = capsys.readouterr()
    document = json.loads(captured.err)
    assert document["code"] == "not-running"
    assert document["hint"] == "appliance serve"
    assert captured.out == ""


def test_an_unknown_setting_is_named_with_file_and_line_and_ends_with_78(tmp_path, capsys):
    file = tmp_path / "bad.toml"
    file.write_text("[http]\nport = 1\nprot = 2\n")
    assert cli.main(["--config", str(file), "config", "check"]) == 78
    assert f"{file}:3" in capsys.readouterr().err


def test_config_explain_shows_value_and_origin(tmp_path, capsys):
    file = tmp_path / "good.toml"
    file.write_text("[http]\nport = 9443\n")
    assert cli.main(["--json", "--config", str(file), "config", "explain", "http.port"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["items"]
    assert (row["value"], row["default"], row["origin"]) == (9443, 8443, f"{file}:2")


@pytest.mark.parametrize("cls", list(problem_classes()), ids=lambda cls: cls.slug)
def test_a_problem_of_the_server_ends_with_its_own_exit_code(cls):
    if cls.__subclasses__():
        pytest.skip("a family, not a problem")
    document = {"code": cls.slug, "detail": "why", "hint": "do", "instance": "req_1"}
    problem = problem_from_document(document, status=cls.status)
    assert type(problem) is cls
    assert problem.exit_code == cls.exit_code
    assert (problem.detail, problem.hint) == ("why", "do")


def test_a_problem_shows_fields_stderr_hint_and_request_id(capsys):
    document = {
        "code": "model-raised",
        "detail": "The model raised ValueError.",
        "instance": "req_7",
        "stderr": ["Traceback", "ValueError: no"],
    }
    problem = problem_from_document(document)
    assert isinstance(problem, GuestError)
    Output(json=False, quiet=False).problem(problem)
    err = capsys.readouterr().err
    assert "ValueError: no" in err
    assert err.endswith("request id: req_7\n")
    invalid = ManifestInvalid(
        "bad", fields=(FieldError(pointer="appliance.toml:3", detail="unknown key"),)
    )
    Output(json=False, quiet=False).problem(invalid)
    assert "appliance.toml:3: unknown key" in capsys.readouterr().err


@pytest.mark.parametrize("is_json", [False, True])
def test_what_a_model_that_did_not_load_printed_is_shown(is_json, capsys):
    document = {
        "code": "load-failed",
        "detail": "The model was not ready after 3000 ms.",
        "stderr": ["waiting for the database"],
    }
    Output(json=is_json, quiet=False).problem(problem_from_document(document))
    assert "waiting for the database" in capsys.readouterr().err


def test_a_place_that_the_problem_names_already_is_not_said_twice(capsys):
    where = FieldError(pointer="appliance.toml:3", detail="requirements: not a pin")
    invalid = ManifestInvalid("appliance.toml:3: requirements: not a pin.", fields=(where,))
    Output(json=False, quiet=False).problem(invalid)
    assert capsys.readouterr().err.count("not a pin") == 1


def test_help_says_whole_sentences(capsys):
    for words, command in ALL:
        if isinstance(command, click.Group):
            assert cli.main([*words, "--help"]) == 0
            assert "..." not in capsys.readouterr().out.partition("Commands:")[2], words


@pytest.mark.parametrize(
    "noun", ["model", "runtime", "egress", "tenant", "secret", "alias", "route"]
)
def test_what_removes_is_called_rm_everywhere_and_remove_is_understood(noun, capsys):
    assert "remove" not in {words[-1] for words, _ in ALL}
    assert cli.main([noun, "remove", "--help"]) == 0
    assert f"appliance {noun} rm" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["demo/x"], ["demo/x:1", "--version", "2"], ["demo/x@live"]])
def test_a_reservation_names_one_version(arguments, tmp_path, capsys):
    assert cli.main(["model", "reserve", *arguments, "--socket", str(tmp_path / "s")]) == 64
    assert "TENANT/NAME:VERSION" in capsys.readouterr().err


def test_a_model_that_is_not_there_leads_to_the_list_of_those_that_are():
    request = httpx.Request("POST", "https://localhost/api/v1/models/demo/nope/invoke")
    reply = httpx.Response(404, json={"code": "not-found", "detail": "No."}, request=request)
    assert problem_from_reply(reply).hint == "appliance model list demo"


def test_an_event_is_told_in_words_without_ids_and_times():
    event = {"alias": {"model_id": "mod_1", "name": "live", "version": 3, "set_ns": 17, "by": ""}}
    assert _short(event) == "name live, version 3"
    assert _short({"slots": ["key-file", "passphrase"]}) == "slots key-file passphrase"
    assert len(_short({"reason": "x" * 100})) == 72
    assert _short(None) == "-"


def test_an_error_is_one_line_even_where_choices_are_listed(capsys):
    assert cli.main(["tenant", "isolate", "demo"]) == 64
    assert "standard, gvisor" in capsys.readouterr().err.splitlines()[0]


def test_root_does_not_make_the_data_folder_that_a_runtime_is_built_in(tmp_path, capsys):
    import os

    if os.geteuid() != 0:
        pytest.skip("needs to be root")
    folder = tmp_path / "none"
    assert cli.main(["runtime", "build", "python3.11", "--data-dir", str(folder)]) == 77
    assert "runuser -u appliance" in capsys.readouterr().err
    assert not folder.exists()


def test_control_characters_of_others_never_reach_the_terminal():
    assert "\x1b" not in clean("\x1b[31mred\x1b[0m")
    assert "\u202e" not in clean("evil\u202etxt")
    assert clean("a\tb\nc") == "a\tb\nc"


def test_quiet_silences_talk_but_not_data(capsys):
    output = Output(json=False, quiet=True)
    output.say("talk")
    output.data({"x": 1}, "data")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("data\n", "")


def test_progress_outside_a_terminal_is_plain_lines(capsys):
    with Output(json=False, quiet=False).progress("build") as advance:
        advance(0.1, "one")
        advance(0.2, "one")
        advance(0.9, "two")
    captured = capsys.readouterr()
    assert captured.err == "  one\n  two\n"
    assert captured.out == ""


def test_a_destructive_command_without_a_person_asks_for_force(tmp_path, capsys):
    assert cli.main(["model", "rm", "demo/x", "--socket", str(tmp_path / "s")]) == 65
    assert "--force" in capsys.readouterr().err


def test_a_passphrase_is_never_an_argument():
    for words, command in ALL:
        for parameter in command.params:
            assert "--passphrase" not in parameter.opts, " ".join(words)


def test_init_without_terminal_file_or_key_says_what_to_give(tmp_path, capsys):
    assert cli.main(["init", "--data-dir", str(tmp_path / "d")]) == 78
    assert "--passphrase-file" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()


def test_a_data_folder_of_another_user_is_not_touched(tmp_path, capsys):
    import os

    if os.geteuid() != 0:
        pytest.skip("needs root to make a folder of another user")
    os.chown(tmp_path, 1, 1)
    code = cli.main(["init", "--data-dir", str(tmp_path), "--key-file", str(tmp_path / "k")])
    assert code == 77
    assert "runuser -u" in capsys.readouterr().err
