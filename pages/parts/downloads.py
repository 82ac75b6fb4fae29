"""The download menu of one picture: the chart as PNG, SVG and HTML, its table as CSV and Parquet.

Files are made when they are asked for, in Streamlit's download thread.
"""

from __future__ import annotations

import functools

import pandas as pd
import streamlit as st

from core import export
from core.picture import Picture
from core.results import TraceResult


def menu(name: str, title: str, result: TraceResult, picture: Picture | None, table: pd.DataFrame) -> None:
    """A popover with five buttons (two where there is no picture). `name`: file stem and widget key."""
    stem = export.file_stem(result, name)
    with st.popover("", icon=":material/download:", type="tertiary", help=f"Download: {title}", key=f"es_menu_{name}"):
        st.caption(f"{title}. Request and provenance are inside every file.")
        if picture is not None:
            for ending, label, mime, make in (
                ("png", "Chart as PNG", "image/png", export.png),
                ("svg", "Chart as SVG", "image/svg+xml", export.svg),
                ("html", "Chart as HTML, works offline", "text/html", export.page),
            ):
                _button(name, ending, label, mime, functools.partial(make, picture, result, title), stem)
        for ending, label, mime, write in (
            ("csv", "Table as CSV", "text/csv", export.csv),
            ("parquet", "Table as Parquet", "application/vnd.apache.parquet", export.parquet),
        ):
            _button(name, ending, label, mime, functools.partial(write, table, result, title), stem)


def _button(name: str, ending: str, label: str, mime: str, make, stem: str) -> None:
    st.download_button(
        label, make, file_name=f"{stem}.{ending}", mime=mime, on_click="ignore", key=f"es_download_{name}_{ending}",
        width="stretch", type="tertiary",
    )  # fmt: skip
