"""Entry ``@sklearn:FILE``: an estimator from a pickle, a joblib or a skops file, behind tables.

Owns: loading it, ``[options]`` method, trusted and columns, and what it says about itself.
Never: trusts a type that skops does not know unless the manifest lists it.
Read next: ``python_tables`` (bodies), ``python_serve`` (who calls this).
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

METHOD = "predict"


class Model:
    """A loaded estimator: ``predict`` answers a body, ``describe`` says what one looks like."""

    def __init__(self, estimator: Any, options: dict[str, Any], tables: ModuleType) -> None:
        """Serve one method of the estimator."""
        self.tables = tables
        self.estimator = estimator
        self.name = options.get("method") or METHOD
        self.method: Any = getattr(estimator, self.name, None)
        kind = f"{type(estimator).__module__}.{type(estimator).__qualname__}"
        if not callable(self.method):
            raise TypeError(
                f"the file holds a {kind}, which has no method '{self.name}'; write an "
                "appliance.toml with an entry of your own, like model:Model"
            )
        self.kind = kind
        names = getattr(estimator, "feature_names_in_", None)
        self.columns = dict(options.get("columns") or {})
        self.wanted = [str(name) for name in names] if names is not None else list(self.columns)
        self.needs_frame = names is not None
        self.pandas = pandas_or_none() if self.wanted else None

    def predict(self, inputs: Any) -> dict[str, Any]:
        """One answer per row, as ``predictions``; with ``classes`` where they are columns."""
        table = self.tables.table_from_inputs(inputs)
        answer = {"predictions": self.method(self.features(table))}
        classes = getattr(self.estimator, "classes_", None)
        if self.name != METHOD and classes is not None:
            answer["classes"] = classes
        return answer

    def features(self, table: Any) -> Any:
        """What the estimator takes: a frame where it knows names, else an array, else texts."""
        if self.wanted and self.pandas is not None:
            return table.frame(self.pandas, self.wanted)
        rows = table.ordered(self.wanted) if self.wanted else table.rows
        if rows and isinstance(rows[0], str):
            return rows  # a vectoriser's texts
        import numpy

        array = numpy.asarray(rows)
        return array.astype(object) if array.dtype.kind in "US" else array

    def describe(self) -> dict[str, Any]:
        """A body that it should answer, and one line about it."""
        count = getattr(self.estimator, "n_features_in_", None)
        said = f"{self.kind}, method {self.name}"
        if self.wanted:
            zero = self.tables.zero
            row = {name: zero(self.columns.get(name, "double")) for name in self.wanted}
            return {"summary": f"{said}, {len(row)} named features", "sample": {"records": [row]}}
        if count:
            sample = {"rows": [[0.0] * int(count)]}
            return {"summary": f"{said}, {count} features", "sample": sample}
        return {"summary": said, "sample": {"instances": ["some text"]}}


def pandas_or_none() -> Any:
    """The pandas package where the version's requirements bring it."""
    try:
        import pandas
    except ImportError:
        return None
    return pandas


def load(path: str, file: str, options: dict[str, Any], helper: Any) -> Model:
    """The model of a file of the artifact.

    Raises:
        ValueError: a skops file holds types that are not trusted; they are named.
    """
    full = os.path.join(path, file)
    if file.lower().endswith(".skops"):
        estimator = from_skops(full, file, options)
    else:
        try:
            import joblib
        except ImportError:
            import pickle

            with open(full, "rb") as opened:
                estimator = pickle.load(opened)
        else:
            estimator = joblib.load(full)
    return Model(estimator, options, helper("tables"))


def from_skops(full: str, file: str, options: dict[str, Any]) -> Any:
    """The object of a skops file, if every type in it is known to skops or listed."""
    import skops.io

    listed = list(options.get("trusted") or ())
    unknown = skops.io.get_untrusted_types(file=full)
    refused = sorted(set(unknown) - set(listed))
    if refused:
        names = ", ".join(f'"{name}"' for name in refused)
        raise ValueError(
            f"{file} holds types that are not trusted: {', '.join(refused)}. If you trust them, "
            f"write an appliance.toml with [options] trusted = [{names}]"
        )
    return skops.io.load(full, trusted=[name for name in unknown if name in listed])
