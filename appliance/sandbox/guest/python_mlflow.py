"""Entry ``@mlflow``: a folder with an MLmodel, loaded by MLflow itself as ``python_function``.

Owns: handing a table over as the frame or arrays that MLflow wants, and its answer back.
Never: is used for flavours that have a loader here: see ``conventions.mlflow``.
Read next: ``python_tables`` (bodies), ``python_serve`` (who calls this).
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any


class Model:
    """A loaded python_function: ``predict`` answers a body, ``describe`` says what one is like."""

    def __init__(self, model: Any, options: dict[str, Any], tables: ModuleType) -> None:
        """Serve the model's ``predict``."""
        import numpy
        import pandas

        self.numpy = numpy
        self.pandas = pandas
        self.tables = tables
        self.model = model
        self.columns = dict(options.get("columns") or {})

    def predict(self, inputs: Any) -> dict[str, Any]:
        """What MLflow answers, as ``predictions``."""
        params = inputs.pop("params", None) if isinstance(inputs, dict) else None
        given = self.given(inputs)
        answer = self.model.predict(given, params=params) if params else self.model.predict(given)
        if hasattr(answer, "to_dict") and hasattr(answer, "columns"):
            answer = answer.to_dict(orient="records")
        return {"predictions": answer}

    def given(self, inputs: Any) -> Any:
        """Arrays where the body has tensors and the signature no columns, else a frame."""
        tensors = self.tables.tensors_from_inputs(inputs)
        if tensors is not None and not self.columns:
            return {name: self.numpy.asarray(value) for name, value in tensors.items()}
        table = self.tables.table_from_inputs(inputs)
        is_nested = bool(table.rows) and isinstance(table.rows[0], list)
        if not self.columns and table.names is None and is_nested:
            return self.numpy.asarray(table.rows)
        frame = table.frame(self.pandas, list(self.columns) or None)
        for name, kind in self.columns.items():
            if kind in ("float", "double", "integer", "long", "boolean", "datetime"):
                frame[name] = self.typed(frame[name], kind)
        return frame

    def typed(self, column: Any, kind: str) -> Any:
        """A column as the signature has it: JSON knows one kind of number, MLflow several."""
        if kind == "datetime":
            return self.pandas.to_datetime(column)
        kinds = {"float": "float32", "double": "float64", "integer": "int32", "long": "int64"}
        return column.astype(kinds.get(kind, "bool"))

    def describe(self) -> dict[str, Any]:
        """A body that it should answer, and one line about it."""
        found: dict[str, Any] = {"summary": f"MLflow python_function, {len(self.columns)} columns"}
        if self.columns:
            row = {name: self.tables.zero(kind) for name, kind in self.columns.items()}
            found["sample"] = {"dataframe_records": [row]}
        return found


def load(path: str, file: str, options: dict[str, Any], helper: Any) -> Model:
    """The model of the whole artifact."""
    for name in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        os.environ[name] = "true"
    from mlflow import pyfunc

    return Model(pyfunc.load_model(path), options, helper("tables"))
