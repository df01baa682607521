"""Bodies of tabular models: rows, records, columns, the forms of MLflow's server, and CSV.

Owns: turning any of these into one ``Table``, and that into what a model takes.
Never: imports a package unless a model needs it; is imported by the appliance.
Read next: ``python_sklearn``, ``python_onnx``, ``python_mlflow`` (who use it).

    [[1, 2], [3, 4]]                      {"rows": [[1, 2], [3, 4]], "columns": ["a", "b"]}
    [{"a": 1, "b": 2}]                    {"records": [{"a": 1, "b": 2}]}
    {"columns": {"a": [1, 3]}}            {"dataframe_split": {"columns": [...], "data": [...]}}
    {"dataframe_records": [...]}          {"instances": [...]}
    {"inputs": [...] or {"a": [...]}}     text/csv with a line of names
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FORMS = "rows, records, columns, dataframe_split, dataframe_records, instances, inputs"


class Table:
    """Rows in order, each a list or a single value; ``names`` of the columns where known."""

    def __init__(self, rows: list[Any], names: list[str] | None) -> None:
        """Rows as they came; ``names`` in the order of their values."""
        self.rows = rows
        self.names = names

    def ordered(self, wanted: list[str]) -> list[Any]:
        """The rows with their columns in the wanted order; as they are where names are missing."""
        if self.names is None or self.names == wanted:
            return self.rows
        place = {name: index for index, name in enumerate(self.names)}
        missing = [name for name in wanted if name not in place]
        if missing:
            raise ValueError(f"the columns {missing[:5]} are missing; there are {self.names[:20]}")
        order = [place[name] for name in wanted]
        return [[row[index] for index in order] for row in self.rows]

    def frame(self, pandas: Any, wanted: list[str] | None) -> Any:
        """A pandas DataFrame; the wanted names name columns that came without."""
        rows = self.ordered(wanted) if wanted else self.rows
        if rows and not isinstance(rows[0], list):
            rows = [[value] for value in rows]
        names = wanted or self.names
        if names and rows and len(rows[0]) != len(names):
            raise ValueError(f"a row has {len(rows[0])} values, the model has {len(names)} columns")
        return pandas.DataFrame(rows, columns=names)


def table_from_inputs(inputs: Any) -> Table:
    """The table of a body, in whichever form it came."""
    if isinstance(inputs, str):
        return _from_csv(inputs)
    if isinstance(inputs, list):
        return _from_list(inputs)
    if not isinstance(inputs, dict):
        raise ValueError(f"the body is a {type(inputs).__name__}; send JSON with one of {FORMS}")
    keys = [key for key in inputs if key in FORMS.split(", ")]
    if "rows" in inputs:
        names = inputs.get("columns")
        if names is not None and not isinstance(names, list):
            raise ValueError("beside rows, columns is the list of their names")
        return Table(_list(inputs["rows"], "rows"), names)
    if len(keys) != 1:
        raise ValueError(f"the body has {keys or list(inputs)[:10]}; it needs one of {FORMS}")
    key = keys[0]
    value = inputs[key]
    if key == "dataframe_split":
        if not isinstance(value, dict) or "data" not in value:
            raise ValueError('dataframe_split is {"columns": [...], "data": [[...]]}')
        return Table(_list(value["data"], "data"), value.get("columns"))
    if isinstance(value, dict):
        return _from_columns(value)
    return _from_list(_list(value, key))


def tensors_from_inputs(inputs: Any) -> dict[str, Any] | None:
    """The arrays by name of ``{"inputs": {...}}``; None where the body is something else."""
    value = inputs.get("inputs") if isinstance(inputs, dict) else None
    return value if isinstance(value, dict) else None


def _list(value: Any, key: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{key} is no list")
    return value


def _from_list(rows: list[Any]) -> Table:
    """Lists, records or single values; records may lack values, which are then null."""
    if not rows or not isinstance(rows[0], dict):
        return Table(rows, None)
    names: dict[str, None] = {}
    for row in rows:
        if not isinstance(row, dict):
            raise ValueError("the first row is a record, another is none")
        names.update(dict.fromkeys(row))
    return Table([[row.get(name) for name in names] for row in rows], list(names))


def _from_columns(columns: dict[str, Any]) -> Table:
    values = {k: v if isinstance(v, list) else [v] for k, v in columns.items()}
    if len({len(v) for v in values.values()}) > 1:
        raise ValueError("the columns are not equally long")
    return Table([list(row) for row in zip(*values.values(), strict=True)], list(values))


def _from_csv(text: str) -> Table:
    import csv

    lines = list(csv.reader(text.splitlines()))
    if not lines:
        raise ValueError("the body is empty")
    return Table([[_value(cell) for cell in line] for line in lines[1:] if line], lines[0])


def _value(cell: str) -> Any:
    """A number where it is one, null where it is empty, else the text."""
    if not cell:
        return None
    try:
        return int(cell) if cell.lstrip("+-").isdigit() else float(cell)
    except ValueError:
        return cell


def zero(kind: str) -> Any:
    """A value of an MLflow type, for a sample."""
    return {"string": "", "boolean": False, "integer": 0, "long": 0, "datetime": "2000-01-01"}.get(
        kind, 0.0
    )
