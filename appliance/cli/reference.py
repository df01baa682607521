"""How a command line names a model, a version or an alias, and what to send it.

Owns: the notation ``TENANT/NAME``, ``TENANT/NAME:3`` (or ``@3``), ``TENANT/NAME@live``; ``--data``.
Never: asks whether it is there.
Read next: ``model`` (who uses it).
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import click

from appliance.cli.client import segment
from appliance.errors import ConfigInvalid, InputInvalid

_REFERENCE = re.compile(r"^([a-z0-9-]+)/([a-z0-9-]+)(?::([0-9]+)|@([0-9]+)|@([a-z0-9-]+))?$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A model named on the command line; at most one of ``version`` and ``alias`` is set."""

    tenant: str
    name: str
    version: str | None = None
    alias: str | None = None

    @property
    def path(self) -> str:
        """The path of the model."""
        return f"/api/v1/models/{segment(self.tenant)}/{segment(self.name)}"

    @property
    def target(self) -> str:
        """The path of the version or alias named, else of the model."""
        if self.version:
            return f"{self.path}/versions/{self.version}"
        return f"{self.path}/aliases/{segment(self.alias)}" if self.alias else self.path


def reference(text: str, *, is_model: bool = False) -> Reference:
    """``TENANT/NAME``, with ``:VERSION`` (or ``@3``) or ``@ALIAS`` unless ``is_model``.

    Raises:
        click.UsageError: it is written differently.
    """
    match = _REFERENCE.match(text)
    if not match or (is_model and match.lastindex != 2):
        form = (
            "TENANT/NAME" if is_model else "TENANT/NAME, TENANT/NAME:VERSION or TENANT/NAME@ALIAS"
        )
        raise click.UsageError(f"'{text}' does not name a model: write {form}")
    return Reference(tenant=match[1], name=match[2], version=match[3] or match[4], alias=match[5])


def body_of(data: str) -> bytes:
    """What ``--data`` names: a file, stdin, or JSON itself. Raises InputInvalid, ConfigInvalid."""
    if data == "-":
        return sys.stdin.buffer.read()
    try:
        if Path(data).is_file():
            return Path(data).read_bytes()
    except OSError as error:
        if not data.lstrip().startswith(("{", "[", '"')):
            raise ConfigInvalid(f"{data[:80]}: cannot be read: {error.strerror}.") from error
    try:
        json.loads(data)
    except ValueError as error:
        raise InputInvalid(
            f"--data is neither a file nor JSON: {data[:80]!r}.",
            hint="--data FILE or --data '{...}'",
        ) from error
    return data.encode()
