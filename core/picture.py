"""What every chart is made of: a Vega-Lite spec with named tables, and the one look that all of them have.

A chart comes as a `Picture`: its spec with named data sets and the tables of these names, so that one build serves the
page (tables travel as Arrow) and the exports (tables embedded as values). Knows no results and no data of ours.

A picture's spec hardly depends on its data, and Altair takes long to make one. So a picture has two parts: its tables,
made of a result, and its `design`, a chart of data sets that are only named, made of a few plain values alone and once
for each of them. What else a picture has of its own (labels, the ends of a scale) its design leaves `Open`; `finish`
fills that in, and leaves out the layers for which there is no table.
"""

from __future__ import annotations

import contextlib
import functools
import html
import json
import threading
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import pyarrow as pa
from altair.utils import schemapi

from .embedding import bundle, in_script
from .palette import Palette

FONT = '"Source Sans", "Source Sans Pro", "Segoe UI", "Helvetica Neue", Arial, sans-serif'
CANVAS_MARKS = 2000
"""Above this many marks a chart is drawn on a canvas instead of as SVG."""


@dataclass(frozen=True)
class Picture:
    """A Vega-Lite spec and its data: `spec` names the data sets that `data` holds, each `packed`. `marks`: how many it
    draws."""

    spec: dict[str, Any]
    data: dict[str, bytes | pd.DataFrame]
    marks: int

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """Its data sets as tables."""
        return {name: unpacked(content) for name, content in self.data.items()}

    def for_page(self) -> dict[str, Any]:
        """The spec with its data sets as Streamlit takes them."""
        return self.spec | {"datasets": self.data}

    def marked(self, selected: dict[str, int] | None, **overlays: pd.DataFrame | None) -> Picture:
        """The same with one mark selected from the start (fields of the chart's one selection; None: none), and with
        other tables for some layers, by the table's name; None leaves those layers out.

        A change of what is marked is a change of the spec alone: it costs no Altair.
        """
        data = {name: content for name, content in self.data.items() if name not in overlays}
        data |= {name: packed(table) for name, table in overlays.items() if table is not None}
        spec = _of_tables(self.spec, data)
        if selected is not None:
            (param,) = self.spec["params"]
            spec["params"] = [param | {"value": [selected]}]
        return Picture(spec, data, self.marks)

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


class _Unchecked:
    """Altair's own validation off for as long as anybody is inside. Its switch is one for all threads, and Altair's
    `debug_mode` puts back what it found: of two threads the first to leave would turn the other one's validation on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._off = contextlib.ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._off.enter_context(schemapi.debug_mode(False))
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._off.close()


_UNCHECKED = _Unchecked()


def unchecked(build):
    """Altair validates every object against the schema as it is made, most of a build's time, and has no `Open`; the
    tests validate what comes of it."""

    @functools.wraps(build)
    def run(*args, **kwargs):
        with _UNCHECKED:
            return build(*args, **kwargs)

    return run


class Open(str):
    """What a design leaves open, by its name: each picture has its own."""


DESIGNS = 256
"""Designs kept at most, all kinds together."""


@functools.lru_cache(DESIGNS)
@unchecked
def designed(draw: Callable[..., alt.LayerChart], *values: Hashable) -> dict[str, Any]:
    """The spec of the chart that `draw` makes of these values; nobody changes it in place."""
    return draw(*values).to_dict(validate=False)


def design(draw: Callable[..., alt.LayerChart]) -> Callable[..., dict[str, Any]]:
    """`draw(*values)` makes a chart of hashable values alone; with this it gives the chart's spec, made once for equal
    values. `finish` makes a picture of a copy of it."""
    return functools.wraps(draw)(functools.partial(designed, draw))


def named(data: str) -> alt.Chart:
    """A chart of the data set of this name."""
    return alt.Chart(alt.NamedData(name=data))


def filled(part: Any, given: Mapping[str, Any]) -> Any:
    """A copy of a part of a spec with what is given for all that it leaves open."""
    if isinstance(part, dict):
        return {name: filled(value, given) for name, value in part.items()}
    if isinstance(part, list):
        return [filled(value, given) for value in part]
    return given[part] if isinstance(part, Open) else part


def _of_tables(spec: dict[str, Any], tables: Collection[str]) -> dict[str, Any]:
    """The spec without the layers whose data set is not among the tables."""
    if "layer" not in spec:
        return spec
    there = [layer for layer in spec["layer"] if "data" not in layer or layer["data"]["name"] in tables]
    return spec | {"layer": there}


def limit(values: pd.Series) -> float:
    """The end of a zero-centred colour scale: the largest magnitude, rounded up, at least 0.05."""
    finite = np.abs(values.to_numpy(dtype=float))
    finite = finite[np.isfinite(finite)]
    top = float(finite.max()) if finite.size else 0.0
    if top <= 0.05:
        return 0.05
    step = 10.0 ** np.floor(np.log10(top)) / 2
    return float(np.ceil(top / step - 1e-9) * step)


LARGER = ("labelLimit", "titleLimit", "gradientLength", "gradientThickness", "symbolSize", "labelPadding")
"""What grows along with the type."""


def enlarged(spec: dict[str, Any], factor: float) -> dict[str, Any]:
    """The spec with its type, and what has to make room for it, `factor` times as large; the data stay as they are."""

    def grown(part: Any, name: str = "") -> Any:
        if isinstance(part, dict):
            return {key: value if key in ("data", "datasets") else grown(value, key) for key, value in part.items()}
        if isinstance(part, list):
            return [grown(value) for value in part]
        if isinstance(part, (int, float)) and (name in LARGER or name.lower().endswith("fontsize")):
            return part * factor
        return part

    out = grown(spec)
    if isinstance(out.get("height"), (int, float)):
        out["height"] = round(out["height"] * factor)
    return out


class Tables(dict[str, pd.DataFrame]):
    """Collects a picture's tables: called with a table, keeps it and gives the name under which the spec knows it."""

    def __call__(self, table: pd.DataFrame, name: str = "") -> alt.NamedData:
        name = name or f"table{len(self)}"
        self[name] = table
        return alt.NamedData(name=name)


def packed(table: pd.DataFrame) -> bytes | pd.DataFrame:
    """A table as an Arrow stream: what Streamlit would make of it in each run anew, and a fraction of the size that a
    table of texts has. As it is where Arrow has no type for a column (Streamlit then makes it text)."""
    try:
        content = pa.Table.from_pandas(table)
    except (pa.ArrowException, OverflowError):
        return table
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, content.schema) as stream:
        stream.write_table(content)
    return sink.getvalue().to_pybytes()


def unpacked(content: bytes | pd.DataFrame) -> pd.DataFrame:
    """The table that was `packed`."""
    return content if isinstance(content, pd.DataFrame) else pa.ipc.open_stream(content).read_pandas()


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A table's rows as plain JSON values, missing ones None."""
    clean = table.astype(object).where(table.notna(), None)
    return [{k: v.item() if hasattr(v, "item") else v for k, v in row.items()} for row in clean.to_dict("records")]


def finish(
    chart: alt.LayerChart | alt.Chart | dict[str, Any],
    tables: dict[str, pd.DataFrame],
    n_marks: int,
    height: int,
    palette: Palette,
    *,
    own_scales: tuple[str, ...] = (),
    **given: Any,
) -> Picture:
    """A chart, or a design, as a picture in the project's look, as wide as its place and `height` pixels high.
    `own_scales`: channels for which each of its layers has a scale of its own; `given`: what the design leaves open.

    What all charts have is put into the finished spec: Altair copies a whole chart for each property that is added.
    """
    text = {"labelFont": FONT, "titleFont": FONT, "labelColor": palette.ink, "titleColor": palette.muted}
    lines = {"gridColor": palette.grid, "domainColor": palette.grid, "tickColor": palette.grid}
    sizes = {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"}
    fonts = {"font": FONT, "subtitleFont": FONT, "color": palette.ink, "subtitleColor": palette.muted}
    spec = chart if isinstance(chart, dict) else chart.to_dict(validate=False)
    spec = _of_tables(filled(spec, given), tables)
    if own_scales:
        spec["resolve"] = {"scale": dict.fromkeys(own_scales, "independent")}
    config = spec.get("config", {})
    return Picture(
        spec=spec
        | {
            "width": "container",
            "autosize": {"type": "fit-x", "contains": "padding"},
            "height": height,
            "usermeta": {"embedOptions": {"renderer": "canvas" if n_marks > CANVAS_MARKS else "svg", "actions": False}},
            "config": config
            | {
                "background": palette.background,
                "font": FONT,
                "padding": 4,
                "view": config.get("view", {}) | {"stroke": None},
                "axis": text | lines | sizes,
                "legend": text | sizes | {"labelFontSize": 11, "offset": 8, "titleLimit": 300},
                "title": fonts | {"anchor": "start"},
            },
        },
        data={name: packed(table) for name, table in tables.items()},
        marks=n_marks,
    )


def chart_page(picture: Picture, title: str, *, tab: str, lines: list[str], about: Any, width: int) -> bytes:
    """One HTML file with the interactive chart, its libraries, `lines` of text above it and `about` (JSON values) as
    where it comes from. Works offline. `tab`: the document's title; `width` of the chart in pixels."""
    config = picture.spec.get("config", {})
    return _PAGE.format(
        title=html.escape(title),
        tab=html.escape(tab),
        background=html.escape(str(config.get("background", "#fff"))),
        ink=html.escape(str(config.get("axis", {}).get("labelColor", "#222"))),
        lines="".join(f"<p>{html.escape(line)}</p>" for line in lines),
        bundle=bundle(),
        spec=in_script(picture.standalone(width=width)),
        origin=in_script(about),
        shown=html.escape(json.dumps(about, ensure_ascii=False, indent=1, default=str)),
    ).encode("utf-8", "replace")


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{tab} · ExpertScope</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
 body {{ background: {background}; color: {ink}; font: 15px/1.5 "Source Sans", "Segoe UI", Arial, sans-serif;
   margin: 2rem auto; max-width: 1000px; padding: 0 1rem; }}
 h1 {{ font-size: 1.3rem; }} p {{ margin: .2rem 0; opacity: .85; }} pre {{ white-space: pre-wrap; font-size: 12px; }}
 #chart {{ overflow-x: auto; margin: 1rem 0; }}
</style></head><body>
<h1>{title}</h1>{lines}
<div id="chart"></div>
<details><summary>Where it comes from</summary><pre>{shown}</pre></details>
<script type="application/json" id="expertscope">{origin}</script>
<script>{bundle}</script>
<script>vegaEmbed("#chart", {spec},
 {{actions: {{export: true, source: false, compiled: false, editor: false}}}});</script>
</body></html>
"""
