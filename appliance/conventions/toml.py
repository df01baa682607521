"""A manifest as the ``appliance.toml`` that says the same.

Owns: the text; ``manifest.parse`` of it gives the manifest back.
Never: writes a file, or a key that was not set.
Read next: ``manifest``.
"""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

from appliance.records import CallLimits, Manifest, Resources

_MB = 1024 * 1024
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_LINE_MAX = 100


def text_of(manifest: Manifest) -> str:
    """The manifest as TOML, what was recognised and assumed as comments above it."""
    lines = [f"# {note}" for note in manifest.notes]
    lines += [_pair(key, value) for key, value in _plain(manifest).items() if value]
    tables = {
        "resources": _resources(manifest.resources),
        "limits": _changed(msgspec.to_builtins(manifest.limits), CallLimits()),
        "lineage": msgspec.to_builtins(manifest.lineage),
        "options": manifest.options,
        "tags": manifest.tags,
        "input_schema": manifest.input_schema or {},
        "output_schema": manifest.output_schema or {},
    }
    for name, table in tables.items():
        pairs = [_pair(key, value) for key, value in table.items() if value not in ("", [], (), {})]
        if pairs:
            lines += ["", f"[{name}]", *pairs]
    return "\n".join(lines) + "\n"


def _plain(manifest: Manifest) -> dict[str, Any]:
    return {
        "runtime": manifest.runtime,
        "entry": manifest.entry,
        "description": manifest.description,
        "requirements": list(manifest.requirements),
        "idle_timeout_s": manifest.idle_timeout_s,
    }


def _resources(resources: Resources) -> dict[str, Any]:
    found = _changed(msgspec.to_builtins(resources), Resources())
    for key in [key for key in found if key.endswith("_bytes")]:
        found[key.removesuffix("_bytes") + "_mb"] = found.pop(key) // _MB
    return found


def _changed(found: dict[str, Any], default: Any) -> dict[str, Any]:
    """The members that are not as they would be without a word."""
    usual = msgspec.to_builtins(default)
    return {key: value for key, value in found.items() if value != usual[key]}


def _pair(key: str, value: Any) -> str:
    name = key if _BARE.fullmatch(key) else _text(key)
    line = f"{name} = {_value(value)}"
    if isinstance(value, list) and len(line) > _LINE_MAX:
        return f"{name} = [\n" + "".join(f"    {_value(item)},\n" for item in value) + "]"
    return line


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(_pair_inline(k, v) for k, v in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, str):
        return _text(value)
    return json.dumps(value)


def _pair_inline(key: str, value: Any) -> str:
    return f"{key if _BARE.fullmatch(key) else _text(key)} = {_value(value)}"


def _text(value: str) -> str:
    """A TOML basic string: JSON's escapes are TOML's, but for pairs of surrogates and DEL."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
