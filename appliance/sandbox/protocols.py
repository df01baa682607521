"""PURE: the protocols containers of imported images speak, and how one container is started.

Owns: ``Image``, ``Serving``, the table ``CONTRACTS``, and what overrides what.
Never: does I/O; opens a connection (``http_link`` does).
Read next: ``oci`` (where an ``Image`` comes from), ``http_link`` (which speaks these).

What holds, strongest first: ``[container]`` in a version's manifest, the options of the import, the
image's own configuration, the protocol's customs.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from appliance.errors import ManifestInvalid
from appliance.records import PROTOCOLS, Container

MODEL_PATH = "/model"
MODEL_PATHS = (MODEL_PATH, "/opt/ml/model", "/mnt/models")
"""Folders every imported image gets, so that a version's files can be put there."""

_TMP = "/tmp"  # noqa: S108 - a path inside the container
_OWN_ENVIRONMENT = {"HOME": _TMP, "TMPDIR": _TMP}  # everything else is read-only


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """What an imported image says about itself, and what its import said about it.

    ``id`` is the ``sha256:`` of its configuration, ``ports`` what it exposes; ``notes`` is what
    was left out or will not work as in the image.
    """

    id: str
    source: str = ""
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    work_dir: str = "/"
    ports: tuple[int, ...] = ()
    settings: Container = field(default_factory=Container)
    size_bytes: int = 0
    files: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """A protocol's customs. ``{model}`` in a route stands for the model's name inside."""

    path: str
    health_path: str
    port: int
    model_path: str = MODEL_PATH
    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


CONTRACTS: dict[str, Contract] = {
    "oip": Contract(
        path="/v2/models/{model}/infer",
        health_path="/v2/models/{model}/ready",
        port=8080,
        model_path="/mnt/models",
    ),
    "sagemaker": Contract(
        path="/invocations",
        health_path="/ping",
        port=8080,
        model_path="/opt/ml/model",
        arguments=("serve",),
        environment={"SAGEMAKER_BIND_TO_PORT": "{port}"},
    ),
    "cog": Contract(path="/predictions", health_path="/health-check", port=5000),
    "mlflow": Contract(
        path="/invocations", health_path="/ping", port=8080, model_path="/opt/ml/model"
    ),
    "vertex": Contract(
        path="/predict",
        health_path="/health",
        port=8080,
        environment={
            "AIP_HTTP_PORT": "{port}",
            "AIP_PREDICT_ROUTE": "{path}",
            "AIP_HEALTH_ROUTE": "{health}",
            "AIP_STORAGE_URI": "{files}",
        },
    ),
    "http": Contract(path="/", health_path="/", port=8080),
    "runner": Contract(path="", health_path="", port=0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """How one container is started and spoken to: everything decided."""

    protocol: str
    port: int
    argv: tuple[str, ...]
    path: str
    health_path: str
    model_path: str
    environment: dict[str, str]
    work_dir: str

    @property
    def is_http(self) -> bool:
        """Whether it is spoken to by HTTP, not by our own runner protocol."""
        return self.protocol != "runner"


def merged(first: Container, then: Container) -> Container:
    """What ``first`` says, and where it says nothing, what ``then`` says."""
    said = {
        one.name: getattr(first, one.name) or getattr(then, one.name)
        for one in fields(Container)
        if one.name != "environment"
    }
    return Container(**said, environment={**then.environment, **first.environment})


def serving(image: Image, asked: Container) -> Serving:
    """How a container of this image serves a version.

    Raises:
        ManifestInvalid: nothing says which protocol it speaks or what it runs.
    """
    told = merged(asked, image.settings)
    if told.protocol not in CONTRACTS:
        raise ManifestInvalid(
            "Nothing says which protocol the image speaks: neither its import nor [container].",
            hint=f'[container]\nprotocol = "..."  # one of {", ".join(PROTOCOLS)}',
        )
    contract = CONTRACTS[told.protocol]
    exposed = image.ports[0] if len(image.ports) == 1 else 0
    port = told.port or exposed or contract.port
    model = told.model_name or "model"
    path = (told.path or contract.path).replace("{model}", model)
    health = (told.health_path or contract.health_path).replace("{model}", model)
    files = told.model_path or contract.model_path
    argv = told.command or _own_command(image, contract)
    if not argv:
        raise ManifestInvalid(
            "The image has no Entrypoint and no Cmd: nothing says what to start.",
            hint='[container]\ncommand = ["/path/of/the/server", "--option"]',
        )
    words = {"{port}": str(port), "{path}": path, "{health}": health, "{files}": files}
    customs = {key: words.get(value, value) for key, value in contract.environment.items()}
    return Serving(
        protocol=told.protocol,
        port=port,
        argv=argv,
        path=path,
        health_path=health,
        model_path=files,
        environment={
            **image.environment,
            "PORT": str(port),
            **customs,
            **_OWN_ENVIRONMENT,
            **told.environment,
        },
        work_dir=image.work_dir or "/",
    )


def _own_command(image: Image, contract: Contract) -> tuple[str, ...]:
    """What the image starts; a protocol's own arguments come in place of its ``Cmd``."""
    if contract.arguments:
        return (*image.entrypoint, *contract.arguments)
    return (*image.entrypoint, *image.cmd)
