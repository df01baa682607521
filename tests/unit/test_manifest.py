"""A manifest error names the file, the key and the line; a good one fills in every default."""

from __future__ import annotations

import time

import pytest

from appliance import config, manifest, provision
from appliance.errors import ManifestInvalid
from appliance.records import Artifact, Batching, Blob, Version
from appliance.sandbox.runtimes import RUNTIMES

GOOD = b"""\
runtime = "python3.11"
entry = "model:Model"
requirements = ["numpy==2.0.0"]

[resources]
memory_mb = 256

[lineage]
data = ["wine 2020"]

[tags]
team = "risk"
"""


def parse(text: bytes, **files: bytes) -> object:
    return manifest.parse({"appliance.toml": text, **files})


def test_pipeline_is_no_runtime_even_where_an_image_is_called_that() -> None:
    text = b'runtime = "pipeline"\n'
    for imported in ((), ("pipeline",)):
        with pytest.raises(ManifestInvalid, match="a pipeline is a folder with") as refused:
            manifest.parse({"appliance.toml": text}, imported=imported)
        assert refused.value.fields[0].pointer == "appliance.toml:1"


def test_units_are_converted_and_defaults_filled_in() -> None:
    found = manifest.parse({"appliance.toml": GOOD})
    assert found.resources.memory_bytes == 256 * 1024 * 1024
    assert found.resources.pids == 64
    assert found.limits.invoke_timeout_ms == 30_000
    assert found.requirements == ("numpy==2.0.0",)
    assert found.lineage.data == ("wine 2020",)
    assert found.tags == {"team": "risk"}


def test_gpus_and_their_memory_are_declared_per_sandbox() -> None:
    text = GOOD.replace(b"memory_mb = 256", b"gpus = 2\ngpu_memory_mb = 8000")
    found = manifest.parse({"appliance.toml": text}).resources
    assert (found.gpus, found.gpu_memory_bytes) == (2, 8000 * 1024 * 1024)
    assert manifest.parse({"appliance.toml": GOOD}).resources.gpus == 0


def test_calls_are_joined_only_where_a_table_says_so() -> None:
    assert manifest.parse({"appliance.toml": GOOD}).batch is None
    found = manifest.parse({"appliance.toml": GOOD + b"\n[batch]\n"}).batch
    assert found == Batching(axis=0, max_rows=64, max_bytes=4 * 1024 * 1024)
    text = GOOD + b'\n[batch]\naxis = 1\nmax_queue_delay_us = 0\ninputs = ["rows"]\n'
    found = manifest.parse({"appliance.toml": text}).batch
    assert found == Batching(axis=1, max_queue_delay_us=0, inputs=("rows",))


def test_an_image_does_not_have_its_calls_joined() -> None:
    text = b'runtime = "triton"\n\n[batch]\nmax_rows = 8\n'
    with pytest.raises(ManifestInvalid) as caught:
        manifest.parse({"appliance.toml": text}, ["triton"])
    assert "appliance.toml:3: batch:" in caught.value.detail


def test_models_of_every_language_may_declare_calls_and_images_may_not() -> None:
    for name, language in RUNTIMES.items():
        if not language.is_compiler:
            text = f'runtime = "{name}"\nentry = "{language.entry_example}"\ncalls = ["a@live"]\n'
            assert manifest.parse({"appliance.toml": text.encode()}).calls == ("a@live",)
    with pytest.raises(ManifestInvalid, match="triton makes no calls; these do: cpp, java17") as no:
        manifest.parse({"appliance.toml": b'runtime = "triton"\ncalls = ["a"]\n'}, ["triton"])
    assert no.value.fields[0].pointer == "appliance.toml:2"


def test_the_audit_is_strict_unless_it_may_overlap() -> None:
    assert manifest.parse({"appliance.toml": GOOD}).audit == "strict"
    text = b'audit = "overlap"\n' + GOOD
    assert manifest.parse({"appliance.toml": text}).audit == "overlap"


def test_a_missing_manifest_is_answered_with_an_example() -> None:
    with pytest.raises(ManifestInvalid) as caught:
        manifest.parse({})
    assert 'entry = "model:Model"' in caught.value.hint


BAD = {
    "unknown key": (GOOD.replace(b"entry", b"entri", 1), ":2", "entri"),
    "unknown key in a section": (
        GOOD.replace(b"memory_mb", b"memroy_mb"),
        "appliance.toml:6",
        "resources.memroy_mb",
    ),
    "out of bounds": (GOOD.replace(b"256", b"1"), "appliance.toml:6", "resources.memory_mb"),
    "wrong type": (GOOD.replace(b"256", b'"many"'), "appliance.toml:6", "resources.memory_mb"),
    "bad entry": (GOOD.replace(b"model:Model", b"../x:y"), "appliance.toml:2", "entry"),
    "gpu memory without a gpu": (
        GOOD.replace(b"memory_mb = 256", b"gpu_memory_mb = 256"),
        "appliance.toml:6",
        "resources.gpu_memory_mb",
    ),
    "rows below two": (GOOD + b"\n[batch]\nmax_rows = 1\n", "appliance.toml:15", "batch.max_rows"),
    "a third axis": (GOOD + b"\n[batch]\naxis = 2\n", "appliance.toml:15", "batch.axis"),
    "a batch key that is none": (
        GOOD + b"\n[batch]\nmax_row = 4\n",
        "appliance.toml:15",
        "batch.max_row",
    ),
    "an audit that is none": (b'audit = "off"\n' + GOOD, "appliance.toml:1", "audit"),
    "unknown section": (GOOD + b"\n[limit]\nx = 1\n", "appliance.toml:14", "limit"),
}


@pytest.mark.parametrize(("text", "line", "key"), BAD.values(), ids=BAD)
def test_a_bad_key_is_named_with_its_line(text: bytes, line: str, key: str) -> None:
    with pytest.raises(ManifestInvalid) as caught:
        parse(text)
    assert line in caught.value.detail
    assert key in caught.value.detail
    assert caught.value.fields


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ManifestInvalid, match="entry"):
        parse(b'runtime = "python3.11"\n')


HOSTILE = {
    "not toml": b"{",
    "not utf-8": b"\xff\xfe",
    "deep nesting": b"a = " + b"[" * 100_000,
    "long integer": b"a = " + b"9" * 100_000,
    "nan": GOOD.replace(b"256", b"nan"),
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_is_a_manifest_problem_and_nothing_else(text: bytes) -> None:
    with pytest.raises(ManifestInvalid):
        parse(text)


@pytest.mark.parametrize(
    "key",
    [
        "input_schema." + "a." * 60_000 + "a = 1",
        "input_schema = {" + "a . " * 40_000 + "a = 1}",
        "[input_schema." + "a." * 60_000 + "a]",
        "input_schema." + "'a'." * 40_000 + "a = 1",
        'input_schema."x\\"y".' + '"a".' * 40_000 + "a = 1",
        "\t input_schema." + "a\t.\t" * 40_000 + "a = 1",
        "input_schema.a = " + "[" * 900 + "]" * 900,
        "input_schema = " + "{a=" * 200 + "1" + "}" * 200,
    ],
)
def test_a_key_made_to_take_minutes_is_refused_at_once(key: str) -> None:
    started = time.process_time()
    with pytest.raises(ManifestInvalid):
        parse(f'runtime = "python3.11"\nentry = "model:Model"\n{key}\n'.encode())
    assert time.process_time() - started < 2


def test_prose_with_many_dots_is_no_key() -> None:
    prose = "one. two, three. " * 100 + "1.2." * 20
    made = parse(f'runtime="python3.11"\nentry="model:Model"\ndescription="{prose}"'.encode())
    assert made.description == prose  # type: ignore[attr-defined]


def test_a_requirements_file_is_read_from_the_archive() -> None:
    text = GOOD.replace(b'["numpy==2.0.0"]', b'"requirements.txt"')
    found = manifest.parse({"appliance.toml": text, "requirements.txt": b"scipy==1.0\n"})
    assert found.requirements == ("scipy==1.0",)
    with pytest.raises(ManifestInvalid, match=r"requirements\.txt"):
        parse(text)


@pytest.mark.parametrize(
    ("line", "key", "setting"),
    [
        ("idle_timeout_s = 86400", "idle_timeout_s", "idle_timeout_s_max"),
        ("[limits]\ninvoke_timeout_ms = 3600000", "limits.invoke_timeout_ms",
         "invoke_timeout_ms_max"),
        ("[limits]\nload_timeout_ms = 3600000", "limits.load_timeout_ms", "load_timeout_ms_max"),
        ("[limits]\nreply_bytes_max = 1000000000", "limits.reply_bytes_max", "reply_bytes_max"),
        ("[resources]\nmemory_mb = 900000", "resources.memory_mb", "memory_bytes_max"),
    ],
)  # fmt: skip
def test_more_than_the_appliance_gives_is_refused_with_key_line_and_setting(
    line: str, key: str, setting: str
) -> None:
    text = f'runtime = "python3.11"\nentry = "model:Model"\n{line}\n'.encode()
    captured = {"appliance.toml": text}
    declared = manifest.parse(captured)
    with pytest.raises(ManifestInvalid) as caught:
        manifest.require_modest(declared, captured, config.Sandbox())
    number = 2 + len(line.splitlines())
    assert f"appliance.toml:{number}: {key}: " in caught.value.detail
    assert caught.value.fields[0].pointer == f"appliance.toml:{number}"
    assert f"sandbox.{setting}" in caught.value.hint
    raised = config.Sandbox(**{setting: 10**13})  # type: ignore[arg-type]
    manifest.require_modest(declared, captured, raised)


def test_a_version_registered_before_a_ceiling_was_lowered_meets_it_all_the_same() -> None:
    text = b'runtime = "python3.11"\nentry = "model:Model"\nidle_timeout_s = 86400\n'
    text += b"[limits]\ninvoke_timeout_ms = 3600000\nload_timeout_ms = 3600000\n"
    version = Version(
        model_id="m", tenant_id="t", number=1, manifest=manifest.parse({"appliance.toml": text}),
        artifact=Artifact(blob=Blob(id="b", size_bytes=1, digest="d"), files=()),
        runtime_digest="d", created_ns=1, created_by="x",
    )  # fmt: skip
    spec = provision.spec_from_version(version, config.Sandbox())
    limits = spec.limits
    assert (spec.idle_timeout_s, limits.invoke_timeout_ms, limits.load_timeout_ms) == (
        3600, 600_000, 600_000,
    )  # fmt: skip


WRITE = {
    "a typing mistake": (GOOD.replace(b"entry", b"entyr"), "Did you mean 'entry'?"),
    "in a section": (GOOD.replace(b"memory_mb", b"memroy_mb"), "Did you mean 'memory_mb'?"),
    "the keys there are": (GOOD.replace(b"memory_mb", b"zzz"), "[resources] takes memory_mb, cpus"),
    "out of bounds": (GOOD.replace(b"256", b"1"), "memory_mb = 512"),
    "no entry": (b'runtime = "python3.11"\n', 'entry = "model:Model"'),
    "a wrong entry": (GOOD.replace(b"model:Model", b"model.py"), 'entry = "model:Model"'),
    "no such runtime": (GOOD.replace(b"python3.11", b"python9"), 'runtime = "python3.11"'),
    "options of one's own code": (GOOD + b"[options]\nmethod = 'predict'\n", "for example"),
    "a method there is not": (
        GOOD.replace(b"model:Model", b"@sklearn:m.pkl") + b"[options]\nmethod = 'guess'\n",
        'method = "predict_proba"',
    ),
}


@pytest.mark.parametrize(("text", "hint"), WRITE.values(), ids=WRITE)
def test_a_refusal_says_what_to_write(text: bytes, hint: str) -> None:
    with pytest.raises(ManifestInvalid) as caught:
        parse(text)
    assert hint in caught.value.hint


@pytest.mark.parametrize("entry", ["@sklearn:a/b c.pkl", "@onnx:m.onnx", "@mlflow"])
def test_the_appliances_own_loaders_are_entries(entry: str) -> None:
    found = manifest.parse({"appliance.toml": GOOD.replace(b"model:Model", entry.encode())})
    assert found.entry == entry


@pytest.mark.parametrize(
    "entry", ["@sklearn", "@sklearn:../m.pkl", "@sklearn:/m", "@mlflow:x", "@x:y"]
)
def test_other_loaders_and_paths_out_of_the_folder_are_not(entry: str) -> None:
    with pytest.raises(ManifestInvalid, match="entry"):
        manifest.parse({"appliance.toml": GOOD.replace(b"model:Model", entry.encode())})


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (b"nan", "nan and inf"),
        (b"1" + b"0" * 30, "64 bits"),
        (b"2020-01-01", "write them as text"),
    ],
)
def test_a_value_that_is_no_json_is_refused_with_its_line(value: bytes, said: str) -> None:
    with pytest.raises(ManifestInvalid, match=said) as caught:
        parse(GOOD + b"[input_schema]\nmaximum = " + value + b"\n")
    assert "appliance.toml:14" in caught.value.detail


def test_a_mistake_of_toml_is_named_with_its_line() -> None:
    with pytest.raises(ManifestInvalid, match=r"appliance\.toml:3: not valid TOML"):
        parse(b'runtime = "python3.11"\nentry = "model:Model"\nrequirements = [,]\n')


def test_a_key_of_another_table_is_sent_there():
    raw = b'runtime = "python3.11"\nentry = "model:Model"\n[resources]\nload_timeout_ms = 3000\n'
    with pytest.raises(ManifestInvalid) as caught:
        manifest.parse({manifest.FILE: raw})
    assert caught.value.hint == "It belongs into [limits]."
