"""A single model file as a manifest: ONNX, pickles of scikit-learn, skops, R's rds.

Owns: the entry of each kind, and which versions a file's own record implies.
Never: opens the file; its claims come from ``probe``.
Read next: ``sandbox/guest/python_sklearn.py`` and ``python_onnx.py`` (what runs inside).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from appliance.conventions.pins import ASSUMED, REQUIREMENTS, Pins, pins_of
from appliance.errors import ManifestInvalid
from appliance.probe import Claims, kind_of
from appliance.records import Manifest

PYTHON = "python3.11"
R = "r4.2"
_ENTRY = {"pickle": "@sklearn", "skops": "@sklearn", "onnx": "@onnx", "rds": "@rds"}
_NAMED = {
    "pickle": "a pickled scikit-learn estimator",
    "skops": "a scikit-learn estimator in skops format",
    "onnx": "an ONNX model",
    "rds": "an R object",
}
_COMES_ALONG = frozenset({"sklearn", "numpy", "scipy", "joblib", "skops"})


def example_of(path: str) -> str:
    """The ``appliance.toml`` that names this file as the model."""
    kind = kind_of(path) or "pickle"
    runtime = R if kind == "rds" else PYTHON
    lines = [f'runtime = "{runtime}"', f'entry = "{_ENTRY[kind]}:{path}"']
    if runtime == PYTHON:
        package = (
            "onnxruntime==" + ASSUMED["onnxruntime"] if kind == "onnx" else "scikit-learn==..."
        )
        lines.append(f'requirements = ["{package}"]')
    return "\n".join(lines) + "\n"


def manifest_of(
    path: str, claims: Claims, captured: Mapping[str, bytes], paths: Sequence[str]
) -> Manifest:
    """The manifest that one model file at the top of an upload stands for.

    Raises:
        ManifestInvalid: a version it needs is written nowhere.
    """
    entry = f"{_ENTRY[claims.kind]}:{path}"
    said = f"'{path}' is {_NAMED[claims.kind]}"
    if claims.kind == "rds":
        return Manifest(runtime=R, entry=entry, convention=claims.kind, notes=(said,))
    pins = pins_of(captured)
    is_pinned = pins is not None
    pins = pins or Pins()
    if claims.kind == "onnx":
        pins.assume("onnxruntime", ASSUMED["onnxruntime"], "the file records none")
    else:
        _sklearn_pins(path, claims, pins, paths, is_pinned=is_pinned)
    return Manifest(
        runtime=PYTHON,
        entry=entry,
        requirements=pins.requirements(),
        convention=claims.kind,
        notes=(said, *pins.notes),
    )


def _sklearn_pins(
    path: str, claims: Claims, pins: Pins, paths: Sequence[str], *, is_pinned: bool
) -> None:
    if claims.kind == "skops":
        pins.assume("skops", claims.skops or ASSUMED["skops"], f"recorded in {path}")
    if claims.sklearn:
        written = pins.version("scikit-learn")
        if written and written != claims.sklearn:
            pins.notes.append(f"{path} was written by scikit-learn {claims.sklearn}, not {written}")
        pins.assume("scikit-learn", claims.sklearn, f"recorded in {path}")
    if is_pinned:
        return
    if not claims.sklearn:
        why = "is compressed" if claims.is_packed else "records no scikit-learn version"
        raise _unpinned(f"'{path}' {why}, and there is no {REQUIREMENTS} beside it")
    brought = {name.removesuffix(".py") for name in (p.partition("/")[0] for p in paths)}
    if "__main__" in claims.packages:
        raise ManifestInvalid(
            f"'{path}' uses a class that was defined in the training script itself (__main__).",
            hint="Move the class to a file of its own, import it in the script, save the model "
            "again, and put that file beside it.",
        )
    missing = claims.packages - _COMES_ALONG - brought - sys.stdlib_module_names
    if missing:
        named = ", ".join(sorted(missing)[:5])
        raise _unpinned(f"'{path}' needs {named}, whose versions it does not record")


def _unpinned(reason: str) -> ManifestInvalid:
    return ManifestInvalid(
        f"{reason}.",
        hint=f"Put the versions of the training environment beside it: pip freeze > {REQUIREMENTS}",
    )
