"""What an upload is when nobody wrote it down: a manifest derived from the files themselves.

Owns: the order in which conventions are tried, and the words when none fits or two do.
Never: opens a model file; what a file claims comes from ``probe``, the rest is names and text.
Read next: ``mlflow``, ``files``, ``manifest`` (what is derived here, written by hand).

A written ``appliance.toml`` always wins. Everything assumed is in ``Manifest.notes``, shown while
the version is registered and kept with it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from appliance import manifest, steps
from appliance.conventions import files as model_files
from appliance.conventions import mlflow
from appliance.errors import ManifestInvalid
from appliance.probe import Claims
from appliance.records import Manifest

_SHOWN = 8
_NEEDS_CODE = {
    ".pt": "PyTorch weights are numbers without the code that uses them",
    ".pth": "PyTorch weights are numbers without the code that uses them",
    ".safetensors": "safetensors are numbers without the code that uses them",
    ".h5": "Keras files are loaded by code of yours",
    ".keras": "Keras files are loaded by code of yours",
    ".ubj": "XGBoost files are loaded by code of yours",
    ".cbm": "CatBoost files are loaded by code of yours",
    ".jar": "a jar is run by the runtime java17",
}


def manifest_of(
    paths: Sequence[str],
    captured: Mapping[str, bytes],
    claims: Mapping[str, Claims],
    imported: Collection[str] = (),
) -> Manifest:
    """The manifest of an upload: the one it brings, else the one its files stand for.

    Args:
        paths: every file of the upload.
        captured: small text files at its top by path, as ``archive.Listing`` has them.
        claims: what the model files at its top say about themselves, by path.
        imported: names of the images that were imported as runtimes.

    Raises:
        ManifestInvalid: the written one is wrong, or nothing or more than one thing is recognised;
            the hint is the ``appliance.toml`` to write.
    """
    top = {path for path in paths if "/" not in path}
    if manifest.FILE in top:
        return manifest.parse(captured, imported)
    if steps.FILE in top:
        return steps.parse(captured)
    if mlflow.FILE in top:
        return mlflow.manifest_of(captured, top)
    if len(claims) > 1:
        raise _ambiguous(sorted(claims))
    for path, claim in claims.items():
        return model_files.manifest_of(path, claim, captured, paths)
    raise _unknown(paths, top)


def _ambiguous(found: list[str]) -> ManifestInvalid:
    named = ", ".join(f"'{path}'" for path in found[:_SHOWN])
    return ManifestInvalid(
        f"There are {len(found)} model files at the top level: {named}.",
        hint="Say in appliance.toml which one is the model, for example:\n"
        + model_files.example_of(found[0])
        + "or write a class that loads them all:\n"
        + manifest.EXAMPLE,
    )


def _unknown(paths: Sequence[str], top: set[str]) -> ManifestInvalid:
    """The refusal of what is not recognised, with the nearest thing there is to say."""
    folders = {path.partition("/")[0] for path in paths}
    if not top and len(folders) == 1:
        folder = next(iter(folders))
        return ManifestInvalid(
            f"Everything lies in the folder '{folder}'; the model's files belong at the top level.",
            hint=f"tar -C {folder} -c . (or: appliance model push {folder} TENANT/NAME)",
        )
    for path in sorted(paths):
        folder, _, file = path.rpartition("/")
        if folder and file in (mlflow.FILE, manifest.FILE):
            return ManifestInvalid(
                f"The model is in the folder '{folder}', which has the {file}; that belongs at "
                "the top level.",
                hint=f"tar -C {folder} -c . (or: appliance model push {folder} TENANT/NAME)",
            )
    named = ", ".join(f"'{path}'" for path in sorted(top)[:_SHOWN]) or "only folders"
    for path in sorted(top):
        reason = _NEEDS_CODE.get("." + path.rpartition(".")[2].lower())
        if reason:
            return ManifestInvalid(
                f"'{path}' alone is no model: {reason}.",
                hint=f"Write model.py and an appliance.toml beside it:\n{manifest.EXAMPLE}",
            )
    return ManifestInvalid(
        f"There is no {manifest.FILE}, and nothing that is recognised without one (an MLmodel "
        f"folder, .onnx, .skops, .joblib, .pkl, .rds) at the top level: {named}.",
        hint=f"Write {manifest.FILE} beside the model, for example:\n{manifest.EXAMPLE}",
    )
