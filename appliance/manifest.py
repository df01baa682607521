"""What a model declares about itself: ``appliance.toml`` as a ``Manifest`` record.

Owns: the manifest's keys, defaults and bounds, and error messages that name key and line.
Never: reads files or imports anything of the model.
Read next: ``lifecycle.register``.
"""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from appliance import config
from appliance.config import line_of_key
from appliance.errors import FieldError, ManifestInvalid
from appliance.inputs import SchemaRefused, require_schema
from appliance.records import (
    NAME_PATTERN,
    AuditMode,
    Batching,
    CallLimits,
    Container,
    Isolation,
    Lineage,
    Manifest,
    Protocol,
    Resources,
)
from appliance.sandbox.packages import PACKAGERS
from appliance.sandbox.runtimes import RUNTIMES, known
from appliance.targets import PIPELINE, target_from_text
from appliance.yaml_text import TextRefused, text_from_bytes

FILE = "appliance.toml"
EXAMPLE = """\
runtime = "python3.11"
entry = "model:Model"
requirements = "requirements.txt"
"""
_MB = 1024 * 1024
# Within 0.1 s: tomllib reads some 2 MB/s, less where a file is made to be slow.
_BYTES_MAX = 64 * 1024
_VALUES_MAX = 4096  # what a reader spends goes with these, not with bytes: a comment costs nothing
_DEPTH_MAX = 64
_OPTIONS_BYTES_MAX = 12 * 1024
# The time tomllib takes for a dotted key grows with the square of its parts: minutes at 200 KiB.
_PART = r"""(?:[A-Za-z0-9_-]++|"(?:[^"\\\n]|\\.)*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+"""
_LONG_KEY = re.compile(rf"(?m)(?:^|[\[{{,])[ \t]*+(?:{_PART}){{{_DEPTH_MAX}}}")

Text = Annotated[str, Meta(max_length=4096)]
CallTarget = Annotated[str, Meta(max_length=140)]
Secret = Annotated[str, Meta(pattern=NAME_PATTERN)]
Milliseconds = Annotated[int, Meta(ge=100, le=3_600_000)]
BodyBytes = Annotated[int, Meta(ge=1, le=1024 * _MB)]


class _Resources(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    memory_mb: Annotated[int, Meta(ge=64, le=1024 * 1024)] = 512
    cpus: Annotated[float, Meta(gt=0, le=1024)] = 1.0
    pids: Annotated[int, Meta(ge=8, le=4096)] = 64
    tmp_mb: Annotated[int, Meta(ge=1, le=64 * 1024)] = 64
    gpus: Annotated[int, Meta(ge=0, le=64)] = 0
    gpu_memory_mb: Annotated[int, Meta(ge=0, le=1024 * 1024)] = 0


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ``[limits]`` table."""

    load_timeout_ms: Milliseconds = 60_000
    invoke_timeout_ms: Milliseconds = 30_000
    body_bytes_max: BodyBytes = 16 * _MB
    reply_bytes_max: BodyBytes = 16 * _MB
    calls_max: Annotated[int, Meta(ge=1, le=1000)] = 32
    call_depth_max: Annotated[int, Meta(ge=1, le=16)] = 3


Member = Annotated[str, Meta(min_length=1, max_length=200)]


class _Batch(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    axis: Annotated[int, Meta(ge=0, le=1)] = 0
    max_rows: Annotated[int, Meta(ge=2, le=65_536)] = 64
    max_bytes: Annotated[int, Meta(ge=1024, le=64 * _MB)] = 4 * _MB
    max_queue_delay_us: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    inputs: Annotated[tuple[Member, ...], Meta(max_length=16)] = ()
    outputs: Annotated[tuple[Member, ...], Meta(max_length=16)] = ()


class _Lineage(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    parents: Annotated[tuple[Text, ...], Meta(max_length=64)] = ()
    data: Annotated[tuple[Text, ...], Meta(max_length=64)] = ()
    code: Text = ""
    run: Text = ""


Word = Annotated[str, Meta(max_length=4096, pattern=r"^[^\x00]*$")]
InsidePath = Annotated[str, Meta(max_length=512, pattern=r"^(?:/[\w.+@-]+)+$")]
Route = Annotated[str, Meta(max_length=512, pattern=r"^/[\x21-\x7e]*$")]


class _Container(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    protocol: Protocol | None = None
    port: Annotated[int, Meta(ge=0, le=65_535)] = 0
    command: Annotated[tuple[Word, ...], Meta(max_length=256)] = ()
    path: Route | None = None
    health_path: Route | None = None
    model_path: InsidePath | None = None
    model_name: Annotated[str, Meta(max_length=128, pattern=r"^[\w.-]*$")] = ""
    environment: Annotated[
        dict[Annotated[str, Meta(max_length=128, pattern=r"^[A-Za-z_]\w*$")], Word],
        Meta(max_length=128),
    ] = {}

    def record(self) -> Container:
        """The same as a record, where empty means not said."""
        said = {key: value for key, value in msgspec.structs.asdict(self).items() if value}
        return Container(**said)


Method = Literal["predict", "predict_proba", "predict_log_proba", "decision_function", "transform"]


class _Options(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the appliance's own loaders (entries that begin with @) can be told."""

    method: Method | None = None
    type: Annotated[str, Meta(pattern=r"^([A-Za-z][\w.]{0,31})?$")] = ""
    trusted: Annotated[tuple[Annotated[str, Meta(max_length=300)], ...], Meta(max_length=64)] = ()
    columns: Annotated[dict[Annotated[str, Meta(max_length=200)], str], Meta(max_length=1000)] = {}

    def record(self) -> dict[str, Any]:
        """What was said of it."""
        return {k: v for k, v in msgspec.to_builtins(self).items() if v}


class _File(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    runtime: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9.+-]{0,31}$")]
    entry: Annotated[str, Meta(min_length=1, max_length=300)] | None = None
    description: Text = ""
    requirements: Annotated[str, Meta(pattern=r"^\w[\w.-]{0,100}$")] | tuple[Text, ...] = ()
    idle_timeout_s: Annotated[int, Meta(ge=0, le=86_400)] | None = None
    resources: _Resources = _Resources()
    limits: Limits = Limits()
    lineage: _Lineage = _Lineage()
    tags: dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=256)]] = {}
    input_schema: dict[str, Any] | None = None
    output_schema: dict[str, Any] | None = None
    check_input: bool | None = None
    container: _Container | None = None
    options: _Options = _Options()
    secrets: Annotated[tuple[Secret, ...], Meta(max_length=32)] = ()
    isolation: Isolation = "standard"
    batch: _Batch | None = None
    audit: AuditMode = "strict"
    calls: Annotated[tuple[CallTarget, ...], Meta(max_length=64)] = ()


TABLES: dict[str, type[Struct]] = {
    "": _File,
    "resources": _Resources,
    "limits": Limits,
    "lineage": _Lineage,
    "container": _Container,
    "options": _Options,
    "batch": _Batch,
}
_WRITTEN = {
    "runtime": 'runtime = "python3.11"',
    "entry": 'entry = "model:Model"',
    "requirements": 'requirements = "requirements.txt"',
    "input_schema": "check_input = false (above all [tables]): the schema is then told, not held",
    "method": 'method = "predict_proba"',
    "idle_timeout_s": "idle_timeout_s = 120",
    "trusted": 'trusted = ["package.module.Class"]',
    "calls": 'calls = ["features", "scorer@live", "scorer:3"]',
}


def parse(captured: Mapping[str, bytes], imported: Collection[str] = ()) -> Manifest:
    """The manifest of an upload.

    Args:
        captured: text files at the top of the archive by path, as ``archive.Listing`` has them.
        imported: names of the images that were imported as runtimes.

    Raises:
        ManifestInvalid: no manifest, not TOML, an unknown or missing key, a value out of bounds,
            or a requirement that is not an exact pin; key and line are named.
    """
    raw = captured.get(FILE)
    if raw is None:
        raise ManifestInvalid(
            f"The archive has no {FILE} at its top level.",
            hint=f"Write one beside the model, for example:\n{EXAMPLE}",
        )
    if len(raw) > _BYTES_MAX:
        raise ManifestInvalid(
            f"{FILE} is larger than {_BYTES_MAX} bytes.",
            hint="It says how the model is run; put data into files of their own.",
        )
    text, tree = tree_from_toml(raw)
    try:
        file = msgspec.convert(tree, _File)
    except msgspec.ValidationError as error:
        raise _invalid(error, text) from error
    container = None
    if file.runtime == PIPELINE:  # even where an image was imported as that before it was a word
        reason = f"'{PIPELINE}' is no runtime; a pipeline is a folder with a pipeline.toml instead"
        raise _wrong("runtime", reason, text)
    if file.runtime in imported and file.runtime not in RUNTIMES:
        _check_image(file, text)
        container = (file.container or _Container()).record()
    else:
        _check_language(file, text, imported)
    return Manifest(
        runtime=file.runtime,
        entry=file.entry or "",
        description=file.description,
        requirements=_requirements(file, captured, text),
        resources=Resources(
            memory_bytes=file.resources.memory_mb * _MB,
            cpus=file.resources.cpus,
            pids=file.resources.pids,
            tmp_bytes=file.resources.tmp_mb * _MB,
            gpus=file.resources.gpus,
            gpu_memory_bytes=file.resources.gpu_memory_mb * _MB,
        ),
        limits=CallLimits(**msgspec.structs.asdict(file.limits)),
        idle_timeout_s=file.idle_timeout_s,
        lineage=Lineage(**msgspec.structs.asdict(file.lineage)),
        input_schema=file.input_schema,
        output_schema=file.output_schema,
        check_input=_is_checked(file, text),
        tags=file.tags,
        container=container,
        options=_options(file, text),
        secrets=tuple(sorted(set(file.secrets))),
        isolation=file.isolation,
        batch=Batching(**msgspec.structs.asdict(file.batch)) if file.batch else None,
        audit=file.audit,
        calls=_calls(file, text),
    )


def require_modest(
    declared: Manifest, captured: Mapping[str, bytes], settings: config.Sandbox
) -> None:
    """Return if a version asks for no more than this appliance gives one.

    Args:
        declared: what it declares.
        captured: text files at the top of the archive by path; there may be no manifest.
        settings: the ``[sandbox]`` section, whose ``*_max`` are the ceilings.

    Raises:
        ManifestInvalid: it asks for more; key, line and setting are named.
    """
    memory, limits = declared.resources.memory_bytes, declared.limits
    for section, key, asked, ceiling, setting in (
        ("resources", "memory_mb", memory // _MB, settings.memory_bytes_max // _MB,
         "memory_bytes_max"),
        ("limits", "reply_bytes_max", limits.reply_bytes_max, settings.reply_bytes_max,
         "reply_bytes_max"),
        ("limits", "load_timeout_ms", limits.load_timeout_ms, settings.load_timeout_ms_max,
         "load_timeout_ms_max"),
        ("limits", "invoke_timeout_ms", limits.invoke_timeout_ms, settings.invoke_timeout_ms_max,
         "invoke_timeout_ms_max"),
        ("", "idle_timeout_s", declared.idle_timeout_s or 0, settings.idle_timeout_s_max,
         "idle_timeout_s_max"),
    ):  # fmt: skip
        if asked > ceiling:
            text = captured.get(FILE, b"").decode("utf-8", "replace")
            reason = f"{asked} is asked for; this appliance gives a version at most {ceiling}"
            error = _wrong(key, reason, text, section)
            error.hint = f"Lower it, or have IT raise sandbox.{setting}."
            raise error


def tree_from_toml(raw: bytes) -> tuple[str, dict[str, Any]]:
    """Text and value of a manifest; ManifestInvalid where it is none."""
    try:
        text = text_from_bytes(raw)
        long_key = _LONG_KEY.search(text)
        if long_key:
            line = text.count("\n", 0, long_key.start()) + 1
            raise _at(line, f"a key has more than {_DEPTH_MAX} parts")
        if text.count(",") + text.count("=") > _VALUES_MAX:
            raise _at(_longest_line(text), f"more than {_VALUES_MAX} values")
        tree = tomllib.loads(text)
    except TextRefused as error:
        raise _at(error.line, error.reason) from error
    except tomllib.TOMLDecodeError as error:
        where = re.search(r"\(at line (\d+), column \d+\)", str(error))
        line = int(where[1]) if where else max(1, text.count("\n"))
        raise _at(line, f"not valid TOML: {str(error).partition(' (at ')[0]}") from error
    except RecursionError as error:
        raise _at(1, "lists or tables are nested too deep") from error
    except ValueError as error:  # a number with more digits than Python converts
        raise _at(_longest_line(text), "a number has too many digits") from error
    found = _not_plain(tree, _DEPTH_MAX, ())
    if found:
        path, reason = found
        raise _wrong(path[-1] if path else "", reason, text, ".".join(path[:-1]))
    return text, tree


def _longest_line(text: str) -> int:
    lines = text.splitlines()
    return max(range(len(lines)), key=lambda index: len(lines[index])) + 1


def _at(line: int, reason: str) -> ManifestInvalid:
    return ManifestInvalid(
        f"{FILE}:{line}: {reason}.",
        hint=f"One that works, for example:\n{EXAMPLE}",
        fields=(FieldError(pointer=f"{FILE}:{line}", detail=reason),),
    )


def _not_plain(
    value: Any, levels: int, path: tuple[str, ...]
) -> tuple[tuple[str, ...], str] | None:
    """Where in a value of TOML something is that cannot be kept as JSON, and what; else None."""
    if isinstance(value, (dict, list)):
        if levels == 0:
            return path[:4], "nested too deep"
        pairs = value.items() if isinstance(value, dict) else ((None, one) for one in value)
        for key, member in pairs:
            below = path if key is None else (*path, key)
            found = _not_plain(member, levels - 1, below)
            if found:
                return found
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return path, "nan and inf are no numbers here"
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return path, "a number is out of the range of 64 bits"
    if not isinstance(value, (str, int, float)):
        return path, "dates and times are not used here; write them as text"
    return None


def _options(file: _File, text: str) -> dict[str, Any]:
    """The ``[options]`` table, for entries that are loaded by the appliance's own code."""
    said = file.options.record()
    if said and not (file.entry or "").startswith("@"):
        reason = "only entries like '@sklearn:model.joblib' take options; others are code of yours"
        raise _wrong("options", reason, text)
    if len(msgspec.json.encode(said)) > _OPTIONS_BYTES_MAX:
        raise _wrong("options", f"larger than {_OPTIONS_BYTES_MAX} bytes", text)
    return said


def _is_checked(file: _File, text: str) -> bool:
    """Whether bodies are held to the schema: where there is one, unless told otherwise."""
    if file.input_schema is None:
        if file.check_input:
            raise _wrong("check_input", "there is no [input_schema] to hold bodies to", text)
        return False
    if file.check_input is False:
        return False
    try:
        require_schema(file.input_schema)
    except SchemaRefused as error:
        raise _wrong("input_schema", str(error), text) from error
    return True


def _calls(file: _File, text: str) -> tuple[str, ...]:
    """The models it may call, each once, in order."""
    for one in file.calls:
        if target_from_text(one) is None:
            raise _wrong("calls", f"'{one[:80]}' is no model of this tenant", text)
    if file.calls and file.batch is not None:
        reason = "joined calls are of several callers, and whose rights would it call with?"
        raise _wrong("calls", f"{reason} Leave out [batch] or calls", text)
    language = RUNTIMES.get(file.runtime)
    if file.calls and (language is None or not language.makes_calls):
        able = ", ".join(name for name, one in sorted(RUNTIMES.items()) if one.makes_calls)
        raise _wrong("calls", f"{file.runtime} makes no calls; these do: {able}", text)
    return tuple(dict.fromkeys(file.calls))


def _check_image(file: _File, text: str) -> None:
    """An image is whole: it takes no code and no packages."""
    if file.entry is not None:
        reason = f"'{file.runtime}' is an imported image, which has no entry; leave the line out"
        raise _wrong("entry", reason, text)
    if file.isolation != "standard":
        reason = f"'{file.runtime}' is an imported image, which runs with standard isolation only"
        raise _wrong("isolation", reason, text)
    if file.batch:
        reason = f"'{file.runtime}' is an imported image, whose server joins calls itself, or not"
        raise _wrong("batch", reason, text)
    if file.requirements:
        reason = f"'{file.runtime}' is an imported image; what it needs has to be in it"
        raise _wrong("requirements", reason, text)


def _check_language(file: _File, text: str, imported: Collection[str]) -> None:
    """The runtime exists, and entry and requirements are such as it takes."""
    language = RUNTIMES.get(file.runtime)
    if language is None or language.is_compiler:
        there = ", ".join((known(), *sorted(imported)))
        raise _wrong("runtime", f"there is no runtime '{file.runtime}'; there is: {there}", text)
    if file.entry is None:
        raise _missing("entry")
    if file.container is not None:
        reason = f"{file.runtime} is a language; [container] is for imported images"
        raise _wrong("container", reason, text)
    if not re.fullmatch(language.entry_pattern, file.entry) or ".." in file.entry:
        reason = f"not an entry of {file.runtime}; one looks like '{language.entry_example}'"
        raise _wrong("entry", reason, text)
    if file.requirements and not language.packager:
        reason = f"{file.runtime} installs none; put what the model needs into its folder"
        raise _wrong("requirements", reason, text)
    if file.resources.gpu_memory_mb and not file.resources.gpus:
        raise _wrong("gpu_memory_mb", "it needs gpus = 1 or more beside it", text, "resources")


def _missing(key: str) -> ManifestInvalid:
    reason = f"Object missing required field `{key}`"
    return ManifestInvalid(
        f"{FILE}: {key}: {reason}.",
        hint=_hint("", key, reason),
        fields=(FieldError(pointer=f"{FILE}:1", detail=f"{key}: {reason}"),),
    )


def _hint(section: str, key: str, reason: str) -> str:
    """What to write instead: the nearest key, the keys there are, or the line by default."""
    table = TABLES.get(section)
    if table is None:
        return f"One that works, for example:\n{EXAMPLE}"
    fields = {field.name: field for field in msgspec.structs.fields(table)}
    if "unknown field" in reason:
        near = difflib.get_close_matches(key[:100], fields, n=1)
        home = next((t for t, one in TABLES.items() if key in one.__struct_fields__), None)
        if home is not None and home != section:
            return f"It belongs into [{home}]." if home else "It belongs above all [tables]."
        asked = f"Did you mean '{near[0]}'? " if near else ""
        where = f"[{section}]" if section else FILE
        return f"{asked}{where} takes {', '.join(fields)}."
    if key in _WRITTEN:
        return f"Write, for example: {_WRITTEN[key]}"
    default = fields[key].default if key in fields else None
    if isinstance(default, (int, float)):
        return f"Write, for example: {key} = {default} (which it is without the line)"
    return f"One that works, for example:\n{EXAMPLE}"


def _wrong(key: str, reason: str, text: str, section: str = "") -> ManifestInvalid:
    line = line_of_key(text, section, key)
    dotted = f"{section}.{key}" if section else key
    return ManifestInvalid(
        f"{FILE}:{line}: {dotted}: {reason}.",
        hint=_hint(section, key, reason),
        fields=(FieldError(pointer=f"{FILE}:{line}", detail=f"{dotted}: {reason}"),),
    )


def _requirements(file: _File, captured: Mapping[str, bytes], text: str) -> tuple[str, ...]:
    if not file.requirements:
        return ()
    packager = PACKAGERS[RUNTIMES[file.runtime].packager]
    if isinstance(file.requirements, tuple):
        return packager.parse("\n".join(file.requirements), f"{FILE} requirements")
    if not re.fullmatch(packager.files, file.requirements):
        raise _wrong("requirements", f"not a file {file.runtime} takes: {packager.hint}", text)
    raw = captured.get(file.requirements)
    if raw is None:
        raise ManifestInvalid(
            f"{FILE} names '{file.requirements}', which is not at the top of the archive."
        )
    try:
        return packager.parse(text_from_bytes(raw), file.requirements)
    except TextRefused as error:
        raise ManifestInvalid(
            f"{file.requirements}:{error.line}: {error.reason}.", hint="Save it as plain UTF-8."
        ) from error


def place_of_key(captured: Mapping[str, bytes], section: str, key: str) -> str:
    """Where an upload that was accepted says something: ``file:line``."""
    text = captured.get(FILE, b"").decode("utf-8", "replace")
    return f"{FILE}:{line_of_key(text, section, key)}"


def place_of(captured: Mapping[str, bytes], package: str) -> str:
    """Where an upload asks for a package: ``file:line``; empty if it does not by this name.

    Args:
        captured: as for ``parse``, of an upload that was accepted.
        package: a name as a build's problem has it, ``numpy`` or ``numpy==1.0``.
    """
    if not package:
        return ""
    files: tuple[str, ...] = ("requirements.txt", "conda.yaml", "environment.yml")
    packager = PACKAGERS["wheels"]
    if FILE in captured:
        tree = tree_from_toml(captured[FILE])[1]
        language = RUNTIMES.get(str(tree.get("runtime")))
        if language is None or not language.packager:
            return ""
        named = tree.get("requirements", "")
        files = (named if isinstance(named, str) else FILE,)
        packager = PACKAGERS[language.packager]
    pattern = re.compile(packager.finds(package))
    for file in files:
        lines = captured.get(file, b"").decode("utf-8", "replace").splitlines()
        for number, line in enumerate(lines, start=1):
            if pattern.search(re.split(r"(?:^|\s)#", line, maxsplit=1)[0]):
                return f"{file}:{number}"
    return ""


def _invalid(error: msgspec.ValidationError, text: str) -> ManifestInvalid:
    """The problem for msgspec's message ``reason - at `$.section.key```, with the line found."""
    reason, _, where = str(error).partition(" - at ")
    path = [part for part in re.sub(r"\[\.*\d*\]", "", where.strip("`")).split(".")[1:] if part]
    named = re.search(r"(?:unknown|required) field `([^`]+)`", reason)
    if named:
        path.append(named.group(1))
    section, key = (".".join(path[:-1]), path[-1]) if path else ("", "")
    is_missing = "missing required" in reason
    line = 1 if is_missing else line_of_key(text, section, key)
    dotted = ".".join(path)
    place = FILE if is_missing else f"{FILE}:{line}"
    return ManifestInvalid(
        f"{place}: {dotted}: {reason}.",
        hint=_hint(section, key, reason),
        fields=(FieldError(pointer=f"{FILE}:{line}", detail=f"{dotted}: {reason}"),),
    )
