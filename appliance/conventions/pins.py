"""Exact versions for what a model needs: read where they are written, assumed where they are not.

Owns: the requirement files of other tools, and the versions assumed when none is written.
Never: asks an index; what is pinned here is resolved when the dependencies are built.
Read next: ``sandbox.dependencies`` (who installs them).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from appliance.errors import FieldError, ManifestInvalid
from appliance.sandbox.packages.wheels import parse_requirements
from appliance.yaml_text import Node, TextRefused, parse, text_from_bytes

REQUIREMENTS = "requirements.txt"
ASSUMED = {"onnxruntime": "1.32.0", "skops": "0.16.0", "pandas": "3.1.1"}
"""Tested with this appliance; a file that records no version of its own gets these."""

_CONDA_PIN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)={1,2}([A-Za-z0-9][A-Za-z0-9.!_]*)(?:=\S+)?")
_NOT_INSTALLED = frozenset({"python", "pip", "setuptools", "wheel"})


@dataclass(slots=True, kw_only=True)
class Pins:
    """Pins by package, and a sentence for each thing assumed on the way."""

    by_name: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def assume(self, package: str, version: str, why: str) -> None:
        """Pin a package unless it is pinned already, and note it."""
        if package not in self.by_name:
            self.by_name[package] = f"{package}=={version}"
            self.notes.append(f"{package}=={version} ({why})")

    def drop(self, *packages: str) -> list[str]:
        """Take packages out; the pins that were there."""
        return [self.by_name.pop(name) for name in packages if name in self.by_name]

    def version(self, package: str) -> str:
        """The pinned version; empty if there is none."""
        return self.by_name.get(package, "").partition(" ")[0].partition("==")[2]

    def requirements(self) -> tuple[str, ...]:
        """As a manifest has them."""
        return tuple(self.by_name[name] for name in sorted(self.by_name))


def refused(file: str, line: int, key: str, reason: str, hint: str = "") -> ManifestInvalid:
    """The problem of one place in one file: ``file:line: key: reason``."""
    said = f"{key}: {reason}" if key else reason
    return ManifestInvalid(
        f"{file}:{line}: {said}.",
        hint=hint or "Correct it, or write an appliance.toml, which is then read instead.",
        fields=(FieldError(pointer=f"{file}:{line}", detail=said),),
    )


def yaml_of(file: str, captured: Mapping[str, bytes]) -> Node:
    """The tree of a YAML file of the upload.

    Raises:
        ManifestInvalid: it is too large, or not the plain YAML that is read.
    """
    if file not in captured:
        raise ManifestInvalid(f"{file} is too large to be read.", hint="It may have 200 KiB.")
    try:
        return parse(captured[file])
    except TextRefused as error:
        raise refused(file, error.line, "", error.reason) from error


def pins_of(captured: Mapping[str, bytes]) -> Pins | None:
    """What requirements.txt, else conda.yaml, pins; None without either.

    Raises:
        ManifestInvalid: a line is no exact pin; file and line are named.
    """
    if REQUIREMENTS in captured:
        try:
            text = text_from_bytes(captured[REQUIREMENTS])
        except TextRefused as error:
            raise refused(REQUIREMENTS, error.line, "", error.reason) from error
        return _pins(parse_requirements(text, file=REQUIREMENTS))
    for file in ("conda.yaml", "environment.yml"):
        if file in captured:
            return _pins(_from_conda(file, yaml_of(file, captured)))
    return None


def _pins(requirements: tuple[str, ...]) -> Pins:
    return Pins(by_name={re.split(r"[=\[]", pin)[0]: pin for pin in requirements})


def _from_conda(file: str, tree: Node) -> tuple[str, ...]:
    """The pins of a conda environment; what is conda's own and no wheel is left out."""
    lines: list[str] = []
    dependencies = tree.get("dependencies")
    for item in dependencies.items() if dependencies else []:
        nested = item.get("pip")
        for one in nested.items() if nested else []:
            lines += _pin(file, one, is_conda=False)
        if isinstance(item.value, str):
            lines += _pin(file, item, is_conda=True)
    return parse_requirements("\n".join(lines), file=file)


def _pin(file: str, item: Node, *, is_conda: bool) -> list[str]:
    text = item.value.strip() if isinstance(item.value, str) else ""
    name = re.split(r"[=<>!~\s\[]", text)[0].lower()
    if name in _NOT_INSTALLED:
        return []
    if is_conda:
        match = _CONDA_PIN.fullmatch(text)
        text = f"{match[1]}=={match[2]}" if match else text
    try:
        parse_requirements(text)
    except ManifestInvalid as error:
        raise refused(
            file, item.line, "dependencies", f"'{text[:100]}' is not an exact pin like name==1.2.3"
        ) from error
    return [text]
