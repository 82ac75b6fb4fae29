"""The download menu of one picture: the chart as PNG, SVG and HTML, its table as CSV and Parquet.

Files are made when they are asked for, in Streamlit's download thread.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st

from core import export
from core.picture import Picture
from core.tables import table_bytes

from . import present, text

if TYPE_CHECKING:
    from core.study.findings import Findings

FORMATS = {
    "png": ("Chart as PNG", "image/png"),
    "svg": ("Chart as SVG", "image/svg+xml"),
    "html": ("Chart as HTML, works offline", "text/html"),
    "csv": ("Table as CSV", "text/csv"),
    "parquet": ("Table as Parquet", "application/vnd.apache.parquet"),
}
"""Ending → what the button says, MIME type."""


def header(title: str, name: str, result: export.Result, picture: Picture | None, table: pd.DataFrame) -> None:
    """A picture's title and its download menu in one line."""
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.markdown(f"**{text.plain(title)}**", width="content")  # a token may stand in it
        menu(name, title, result, picture, table)


def menu(name: str, title: str, result: export.Result, picture: Picture | None, table: pd.DataFrame) -> None:
    """A popover with five buttons (two where there is no picture). `name`: file stem and widget key."""
    present.note(name, title, picture, table, result)
    make = {"csv": functools.partial(export.csv, table, result, title)}
    make["parquet"] = functools.partial(export.parquet, table, result, title)
    if picture is not None:
        charts = {"png": export.png, "svg": export.svg, "html": export.page}
        make |= {ending: functools.partial(write, picture, result, title) for ending, write in charts.items()}
    _popover(name, title, "Request and provenance are inside every file.", export.file_stem(result, name), make)


def of_study(
    name: str, title: str, found: Findings, *, picture: Picture | None = None, table: pd.DataFrame | None = None
) -> None:
    """The same for a figure and a table of a study. `name`: of the figure or of the table."""
    from core.study import report

    present.note(name, title, picture, table, None)
    make: dict[str, Callable[[], bytes]] = {}
    if picture is not None:
        charts = {"png": report.figure_png, "svg": report.figure_svg, "html": report.figure_html}
        make |= {ending: functools.partial(write, found, picture, name) for ending, write in charts.items()}
    if table is not None:
        make["csv"] = functools.partial(table_bytes, table, ".csv")
        make["parquet"] = functools.partial(table_bytes, table, ".parquet", metadata=report.origin(found))
    note = "Settings and provenance are inside every file but the CSV."
    _popover(name if picture is not None else f"table_{name}", title, note, f"{study_stem(found.name)}_{name}", make)


def study_stem(name: str) -> str:
    """A study's name as the beginning of a file name: plain ASCII."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", name).strip("_.-")[:80] or "study"


def _popover(name: str, title: str, note: str, stem: str, make: dict[str, Callable[[], bytes]]) -> None:
    said = text.plain(title)
    with st.popover("", icon=":material/download:", type="tertiary", help=f"Download: {said}", key=f"es_menu_{name}"):
        st.caption(f"{said}. {note}")
        for ending, (label, mime) in FORMATS.items():
            if ending in make:
                st.download_button(
                    label, make[ending], file_name=f"{stem}.{ending}", mime=mime, on_click="ignore",
                    key=f"es_download_{name}_{ending}", width="stretch", type="tertiary",
                )  # fmt: skip
