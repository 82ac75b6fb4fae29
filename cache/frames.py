"""The two tables that the store keeps, as data frames: their columns, their types, their way in and out.

Knows pandas and Arrow; no files, no SQL.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
import pyarrow as pa

from core.errors import StoreError

ROW_COLUMNS: dict[str, str] = {
    "kind": "str",
    "layer": "Int64",
    "pos": "Int64",
    "expert": "Int64",
    "clean_active": "boolean",
    "router_weight_clean": "float64",
    "router_weight_corrupt": "float64",
    "true_logit": "float64",
    "foil_logit": "float64",
    "direct": "float64",
}
"""Columns of a row set and the pandas types they come back as. `kind` is never missing; the others may be."""

ROUTING_COLUMNS: dict[str, str] = {
    "layer": "int64",
    "pos": "int64",
    "slot": "int64",
    "expert": "int64",
    "router_weight": "float64",
    "margin": "float64",
    "near_tie": "boolean",
}
"""Columns of a run's routing table. `router_weight`, `margin` and `near_tie` may be missing; `near_tie` may be left
out when writing."""

_ARROW = {
    "str": pa.string(),
    "int64": pa.int64(),
    "Int64": pa.int64(),
    "float64": pa.float64(),
    "boolean": pa.bool_(),
}
_OPTIONAL = {"near_tie"}


def normalise(frame: pd.DataFrame, columns: dict[str, str]) -> pd.DataFrame:
    """The given columns only, in order, with the store's types and a fresh index. Values are not changed.

    Fresh tables passed through here compare equal with the same tables read back. Raises StoreError (a mistake of
    the caller, found before anything is written) for a missing column or a value that does not fit its type.
    """
    missing = [name for name in columns if name not in frame.columns and name not in _OPTIONAL]
    if missing:
        raise StoreError(f"A table for the store lacks the columns {', '.join(missing)}.")
    out = {}
    for name, dtype in columns.items():
        values = frame[name] if name in frame.columns else pd.Series(pd.NA, index=frame.index, dtype=dtype)
        try:
            out[name] = _cast(values.reset_index(drop=True), dtype)
        except (TypeError, ValueError) as error:
            raise StoreError(f"The column {name} of a table for the store does not fit: {error}") from error
    return pd.DataFrame(out)


def _cast(values: pd.Series, dtype: str) -> pd.Series:
    if dtype == "float64":
        return pd.to_numeric(values).astype("Float64").astype("float64")
    if dtype == "str":
        if values.isna().any():
            raise ValueError("it has missing values")
        return values.astype("str")
    if values.dtype == object:  # Python ints or bools with None among them
        values = values.astype("boolean" if dtype == "boolean" else "Int64")
    if dtype == "boolean" and values.dtype != "boolean":
        return values.astype("boolean")
    return values.astype(dtype)


def to_arrow(tables: Iterable[tuple[int, pd.DataFrame]], columns: dict[str, str], *, owner: str) -> pa.Table:
    """Several normalised tables as one Arrow table, each with its owner's id and the order of its rows."""
    parts = []
    for owner_id, frame in tables:
        n = len(frame)
        arrays = [pa.array([owner_id] * n, pa.int64()), pa.array(range(n), pa.int64())]
        arrays += [pa.array(frame[name], type=_ARROW[dtype], from_pandas=True) for name, dtype in columns.items()]
        parts.append(pa.table(arrays, names=[owner, "ordinal", *columns]))
    return pa.concat_tables(parts)


_NULLABLE = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}


def from_arrow(table: pa.Table, columns: dict[str, str]) -> pd.DataFrame:
    """A table read from the store as a frame with the types of `columns`."""
    frame = table.select(list(columns)).to_pandas(types_mapper=_NULLABLE.get)
    return frame.astype({name: dtype for name, dtype in columns.items() if str(frame.dtypes[name]) != dtype})


def split(table: pa.Table, owner: str, columns: dict[str, str]) -> dict[int, pd.DataFrame]:
    """A table sorted by (owner, ordinal) as one frame per owner id. Owners without rows are not in it."""
    whole = from_arrow(table, columns)
    owners, starts, counts = np.unique(table.column(owner).to_numpy(), return_index=True, return_counts=True)
    out = {}
    for owner_id, start, n in zip(owners.tolist(), starts.tolist(), counts.tolist(), strict=True):
        part = whole.iloc[start : start + n]
        part.index = pd.RangeIndex(n)
        out[owner_id] = part
    return out


def empty(columns: dict[str, str]) -> pd.DataFrame:
    """A table of no rows."""
    return pd.DataFrame({name: pd.Series([], dtype=dtype) for name, dtype in columns.items()})
