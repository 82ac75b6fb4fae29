"""What every chart is made of: a Vega-Lite spec with named tables, and the one look that all of them have.

A chart comes as a `Picture`: its spec with named data sets and the tables of these names, so that one build serves the
page (tables travel as Arrow) and the exports (tables embedded as values). Knows no results and no data of ours.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from altair.utils import schemapi

from .palette import Palette

FONT = '"Source Sans", "Source Sans Pro", "Segoe UI", "Helvetica Neue", Arial, sans-serif'
CANVAS_MARKS = 2000
"""Above this many marks a chart is drawn on a canvas instead of as SVG."""


@dataclass(frozen=True)
class Picture:
    """A Vega-Lite spec and its data: `spec` names the data sets that `tables` holds. `marks`: how many it draws."""

    spec: dict[str, Any]
    tables: dict[str, pd.DataFrame]
    marks: int

    def for_page(self) -> dict[str, Any]:
        """The spec with data frames as data sets, as Streamlit takes it."""
        return self.spec | {"datasets": self.tables}

    def standalone(self, *, width: int, title: str = "", subtitle: list[str] | None = None) -> dict[str, Any]:
        """A spec of plain JSON values with everything in it, of a fixed width in pixels."""
        spec = self.spec | {"datasets": {name: records(table) for name, table in self.tables.items()}, "width": width}
        if title:
            spec["title"] = {
                "text": title,
                "subtitle": subtitle or [],
                "anchor": "start",
                "frame": "group",
                "offset": 12,
            }
        return spec


def unchecked(build):
    """Altair validates every object against the schema as it is made, most of a build's time; the tests do it once."""

    @functools.wraps(build)
    def run(*args, **kwargs):
        with schemapi.debug_mode(False):
            return build(*args, **kwargs)

    return run


def limit(values: pd.Series) -> float:
    """The end of a zero-centred colour scale: the largest magnitude, rounded up, at least 0.05."""
    finite = np.abs(values.to_numpy(dtype=float))
    finite = finite[np.isfinite(finite)]
    top = float(finite.max()) if finite.size else 0.0
    if top <= 0.05:
        return 0.05
    step = 10.0 ** np.floor(np.log10(top)) / 2
    return float(np.ceil(top / step - 1e-9) * step)


class Tables(dict[str, pd.DataFrame]):
    """Collects a picture's tables: called with a table, keeps it and gives the name under which the spec knows it."""

    def __call__(self, table: pd.DataFrame) -> alt.NamedData:
        name = f"table{len(self)}"
        self[name] = table
        return alt.NamedData(name=name)


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A table's rows as plain JSON values, missing ones None."""
    clean = table.astype(object).where(table.notna(), None)
    return [{k: v.item() if hasattr(v, "item") else v for k, v in row.items()} for row in clean.to_dict("records")]


def finish(chart: alt.LayerChart | alt.Chart, tables: Tables, n_marks: int, height: int, palette: Palette) -> Picture:
    """A chart as a picture in the project's look, as wide as its place and `height` pixels high."""
    renderer = "canvas" if n_marks > CANVAS_MARKS else "svg"
    text = {"labelFont": FONT, "titleFont": FONT, "labelColor": palette.ink, "titleColor": palette.muted}
    lines = {"gridColor": palette.grid, "domainColor": palette.grid, "tickColor": palette.grid}
    chart = (
        chart.properties(
            width="container",
            autosize=alt.AutoSizeParams(type="fit-x", contains="padding"),
            height=height,
            usermeta={"embedOptions": {"renderer": renderer, "actions": False}},
        )
        .configure(background=palette.background, font=FONT, padding=4)
        .configure_view(stroke=None)
        .configure_axis(**text, **lines, labelFontSize=12, titleFontSize=12, titleFontWeight="normal")
        .configure_legend(**text, labelFontSize=11, titleFontSize=12, titleFontWeight="normal", offset=8)
        .configure_title(font=FONT, subtitleFont=FONT, color=palette.ink, subtitleColor=palette.muted, anchor="start")
    )
    return Picture(spec=chart.to_dict(validate=False), tables=dict(tables), marks=n_marks)
