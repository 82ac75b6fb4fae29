"""Rows by name: what `DataFrame.itertuples` gives, with one class for all tables of the same columns."""

import numpy as np
import pandas as pd

from core.named_rows import named_rows


def test_rows_are_those_of_itertuples():
    table = pd.DataFrame(
        {"layer": [1, 2], "value": [0.5, np.nan], "text": ["a", None], "near": pd.array([True, None], "boolean"),
         "kind": pd.Categorical(["x", "y"])}, index=[7, 9],
    )  # fmt: skip
    rows, theirs = list(named_rows(table)), list(table.itertuples(index=False))
    assert [row._fields for row in rows] == [row._fields for row in theirs]
    for row, other in zip(rows, theirs, strict=True):
        assert all(pd.isna(value) if pd.isna(its) else value == its for value, its in zip(row, other, strict=True))
    assert [type(value) for value in rows[0]] == [int, float, str, bool, str], "plain values"
    assert rows[1].near is pd.NA


def test_names_that_are_no_identifiers_and_names_twice_leave_the_places():
    table = pd.DataFrame([[1, 2, 3]], columns=["over draws", "a", "a"])
    (row,) = named_rows(table)
    assert tuple(row) == (1, 2, 3) and row.a == 2


def test_no_rows():
    assert list(named_rows(pd.DataFrame(columns=["a"]))) == []


def test_tables_of_the_same_columns_share_a_class():
    one, other = (next(named_rows(pd.DataFrame({"a": [n], "b": [n]}))) for n in range(2))
    assert type(one) is type(other) and one != other
