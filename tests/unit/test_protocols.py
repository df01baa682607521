"""What a container is started with: what overrides what, from the manifest down to custom."""

from __future__ import annotations

import pytest

from appliance import manifest
from appliance.errors import ManifestInvalid
from appliance.records import PROTOCOLS, Container
from appliance.sandbox.protocols import CONTRACTS, Image, serving

IMAGE = Image(
    id="sha256:x",
    entrypoint=("/srv/start",),
    cmd=("--all",),
    environment={"A": "image", "HOME": "/root"},
    work_dir="/srv",
    ports=(9000,),
    settings=Container(protocol="oip", model_name="iris", environment={"B": "import"}),
)


def test_every_protocol_has_its_customs() -> None:
    assert set(CONTRACTS) == set(PROTOCOLS)


def test_the_import_and_the_image_say_what_a_version_does_not() -> None:
    found = serving(IMAGE, Container())
    assert found.argv == ("/srv/start", "--all")
    assert (found.port, found.work_dir, found.model_path) == (9000, "/srv", "/mnt/models")
    assert found.path == "/v2/models/iris/infer"
    assert found.health_path == "/v2/models/iris/ready"
    assert found.environment == {
        "A": "image",
        "B": "import",
        "HOME": "/tmp",  # everything else is read-only
        "TMPDIR": "/tmp",
        "PORT": "9000",
    }


def test_a_version_has_the_last_word() -> None:
    asked = Container(
        protocol="vertex",
        port=8081,
        command=("/bin/other",),
        path="/p",
        health_path="/h",
        model_path="/w",
        environment={"A": "version", "HOME": "/w"},
    )
    found = serving(IMAGE, asked)
    assert found.argv == ("/bin/other",)
    assert (found.path, found.health_path, found.model_path) == ("/p", "/h", "/w")
    told = found.environment
    assert (told["A"], told["HOME"], told["PORT"]) == ("version", "/w", "8081")
    assert told["AIP_HTTP_PORT"] == "8081"
    assert (told["AIP_PREDICT_ROUTE"], told["AIP_HEALTH_ROUTE"]) == ("/p", "/h")


def test_sagemaker_starts_an_image_with_serve() -> None:
    assert serving(IMAGE, Container(protocol="sagemaker")).argv == ("/srv/start", "serve")


def test_several_exposed_ports_say_nothing() -> None:
    image = Image(id="x", cmd=("a",), ports=(1, 2), settings=Container(protocol="cog"))
    assert serving(image, Container()).port == 5000


def test_an_image_without_protocol_or_command_is_refused_with_what_to_write() -> None:
    with pytest.raises(ManifestInvalid, match="which protocol") as caught:
        serving(Image(id="x", cmd=("a",)), Container())
    assert "[container]" in caught.value.hint
    with pytest.raises(ManifestInvalid, match="what to start") as caught:
        serving(Image(id="x"), Container(protocol="http"))
    assert "command" in caught.value.hint


def parse(text: str) -> manifest.Manifest:
    return manifest.parse({"appliance.toml": text.encode()}, imported=("acme", "python3.11"))


def test_a_manifest_of_an_image_needs_no_entry() -> None:
    found = parse('runtime = "acme"\n[container]\nprotocol = "cog"\nenvironment = { A = "1" }\n')
    assert found.container == Container(protocol="cog", environment={"A": "1"})
    assert parse('runtime = "acme"\n').container == Container()
    assert parse('runtime = "python3.11"\nentry = "model:Model"\n').container is None


WRONG = {
    "an entry": ('entry = "model:Model"', "has no entry"),
    "requirements": ('requirements = ["a==1"]', "has to be in it"),
    "another isolation": ('isolation = "gvisor"', "standard isolation only"),
    "an unknown protocol": ('[container]\nprotocol = "soap"', "container.protocol"),
    "a port too far": ("[container]\nport = 70000", "container.port"),
    "a relative path": ('[container]\nmodel_path = "srv/x"', "container.model_path"),
    "a route with a line break": ('[container]\npath = "/a\\nb"', "container.path"),
    "a variable that is none": ('[container.environment]\n"A=B" = "x"', "container.environment"),
    "an unknown key": ('[container]\nnetwork = "host"', "network"),
}


@pytest.mark.parametrize(("text", "said"), WRONG.values(), ids=WRONG)
def test_what_an_image_cannot_have_is_refused(text: str, said: str) -> None:
    with pytest.raises(ManifestInvalid) as caught:
        parse(f'runtime = "acme"\n{text}\n')
    assert said in caught.value.detail


def test_a_language_has_no_container_and_an_unknown_runtime_names_the_imported() -> None:
    with pytest.raises(ManifestInvalid, match="for imported images"):
        parse('runtime = "python3.11"\nentry = "model:Model"\n[container]\nport = 1\n')
    with pytest.raises(ManifestInvalid, match="acme"):
        parse('runtime = "acne"\n')
