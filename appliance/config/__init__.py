"""Settings: one frozen tree, read from TOML, then the environment, then flags.

Owns: how the tree is filled and checked, and who may use what it names; the only reader of
``os.environ``.
Never: opens anything but the configuration file, or changes after start.
Read next: ``tree`` (every setting); ``appliance config explain`` prints it with each origin.

A variable ``APPLIANCE__SECTION__FIELD`` overrides the file; a flag overrides both. An unknown key
or a value out of bounds is an error that names the file, the key and the line.
"""

from __future__ import annotations

import dataclasses
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import msgspec

from appliance.config.tree import (
    Admin,
    Batches,
    Build,
    Calls,
    Comparisons,
    Drift,
    Egress,
    Folder,
    Http,
    Jobs,
    Paths,
    Sandbox,
    Schedules,
    Settings,
    Store,
    Tracking,
    Unseal,
    Webhooks,
)
from appliance.errors import ConfigInvalid, FieldError

__all__ = [
    "DEFAULT_FILE",
    "ENV_PREFIX",
    "Admin",
    "Batches",
    "Build",
    "Calls",
    "Client",
    "Comparisons",
    "Drift",
    "Egress",
    "Explained",
    "Folder",
    "Http",
    "Jobs",
    "Npm",
    "Paths",
    "Sandbox",
    "Schedules",
    "Settings",
    "Store",
    "Tracking",
    "Unseal",
    "Webhooks",
    "child_environment",
    "client",
    "line_of_key",
    "load",
    "npm",
    "replace",
    "wants_colour",
]

ENV_PREFIX = "APPLIANCE__"
_FOLDER_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
DEFAULT_FILE = Path("/etc/appliance/appliance.toml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """One setting as ``config explain`` shows it; ``origin`` is default, file:line, env or flag."""

    key: str
    value: Any
    default: Any
    origin: str
    doc: str


def load(
    file: Path | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> tuple[Settings, tuple[Explained, ...]]:
    """The settings in force and where each came from.

    Args:
        file: TOML file; ``None`` reads ``/etc/appliance/appliance.toml`` if it exists.
        environ: variables, ``None`` for the process environment.
        flags: dotted key to value, e.g. ``{"http.port": 9443}``; strongest.

    Raises:
        ConfigInvalid: the file cannot be read or parsed, a key is unknown, or a value is out of
            bounds; the message names file, key and line.
    """
    environ = os.environ if environ is None else environ
    origins: dict[str, str] = {}
    tree: dict[str, dict[str, Any]] = {}
    path = file or DEFAULT_FILE
    if file is not None or path.exists():
        _merge_file(path, tree, origins)
    for name, text in environ.items():
        if name.startswith(ENV_PREFIX):
            key = name.removeprefix(ENV_PREFIX).lower().replace("__", ".")
            _put(tree, origins, key, _value_from_text(key, text, name), f"env {name}")
    for key, value in (flags or {}).items():
        _put(tree, origins, key, value, "flag")
    try:
        settings = msgspec.convert(tree, Settings, str_keys=True)
    except msgspec.ValidationError as error:
        raise _invalid(error, origins) from error
    _require_folders(settings, origins)
    return settings, tuple(_explain(settings, origins))


def _fields() -> dict[str, tuple[Any, str]]:
    """Dotted key to (annotated type, doc) of every setting."""
    found: dict[str, tuple[Any, str]] = {}
    for section, cls in get_type_hints(Settings).items():
        for name, hint in get_type_hints(cls, include_extras=True).items():
            doc = next((m.description or "" for m in hint.__metadata__ if m.description), "")
            found[f"{section}.{name}"] = (hint, doc)
    return found


def _put(
    tree: dict[str, dict[str, Any]], origins: dict[str, str], key: str, value: Any, origin: str
) -> None:
    if key not in _fields():
        raise ConfigInvalid(
            f"{origin}: unknown setting '{key}'.",
            hint="appliance config explain",
            fields=(FieldError(pointer=origin, detail=f"unknown setting '{key}'"),),
        )
    section, name = key.split(".", 1)
    tree.setdefault(section, {})[name] = value
    origins[key] = origin


def _merge_file(path: Path, tree: dict[str, dict[str, Any]], origins: dict[str, str]) -> None:
    try:
        text = path.read_text(encoding="utf-8")
        parsed = tomllib.loads(text)
    except OSError as error:
        raise ConfigInvalid(f"{path}: cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigInvalid(f"{path}: not valid TOML: {error}.") from error
    for section, values in parsed.items():
        if not isinstance(values, dict):
            origin = f"{path}:{line_of_key(text, '', section)}"
            raise ConfigInvalid(f"{origin}: unknown setting '{section}'.")
        for name, value in values.items():
            origin = f"{path}:{line_of_key(text, section, name)}"
            _put(tree, origins, f"{section}.{name}", value, origin)


def line_of_key(text: str, section: str, name: str) -> int:
    """The 1-based line of ``name`` inside ``[section]`` of a TOML text; 1 if it is not found."""
    current = ""
    for number, line in enumerate(text.splitlines(), start=1):
        header = re.match(r"\s*\[\s*([^\[\]]+?)\s*\]", line)
        if header:
            current = header.group(1).strip("\"'")
            is_it = f"{current}.".startswith(f"{section}.{name}.")
            if is_it or (not section and current.split(".")[0] == name):
                return number
        elif current == section and re.match(rf"""\s*["']?{re.escape(name)}["']?\s*[=.]""", line):
            return number
    return 1


def _value_from_text(key: str, text: str, name: str) -> Any:
    """An environment variable's text as the setting's own type; lists are comma separated."""
    hint = _fields().get(key, (str, ""))[0]
    inner = getattr(hint, "__origin__", hint)
    if getattr(inner, "__origin__", None) is tuple:
        members = [part.strip() for part in text.split(",") if part.strip()]
        return [int(m) for m in members] if inner.__args__[0] is int else members
    try:
        if getattr(inner, "__origin__", None) is dict:
            return msgspec.json.decode(text)
        return msgspec.convert(text, inner, strict=False)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise ConfigInvalid(f"env {name}: {error}.") from error


def _invalid(error: msgspec.ValidationError, origins: Mapping[str, str]) -> ConfigInvalid:
    text = str(error)
    match = re.search(r"at `(?:key in )?\$\.([\w.]+)", text)
    key = match.group(1) if match else ""
    reason = text.split(" - at")[0]
    origin = next((origins[known] for known in origins if key.startswith(known)), "settings")
    return ConfigInvalid(
        f"{origin}: {key}: {reason}.",
        fields=(FieldError(pointer=origin, detail=f"{key}: {reason}"),),
    )


def _require_folders(settings: Settings, origins: Mapping[str, str]) -> None:
    """Refuse a folder of tables without a plain name or a place of its own."""
    own = [Path(settings.paths.data_dir), Path(settings.paths.run_dir)]
    for name, folder in settings.batches.folders.items():
        path = Path(os.path.normpath(folder.path))
        inside = [m for m in own if path == m or path in m.parents or m in path.parents]
        wrong = ""
        if not _FOLDER_NAME.fullmatch(name):
            wrong = "a folder's name has small letters, digits and '-'"
        elif not folder.path.startswith("/") or "\0" in folder.path:
            wrong = f"'{folder.path}' is no absolute path"
        elif inside:
            wrong = f"{folder.path} and the appliance's own {inside[0]} are not apart"
        if wrong:
            origin = origins.get("batches.folders", "settings")
            detail = f"batches.folders.{name}: {wrong}"
            raise ConfigInvalid(
                f"{origin}: {detail}.", fields=(FieldError(pointer=origin, detail=detail),)
            )


def _explain(settings: Settings, origins: Mapping[str, str]) -> list[Explained]:
    defaults = Settings()
    rows = []
    for key, (_hint, doc) in _fields().items():
        section, name = key.split(".", 1)
        rows.append(
            Explained(
                key=key,
                value=msgspec.to_builtins(getattr(getattr(settings, section), name)),
                default=getattr(getattr(defaults, section), name),
                origin=origins.get(key, "default"),
                doc=doc,
            )
        )
    return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """Where the command line finds an appliance: its own socket, or a URL with a key."""

    socket: str
    url: str
    api_key: str
    ca_file: str


def client(
    *,
    socket: str = "",
    url: str = "",
    api_key_file: str = "",
    ca_file: str = "",
    run_dir: str = "",
    environ: Mapping[str, str] | None = None,
) -> Client:
    """The client settings: flags first, then APPLIANCE_SOCKET/URL/API_KEY/CA, then ``run_dir``."""
    environ = os.environ if environ is None else environ
    key = environ.get("APPLIANCE_API_KEY", "")
    if api_key_file:
        try:
            key = Path(api_key_file).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigInvalid(f"{api_key_file}: the API key cannot be read: {error}.") from error
    run_dir = run_dir or environ.get(f"{ENV_PREFIX}PATHS__RUN_DIR", Paths().run_dir)
    return Client(
        socket=socket or environ.get("APPLIANCE_SOCKET", f"{run_dir}/admin.sock"),
        url=url or environ.get("APPLIANCE_URL", ""),
        api_key=key,
        ca_file=ca_file or environ.get("APPLIANCE_CA", ""),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Npm:
    """Where npm packages come from; ``index`` is empty where nothing says it."""

    index: str
    ca_file: str
    proxy: str


def npm(build: Build, *, files: tuple[Path, ...] | None = None) -> Npm:
    """The npm index of ``build.npm_index`` or else of npm's own configuration on this machine.

    Args:
        build: the ``[build]`` section.
        files: npm's files, the strongest last; ``None`` for the machine's and the user's.
    """
    if files is None:
        home = os.environ.get("HOME", "/")
        files = (Path("/etc/npmrc"), Path("/usr/etc/npmrc"), Path(home) / ".npmrc")
    found: dict[str, str] = {}
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        for line in text.splitlines():
            key, equals, value = line.partition("=")
            if equals and not line.lstrip().startswith(("#", ";")):
                found[key.strip()] = value.strip().strip("\"'")
    return Npm(
        index=build.npm_index or found.get("registry", ""),
        ca_file=found.get("cafile", ""),
        proxy=found.get("https-proxy", found.get("proxy", "")),
    )


def wants_colour(environ: Mapping[str, str] | None = None) -> bool:
    """Whether a terminal may be coloured: neither ``NO_COLOR`` nor ``TERM=dumb`` is set."""
    environ = os.environ if environ is None else environ
    return not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


def child_environment(**extra: str) -> dict[str, str]:
    """A minimal environment for child processes: PATH, HOME, locale and what is given."""
    kept = {k: os.environ[k] for k in ("PATH", "HOME", "LANG") if k in os.environ}
    return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **kept, **extra}


def replace(settings: Settings, section: str, **changes: Any) -> Settings:
    """A copy of the settings with fields of one section changed; for tests and the demo."""
    part = dataclasses.replace(getattr(settings, section), **changes)
    return dataclasses.replace(settings, **{section: part})
