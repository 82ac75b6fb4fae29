"""Tables: every number written as `core.formats` writes its quantity, while sorting and downloads keep the raw one.

Streamlit's own number formats know neither a real minus sign nor a zero without one. What a pandas Styler says a cell
shows is drawn instead, as long as its column names no format; sorting, copying and the CSV take the number below it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import streamlit as st

from core.columns import Form, form_of
from core.formats import NONE

from . import display, text

MOST_CELLS = 10**7
"""What pandas lets a Styler hold; its own limit is meant for HTML."""


@dataclass(frozen=True)
class Column:
    """How a column is shown. `form`: how its numbers are written, where its name does not say it (`core.columns`); the
    rest as in `st.column_config.Column`, widths in pixels of normal type."""

    label: str
    help: str = ""
    form: Form | None = None
    width: int | str | None = None
    pinned: bool | None = None
    alignment: str | None = None

    def config(self, *, numeric: bool) -> Any:
        """As Streamlit takes it."""
        kind = st.column_config.NumberColumn if numeric else st.column_config.TextColumn
        width = display.pixels(self.width) if isinstance(self.width, int) else self.width
        return kind(self.label, help=self.help or None, width=width, pinned=self.pinned, alignment=self.alignment)


def show(
    frame: pd.DataFrame, columns: Mapping[str, Any], *, alt: str, height: int | str | None = None, most: int = 400,
    **options: Any,
) -> Any:  # fmt: skip
    """The named columns of `frame`, in their order; those that it lacks are left out.

    `columns`: a `Column`, or what `st.column_config` makes (a link). `height`: in pixels; by default that of the rows,
    at most `most` in normal type. Other options go to `st.dataframe`. True is shown as ✓, False as nothing. Of the
    other columns of `frame` nothing is seen.
    """
    order = [name for name in columns if name in frame]
    yes_or_no = [name for name in order if pd.api.types.is_bool_dtype(frame[name])]
    frame = frame.assign(**{name: ticks(frame[name]) for name in yes_or_no})
    config: dict[str, Any] = {}
    forms: dict[str, Form] = {}
    for name in order:
        column = columns[name]
        if isinstance(column, Column):
            numeric = pd.api.types.is_numeric_dtype(frame[name])
            if numeric:
                forms[name] = column.form or form_of(frame, name)
            if name in yes_or_no:
                column = replace(column, alignment=column.alignment or "center")
            column = column.config(numeric=numeric)
        config[name] = column
    return st.dataframe(
        told(frame, forms), hide_index=True, column_order=order, column_config=config, placeholder=NONE, alt=alt,
        height=display.table_height(len(frame), most) if height is None else height, **options,
    )  # fmt: skip


def plain(frame: pd.DataFrame, *, alt: str, **options: Any) -> Any:
    """All columns of `frame` under their own names."""
    return show(frame, {name: Column(str(name).replace("_", " ")) for name in frame}, alt=alt, **options)


def left_out(rows: Any, *, alt: str) -> Any:
    """What a model cannot be asked about, each with its `why`."""
    frame = pd.DataFrame(rows)
    return plain(frame.assign(why=frame.why.map(text.on_page)), alt=alt)


def link(label: str, help_: str) -> Any:
    """A column of addresses, each of which opens a page."""
    return st.column_config.LinkColumn(
        label, display_text="open", width=display.pixels(60), pinned=True, help=help_
    )


def ticks(values: pd.Series) -> pd.Series:
    """Yes as ✓, no as nothing; missing stays missing."""
    return values.astype("boolean").map({True: "✓", False: ""}).astype(object)


def told(frame: pd.DataFrame, forms: Mapping[str, Form]) -> Any:
    """`frame` as a Styler whose cells show their numbers as `forms` (column → form) write them.

    Only what Streamlit reads of a Styler is made: the texts, and no styles. Rendering it as pandas does takes seconds
    for a model's every expert.
    """
    from pandas.io.formats.style import Styler  # here: it takes a moment, and most pages begin without a table

    pd.set_option("styler.render.max_elements", MOST_CELLS)
    shown = _Shown(frame)
    texts = {
        name: pd.Series([forms[name](value) for value in frame[name].tolist()] if name in forms else None,
                        index=frame.index, dtype=object)
        for name in frame
    }  # fmt: skip
    object.__setattr__(shown, "texts", pd.DataFrame(texts, index=frame.index, columns=frame.columns))
    styler = Styler(shown, uuid="es")
    styler._translate = lambda *_, **__: {}  # type: ignore[method-assign]
    return styler


class _Shown(pd.DataFrame):
    """A frame that knows how its cells are written: Streamlit asks for `astype(str)` and shows what it gets."""

    def astype(self, dtype: Any, *args: Any, **options: Any) -> pd.DataFrame:
        return self.texts if dtype is str else super().astype(dtype, *args, **options)
