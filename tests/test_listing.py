"""Tables on pages: what Streamlit sends to the browser of each cell, shown and raw."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from streamlit.testing.v1 import AppTest

TABLE = """
import ast
from pathlib import Path

import numpy as np
import pandas as pd
import streamlit as st

from core import formats
from pages.parts import listing
from pages.parts.listing import Column

frame = pd.DataFrame({
    "name": ["L01E001", "L01E002", None],
    "rescue": [-1.5, -0.0002, np.nan],
    "share": [0.1, np.nan, 0.5],
    "n": pd.array([1234, None, -3], dtype="Int64"),
    "tokens": [7, 12000, 0],
    "size": [1500, 10**9, 0],
    "clean_active": [True, False, True],
    "hidden": [1, 2, 3],
}, index=[5, 6, 9])
columns = {
    "share": Column("share of all", "Of what."),
    "name": Column("expert", width=80),
    "rescue": Column("rescue", "Logits."),
    "n": Column("n"),
    "tokens": Column("tokens"),
    "size": Column("size", form=formats.size),
    "clean_active": Column("active"),
    "not there": Column("nowhere"),
}
listing.show(frame, columns, alt="A table", key="table", most=100)
"""


@pytest.fixture(scope="module")
def sent():
    """The table as the browser gets it: (proto, raw frame, texts)."""
    at = AppTest.from_string(TABLE, default_timeout=30).run()
    assert not at.exception
    proto = at.dataframe[0].proto
    texts = pa.ipc.open_stream(proto.arrow_data.styler.display_values).read_pandas()
    return proto, at.dataframe[0].value, texts


def test_every_number_is_written_as_its_quantity_is(sent):
    _, _, texts = sent
    told = {name: [None if pd.isna(v) else v for v in texts[name]] for name in texts}
    assert told["rescue"] == ["−1.500", "0.000", "–"]
    assert told["share"] == ["10.0 %", "–", "50.0 %"]
    assert told["n"] == ["1,234", "–", "−3"]
    assert told["tokens"] == ["7", "12,000", "0"]
    assert told["size"] == ["1.5 kB", "1.0 GB", "0 B"]
    assert told["name"] == [None] * 3, "texts are shown as they are"


def test_what_is_sorted_and_downloaded_is_the_raw_number(sent):
    _, raw, _ = sent
    np.testing.assert_array_equal(raw["rescue"], [-1.5, -0.0002, np.nan])
    assert raw["size"].tolist() == [1500, 10**9, 0] and raw["tokens"].tolist() == [7, 12000, 0]
    assert raw["clean_active"].tolist() == ["✓", "", "✓"]


def test_only_the_named_columns_are_seen_and_none_names_a_format(sent):
    proto, raw, _ = sent
    assert list(proto.column_order) == ["share", "name", "rescue", "n", "tokens", "size", "clean_active"]
    assert "hidden" in raw
    assert '"format"' not in proto.columns, "a format of Streamlit's would be shown instead of the text"
    assert proto.placeholder == "–"


@pytest.mark.parametrize("path", sorted((Path(__file__).resolve().parent.parent / "pages" / "parts").glob("*.py")),
                         ids=lambda path: path.stem)  # fmt: skip
def test_no_switch_is_cut_off_where_the_page_is_narrow(path):
    """Unless told to wrap, or as wide as the sidebar, a row of choices runs off to the right and scrolls."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "segmented_control":
            given = {one.arg: ast.unparse(one.value) for one in node.keywords}
            assert given.get("wrap") == "True" or given.get("width") == "'stretch'", (path.stem, node.lineno)


def test_every_table_is_written_by_the_one_module():
    parts = Path(__file__).resolve().parent.parent / "pages" / "parts"
    others = [path.stem for path in parts.glob("*.py") if "st.dataframe(" in path.read_text("utf-8")]
    assert others == ["listing"]
