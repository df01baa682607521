"""Entry ``@onnx:FILE``: an ONNX model on ONNX Runtime, behind tables or named tensors.

Owns: loading it, matching a body to its inputs, and what it says about itself.
Never: fetches anything; external data of a model lies beside it in the artifact.
Read next: ``python_tables`` (bodies), ``python_serve`` (who calls this).
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

TYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int16)": "int16",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(bool)": "bool",
    "tensor(string)": "object",
}


class Model:
    """A loaded session: ``predict`` answers a body, ``describe`` says what one looks like."""

    def __init__(self, session: Any, tables: ModuleType) -> None:
        """Serve every output of the session."""
        import numpy

        self.numpy = numpy
        self.tables = tables
        self.session = session
        self.inputs = session.get_inputs()
        self.outputs = [output.name for output in session.get_outputs()]

    def predict(self, inputs: Any) -> dict[str, Any]:
        """Every output by name, as ``predictions``."""
        found = self.session.run(self.outputs, self.feeds(inputs))
        pairs = zip(self.outputs, found, strict=True)
        return {"predictions": {name: plain(value) for name, value in pairs}}

    def feeds(self, inputs: Any) -> dict[str, Any]:
        """Arrays by input name: tensors as they are, a table as one matrix or column by column."""
        tensors = self.tables.tensors_from_inputs(inputs)
        names = [one.name for one in self.inputs]
        if tensors is not None:
            unknown = sorted(set(tensors) ^ set(names))
            if unknown:
                raise ValueError(f"the model's inputs are {names}; {unknown} do not match")
            return {one.name: self.array(one, tensors[one.name]) for one in self.inputs}
        table = self.tables.table_from_inputs(inputs)
        if len(names) == 1:
            return {names[0]: self.array(self.inputs[0], table.rows)}
        rows = table.ordered(names)
        if rows and len(rows[0]) != len(names):
            raise ValueError(f"a row has {len(rows[0])} values, the model has inputs {names}")
        columns = [[[row[index]] for row in rows] for index in range(len(names))]
        pairs = zip(self.inputs, columns, strict=True)
        return {one.name: self.array(one, column) for one, column in pairs}

    def array(self, one: Any, value: Any) -> Any:
        """A value as the type of an input, with an axis of batches where a row came alone."""
        kind = TYPES.get(one.type)
        if kind is None:
            raise ValueError(f"input '{one.name}' is a {one.type}, which JSON cannot carry")
        array = self.numpy.asarray(value, dtype=kind)
        rank = len(one.shape)
        if array.ndim == rank - 1 and array.ndim > 0 and one.shape[-1] in (1, "1"):
            return array[..., None]
        return array

    def describe(self) -> dict[str, Any]:
        """A body that it should answer, its inputs as JSON Schema, and one line about it."""
        said = ", ".join(f"{one.name} {one.type}{list(one.shape)}" for one in self.inputs)
        tensors: dict[str, Any] = {}
        schemas: dict[str, Any] = {}
        for one in self.inputs:
            shape = [size if isinstance(size, int) and size > 0 else 1 for size in one.shape]
            kind = TYPES.get(one.type, "float32")
            fill: Any = "" if kind == "object" else kind == "float32" and 0.0
            tensors[one.name] = filled(shape, fill if kind != "bool" else False)
            schemas[one.name] = {"type": "array", "description": f"{one.type}{list(one.shape)}"}
        return {
            "summary": f"ONNX with inputs {said} and outputs {', '.join(self.outputs)}",
            "sample": {"inputs": tensors},
            "input_schema": {
                "type": ["object", "array"],
                "properties": {
                    "inputs": {"type": ["object", "array"], "properties": schemas},
                    "rows": {"type": "array"},
                    "instances": {"type": "array"},
                    "records": {"type": "array"},
                    "dataframe_split": {"type": "object"},
                    "dataframe_records": {"type": "array"},
                },
            },
        }


def filled(shape: list[int], value: Any) -> Any:
    """Nested lists of this shape; shorter where it would be a large sample."""
    if not shape:
        return value
    return [filled(shape[1:], value) for _ in range(shape[0])]


def plain(value: Any) -> Any:
    """An output as lists and numbers; a map's keys as text, which JSON needs."""
    if isinstance(value, list):
        return [plain(member) for member in value]
    if isinstance(value, dict):
        return {str(key): plain(member) for key, member in value.items()}
    return value


def load(path: str, file: str, options: dict[str, Any], helper: Any) -> Model:
    """The model of a file of the artifact."""
    import onnxruntime

    chosen = onnxruntime.SessionOptions()
    # The sandbox's own number of threads: by default there is one for every core of the machine.
    chosen.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS") or 1)
    chosen.inter_op_num_threads = 1
    chosen.log_severity_level = 3
    providers = [
        name
        for name in ("CUDAExecutionProvider", "ROCMExecutionProvider", "CPUExecutionProvider")
        if name in onnxruntime.get_available_providers()
    ]
    session = onnxruntime.InferenceSession(
        os.path.join(path, file), sess_options=chosen, providers=providers
    )
    return Model(session, helper("tables"))
