"""What is recognised without a manifest, what is assumed, and what is said when nothing fits."""

from __future__ import annotations

import pickle
import zlib
from pathlib import Path
from typing import Any

import joblib
import pytest
import skops.io
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from appliance import archive, conventions, manifest, probe
from appliance.conventions.samples import sample_of
from appliance.conventions.toml import text_of
from appliance.errors import ManifestInvalid
from appliance.records import Manifest

FOLDER = Path(__file__).parents[2] / "examples" / "iris-mlflow" / "model"
ROWS = [[0.0, 1.0], [1.0, 0.0], [2.0, 3.0], [3.0, 1.0]]
FITTED = make_pipeline(StandardScaler(), LogisticRegression()).fit(ROWS, [0, 1, 0, 1])


def recognised(files: dict[str, bytes], step: int = 1 << 20) -> Manifest:
    """As the appliance does it: the text of small files, and probes fed piece by piece."""
    probes, captured = probe.Probes(), {}
    for path, content in files.items():
        if archive.is_captured(path, len(content), len(captured)):
            captured[path] = content
        watcher = probes.watch(path)
        for start in range(0, len(content) if watcher else 0, step):
            watcher(content[start : start + step])  # type: ignore[misc]
    return conventions.manifest_of(list(files), captured, probes.claims)


def refusal(files: dict[str, bytes]) -> ManifestInvalid:
    with pytest.raises(ManifestInvalid) as caught:
        recognised(files)
    return caught.value


def mlflow_folder(**changed: bytes) -> dict[str, bytes]:
    files = {path.name: path.read_bytes() for path in FOLDER.iterdir()}
    return {**files, **changed}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("step", [7, 1 << 20])
def test_a_pickle_says_which_scikit_learn_wrote_it(protocol: int, step: int) -> None:
    found = recognised({"m.pkl": pickle.dumps(FITTED, protocol=protocol)}, step)
    assert found.entry == "@sklearn:m.pkl"
    assert found.requirements == ("scikit-learn==1.9.1",)
    assert found.convention == "pickle"
    assert any("recorded in m.pkl" in note for note in found.notes)


@pytest.mark.parametrize("compress", [0, 3, ("gzip", 3)])
def test_joblib_files_are_read_through_their_compression(tmp_path: Path, compress: Any) -> None:
    joblib.dump(FITTED, tmp_path / "m.joblib", compress=compress)
    found = recognised({"m.joblib": (tmp_path / "m.joblib").read_bytes()}, 100)
    assert found.requirements == ("scikit-learn==1.9.1",)


def test_a_compression_that_is_not_looked_into_asks_for_the_versions(tmp_path: Path) -> None:
    joblib.dump(FITTED, tmp_path / "m.joblib", compress=("xz", 3))
    packed = (tmp_path / "m.joblib").read_bytes()
    problem = refusal({"m.joblib": packed})
    assert "is compressed" in problem.detail
    assert "pip freeze > requirements.txt" in problem.hint
    pins = b"scikit-learn==1.9.1\n"
    assert recognised({"m.joblib": packed, "requirements.txt": pins}).requirements == (
        "scikit-learn==1.9.1",
    )


def test_skops_says_both_versions() -> None:
    found = recognised({"m.skops": skops.io.dumps(FITTED)}, 1000)
    assert found.requirements == ("scikit-learn==1.9.1", "skops==0.16.0")


def test_requirements_beside_a_file_win_and_a_difference_is_noted() -> None:
    pins = b"scikit-learn==1.5.0\nnumpy==1.26.4\n"
    found = recognised({"m.pkl": pickle.dumps(FITTED), "requirements.txt": pins})
    assert found.requirements == ("numpy==1.26.4", "scikit-learn==1.5.0")
    assert "m.pkl was written by scikit-learn 1.9.1, not 1.5.0" in found.notes


def test_a_package_without_a_recorded_version_is_named() -> None:
    other = b"\x80\x04\x8c\x0fxgboost.sklearn\x94\x8c\rXGBClassifier\x94\x93\x94"
    problem = refusal({"m.pkl": pickle.dumps(FITTED)[:-1] + other + b"."})
    assert "xgboost" in problem.detail
    assert "pip freeze" in problem.hint


def test_a_class_of_the_training_script_is_refused_before_anything_is_built() -> None:
    script = b"\x80\x04\x8c\x08__main__\x94\x8c\x05Mine\x94\x93\x94"
    problem = refusal({"m.pkl": pickle.dumps(FITTED)[:-1] + script + b"."})
    assert "__main__" in problem.detail


def test_a_class_in_a_file_beside_the_pickle_needs_no_package() -> None:
    mine = b"\x80\x04\x8c\x05steps\x94\x8c\x04Mine\x94\x93\x94"
    files = {"m.pkl": pickle.dumps(FITTED)[:-1] + mine + b".", "steps.py": b""}
    assert recognised(files).requirements == ("scikit-learn==1.9.1",)


def test_an_onnx_file_gets_a_tested_runtime() -> None:
    found = recognised({"m.onnx": b"\x08\x07"})
    assert (found.runtime, found.entry) == ("python3.11", "@onnx:m.onnx")
    assert found.requirements[0].startswith("onnxruntime==")


def test_an_rds_file_is_run_by_r() -> None:
    found = recognised({"fit.rds": b"X\n"})
    assert (found.runtime, found.entry, found.convention) == ("r4.2", "@rds:fit.rds", "rds")


def test_an_mlflow_folder_keeps_its_pins_columns_and_example() -> None:
    found = recognised(mlflow_folder())
    assert found.entry == "@sklearn:model.pkl"
    assert "scikit-learn==1.9.1" in found.requirements
    assert list(found.options["columns"]) == [
        "sepal length (cm)",
        "sepal width (cm)",
        "petal length (cm)",
        "petal width (cm)",
    ]
    assert found.sample.startswith('{"dataframe_split"')
    assert "3.17.2" in found.notes[0]


def test_conda_yaml_is_read_where_there_is_no_requirements_file() -> None:
    files = mlflow_folder()
    del files["requirements.txt"]
    assert recognised(files).requirements == recognised(mlflow_folder()).requirements


def test_mlflow_itself_is_installed_only_where_it_runs_the_model() -> None:
    files = mlflow_folder()
    pins = files["requirements.txt"] + b"\nmlflow==3.17.2"
    assert not any(
        "mlflow" in pin for pin in recognised({**files, "requirements.txt": pins}).requirements
    )
    text = files["MLmodel"]
    start, end = text.index(b"  sklearn:"), text.index(b"is_signature")
    found = recognised({**files, "requirements.txt": pins, "MLmodel": text[:start] + text[end:]})
    assert found.entry == "@mlflow"
    assert "mlflow-skinny==3.17.2" in found.requirements
    assert any("in place of mlflow" in note for note in found.notes)


def test_what_skops_may_trust_comes_from_the_mlmodel() -> None:
    text = mlflow_folder()["MLmodel"].replace(
        b"pickled_model: model.pkl", b"pickled_model: m.skops"
    )
    text = text.replace(b"trusted_types: null", b"trusted_types: [numpy.dtype, a.b]")
    found = recognised(mlflow_folder(MLmodel=text))
    assert found.options["trusted"] == ["numpy.dtype", "a.b"]
    assert any(pin.startswith("skops==") for pin in found.requirements)


def test_a_refusal_of_mlmodel_names_file_line_and_key() -> None:
    text = mlflow_folder()["MLmodel"]
    cases = {
        "MLmodel:1: flavors": text.replace(b"flavors:", b"flavours:"),
        "MLmodel:12: flavors.sklearn.pickled_model": text.replace(
            b"pickled_model: model.pkl", b"pickled_model: ../x"
        ),
        "signature.inputs: it is not JSON": text.replace(b"inputs: '[{", b"inputs: '[[{"),
        "anchors and aliases": text + b"x: &a [1]\ny: *a\n",
    }
    for said, changed in cases.items():
        problem = refusal(mlflow_folder(MLmodel=changed))
        assert said in problem.detail
        assert problem.fields
        assert problem.fields[0].pointer.startswith("MLmodel:")


def test_a_flavour_nobody_runs_is_named_with_those_that_are() -> None:
    text = b"flavors:\n  spark:\n    model_data: sparkml\n"
    problem = refusal(mlflow_folder(MLmodel=text))
    assert "spark" in problem.detail
    assert "python_function" in problem.detail


def test_a_range_in_a_requirement_file_is_named_with_its_line() -> None:
    problem = refusal(mlflow_folder(**{"requirements.txt": b"numpy==2.4.6\nscipy>=1.0\n"}))
    assert "requirements.txt:2" in problem.detail
    files = mlflow_folder(**{"conda.yaml": b"dependencies:\n- python=3.11\n- pip:\n  - numpy<3\n"})
    del files["requirements.txt"]
    assert "conda.yaml:4: dependencies: 'numpy<3'" in refusal(files).detail


def test_two_candidates_are_named_and_the_manifest_that_chooses_is_shown() -> None:
    problem = refusal({"a.onnx": b"", "b.pkl": b""})
    assert "'a.onnx', 'b.pkl'" in problem.detail
    assert 'entry = "@onnx:a.onnx"' in problem.hint


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"m/MLmodel": b"", "m/x": b""}, "tar -C m -c ."),
        ({"README.md": b"", "m/MLmodel": b""}, "push m TENANT/NAME"),
        ({"weights.pt": b""}, 'entry = "model:Model"'),
        ({"notes.md": b""}, 'runtime = "python3.11"'),
    ],
)
def test_what_is_not_recognised_is_answered_with_what_to_do(
    files: dict[str, bytes], said: str
) -> None:
    assert said in refusal(files).hint


def test_a_written_manifest_wins() -> None:
    text = b'runtime = "python3.11"\nentry = "model:Model"\n'
    found = recognised({**mlflow_folder(), "m.onnx": b"", "appliance.toml": text})
    assert (found.entry, found.convention) == ("model:Model", "")


@pytest.mark.parametrize(
    "files",
    [
        mlflow_folder(),
        {"m.onnx": b""},
        {"fit.rds": b""},
        {"m.pkl": pickle.dumps(FITTED)},
        {
            "appliance.toml": b'runtime = "python3.11"\nentry = "@sklearn:m.pkl"\n'
            b'[options]\nmethod = "predict_proba"\n[resources]\nmemory_mb = 256\n'
            b'[tags]\n"a b" = "q\\"\\u007f"\n[lineage]\ndata = ["x"]\n'
        },
    ],
)
def test_the_manifest_shown_is_the_manifest_meant(files: dict[str, bytes]) -> None:
    found = recognised(files)
    again = manifest.parse({"appliance.toml": text_of(found).encode()})
    for key in ("runtime", "entry", "requirements", "options", "resources", "lineage", "tags"):
        assert getattr(again, key) == getattr(found, key), key
    assert again.input_schema == found.input_schema


def test_looking_into_a_hostile_file_stays_quick() -> None:
    import time

    for content in (
        b"\x8c_sklearn_version" * 200_000,
        b"c." * 2_000_000,
        b"\x8c\x01a" * 1_000_000,
        zlib.compress(bytes(1 << 29)),
    ):
        started = time.process_time()
        with pytest.raises(ManifestInvalid):
            recognised({"m.pkl": content})
        assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("schema", "sample"),
    [
        ({"type": "array", "minItems": 2, "items": {"type": "number"}}, [0.0, 0.0]),
        (
            {"type": "object", "required": ["a"], "properties": {"a": {"type": "string"}}},
            {"a": "text"},
        ),
        ({"type": "integer", "minimum": 3}, 3),
        ({"enum": ["x", "y"]}, "x"),
        ({"anyOf": [{"type": "boolean"}, {"type": "string"}]}, False),
        ({"type": "array", "prefixItems": [{"const": 1}, {"type": "null"}]}, [1, None]),
    ],
)
def test_a_sample_fits_its_schema(schema: dict[str, Any], sample: Any) -> None:
    assert sample_of(schema) == sample


def test_a_schema_that_contains_itself_has_an_end() -> None:
    schema: dict[str, Any] = {"type": "object", "properties": {}}
    schema["properties"]["a"] = schema
    assert sample_of(schema)
