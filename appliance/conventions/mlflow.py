"""An MLflow model folder as a manifest: ``MLmodel`` and the requirement files beside it.

Owns: which flavours are run and how, and the schema and sample that a signature stands for.
Never: imports MLflow or follows a path out of the folder.
Read next: ``yaml_text``, ``sandbox/guest/python_mlflow.py``.

Flavours with a loader of their own (scikit-learn, ONNX) run without the mlflow package, which
would bring some seventy others; everything else with the flavour python_function runs through it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from appliance.conventions.pins import ASSUMED, Pins, pins_of, refused, yaml_of
from appliance.errors import ManifestInvalid
from appliance.records import Lineage, Manifest
from appliance.sandbox.runtimes import names
from appliance.yaml_text import Node

FILE = "MLmodel"
SAMPLE_FILE = "serving_input_example.json"
SAMPLE_BYTES_MAX = 16 * 1024
_OPTIONS_BYTES_MAX = 8 * 1024
_DEFAULT = "python3.11"
_PATH = re.compile(r"[\w][\w. +-]{0,100}(?:/[\w][\w. +-]{0,100}){0,6}")
_METHODS = frozenset({"predict", "predict_proba", "predict_log_proba", "decision_function"})
_MLFLOW = ("mlflow", "mlflow-skinny", "mlflow-tracing")
_NUMBER = {"type": "number"}
_OTHER_FORMS: dict[str, Any] = {
    "dataframe_split": "object",
    "rows": "array",
    "columns": ["object", "array"],
    "instances": "array",
    "inputs": ["object", "array"],
}
_TYPES: dict[str, dict[str, Any]] = {
    "boolean": {"type": "boolean"},
    "integer": {"type": "integer"},
    "long": {"type": "integer"},
    "float": _NUMBER,
    "double": _NUMBER,
    "string": {"type": "string"},
    "datetime": {"type": "string"},
}


def manifest_of(captured: Mapping[str, bytes], top: set[str]) -> Manifest:
    """The manifest of a folder that ``mlflow.*.save_model`` wrote.

    Args:
        captured: small text files at the top of the upload.
        top: every file at the top of the upload.

    Raises:
        ManifestInvalid: MLmodel or a requirement file is not readable, has no flavour that is run
            here, or pins too little; file, line and key are named.
    """
    tree = yaml_of(FILE, captured)
    flavours = _flavours(tree)
    pins = _pins(captured)
    notes: list[str] = []
    if "sklearn" in flavours:
        entry, options = _sklearn(flavours, pins)
    elif "onnx" in flavours:
        entry, options = _onnx(flavours, pins)
    elif "python_function" in flavours:
        entry, options = _python_function(flavours, pins)
    else:
        raise refused(
            FILE,
            flavours["*"].line,
            "flavors",
            f"none of {', '.join(sorted(set(flavours) - {'*'}))} is run here; "
            "python_function, sklearn and onnx are",
        )
    columns = _columns(tree)
    if columns and len(msgspec.json.encode(columns)) <= _OPTIONS_BYTES_MAX:
        options["columns"] = columns
    notes.append(_said(tree, flavours, entry))
    run = tree.text("run_id") or tree.text("model_id")
    return Manifest(
        runtime=_runtime(flavours, notes),
        entry=entry,
        requirements=pins.requirements(),
        lineage=Lineage(run="" if run == "null" else run[:4096]),
        input_schema=_schema(columns),
        options=options,
        convention="mlflow",
        notes=(*notes, *pins.notes),
        sample=_sample(captured),
    )


def _flavours(tree: Node) -> dict[str, Node]:
    found = tree.get("flavors")
    if found is None or not found.members():
        raise refused(FILE, found.line if found else 1, "flavors", "there is none")
    return {**found.members(), "*": found}


def _said(tree: Node, flavours: dict[str, Node], entry: str) -> str:
    flavour = entry[1:].partition(":")[0]
    version = tree.text("mlflow_version") or "an unknown version"
    how = "through the mlflow package" if flavour == "mlflow" else "without the mlflow package"
    own = sorted(set(flavours) - {"*", "python_function"})
    return f"an MLflow folder of {version}, flavour {(own or ['python_function'])[0]}, run {how}"


def _pins(captured: Mapping[str, bytes]) -> Pins:
    pins = pins_of(captured)
    if pins is None:
        raise ManifestInvalid(
            f"The folder has {FILE} but neither requirements.txt nor conda.yaml.",
            hint="Add the requirements.txt that MLflow wrote, or write one: pip freeze",
        )
    return pins


def _file(flavour: Node, name: str, key: str) -> str:
    """The path of the model's file in the folder."""
    found = flavour.get(key)
    path = flavour.text(key)
    if not path or not _PATH.fullmatch(path) or ".." in path:
        line = found.line if found else flavour.line
        raise refused(FILE, line, f"flavors.{name}.{key}", "it names no file of the folder")
    return path


def _sklearn(flavours: dict[str, Node], pins: Pins) -> tuple[str, dict[str, Any]]:
    flavour = flavours["sklearn"]
    path = _file(flavour, "sklearn", "pickled_model")
    pins.drop(*_MLFLOW)
    recorded = flavour.text("sklearn_version")
    if recorded and re.fullmatch(r"\d[\w.]{0,30}", recorded):
        pins.assume("scikit-learn", recorded, f"recorded in {FILE}")
    options: dict[str, Any] = {}
    if path.endswith(".skops"):
        pins.assume("skops", ASSUMED["skops"], f"{FILE} records none")
        listed = flavour.get("skops_trusted_types")
        trusted = [str(item.value) for item in listed.items()] if listed else []
        if trusted:
            options["trusted"] = trusted
    method = flavours["python_function"].text("predict_fn") if "python_function" in flavours else ""
    if method in _METHODS and method != "predict":
        options["method"] = method
    return f"@sklearn:{path}", options


def _onnx(flavours: dict[str, Node], pins: Pins) -> tuple[str, dict[str, Any]]:
    path = _file(flavours["onnx"], "onnx", "data")
    pins.drop(*_MLFLOW, "onnx")
    pins.assume("onnxruntime", ASSUMED["onnxruntime"], f"{FILE} records none")
    return f"@onnx:{path}", {}


def _python_function(flavours: dict[str, Node], pins: Pins) -> tuple[str, dict[str, Any]]:
    """Through ``mlflow.pyfunc``, which mlflow-skinny has; the full package adds a server."""
    version = pins.version("mlflow") or pins.version("mlflow-skinny")
    if not version:
        raise refused(
            FILE,
            flavours["python_function"].line,
            "flavors.python_function",
            "it is run through the mlflow package, which requirements.txt does not pin",
        )
    if pins.drop("mlflow"):
        pins.assume("mlflow-skinny", version, "in place of mlflow, which adds its server to it")
    pins.assume("pandas", ASSUMED["pandas"], "mlflow hands tables over as its frames")
    return "@mlflow", {}


def _runtime(flavours: dict[str, Node], notes: list[str]) -> str:
    function = flavours.get("python_function")
    version = function.text("python_version") if function else ""
    match = re.fullmatch(r"(\d+\.\d+)(?:\.\w+)*", version)
    wanted = f"python{match[1]}" if match else _DEFAULT
    if wanted in names():
        return wanted
    notes.append(f"recorded with Python {version}, run with {_DEFAULT}")
    return _DEFAULT


def _columns(tree: Node) -> dict[str, str]:
    """Names and MLflow types of a signature's columns; none without one or with tensors."""
    text = tree.text("signature", "inputs")
    try:
        inputs = msgspec.json.decode(text) if text else []
    except (msgspec.DecodeError, RecursionError) as error:
        found = tree.get("signature", "inputs")
        line = found.line if found else 1
        raise refused(FILE, line, "signature.inputs", "it is not JSON") from error
    if not isinstance(inputs, list) or not all(isinstance(one, dict) for one in inputs):
        return {}
    named = {one["name"]: one.get("type") for one in inputs if isinstance(one.get("name"), str)}
    plain = all(isinstance(kind, str) and kind != "tensor" for kind in named.values())
    return named if plain and len(named) == len(inputs) else {}


def _schema(columns: dict[str, str]) -> dict[str, Any] | None:
    """What a body may be, as JSON Schema: the forms of MLflow's server, and shorter ones."""
    if not columns:
        return None
    types = {name: _TYPES.get(kind, {}) for name, kind in columns.items()}
    records = {"type": "array", "items": {"type": "object", "properties": types}}
    others: dict[str, Any] = {key: {"type": kind} for key, kind in _OTHER_FORMS.items()}
    return {
        "type": ["object", "array"],
        "properties": {"dataframe_records": records, "records": records, **others},
    }


def _sample(captured: Mapping[str, bytes]) -> str:
    raw = captured.get(SAMPLE_FILE, b"")
    if not raw or len(raw) > SAMPLE_BYTES_MAX:
        return ""
    try:
        return msgspec.json.encode(msgspec.json.decode(raw)).decode()
    except (msgspec.DecodeError, RecursionError):
        return ""
