"""A study as files: one self-contained HTML report that opens offline, all tables, all figures, rows and summary.

Every text that came from a person or a file is escaped where it stands. No Streamlit, no model.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..embedding import bundle, drawable, in_script, one_line, png_with, svg_with
from ..formats import NONE
from ..html_tables import STYLE, folded
from ..html_tables import table as html_table
from ..palette import LIGHT
from ..picture import Picture, chart_page
from ..tables import table_bytes, write_file
from . import figures, tables, words
from . import rows as table
from .findings import Findings, Study, of_study

WIDTH = 820
"""Width of a figure in pixels, before the PNG's scale of 2."""

SECTIONS = {
    "layer_curves": ("Where: the layer sweep", ["layers"]),
    "experts": ("Who: experts of the selected layer", ["experts"]),
    "controls": ("Is it specific?", ["controls"]),
    "coalitions": ("Is it a coalition?", ["coalitions"]),
    "coalition_search": ("How many experts", ["coalition_search"]),
    "joint_search": ("A second place? The joint search", ["joint_search"]),
    "stability": ("Does the selection hold?", ["stability"]),
    "held_out_relations": ("Held-out relations", ["held_out_relations"]),
    "relations": ("Relation by relation", ["relations"]),
    "noise": ("Other noise levels", ["noise"]),
    "fresh_draw": ("Another noise draw", ["fresh_draw"]),
    "published": ("The published numbers", ["published"]),
}
"""Figure (or table without one) → heading and tables, in the order of the report."""


def write(study: Study, folder: str | Path) -> list[Path]:
    """Write everything about `study` into `folder` (made if need be): rows.parquet (the study's own noise level and
    draws), rows_robustness.parquet (other draws and levels, coalition search), summary.json, report.html, tables/ as
    CSV and Parquet, figures/ as PNG and SVG. The paths written. Raises `ExpertScopeError` where one cannot be."""
    found = of_study(study)
    pictures = figures.figures(found.analysis, found.tables)
    folder = Path(folder)
    out = []
    for path, content in _files(found, pictures):
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        write_file(content, target)
        out.append(target)
    return out


def _files(found: Findings, pictures: dict[str, Picture]) -> Iterable[tuple[str, bytes]]:
    about = origin(found)
    main = found.rows.stage == table.MAIN
    yield "rows.parquet", table_bytes(found.rows[main], ".parquet", metadata=about)
    yield "rows_robustness.parquet", table_bytes(found.rows[~main], ".parquet", metadata=about)
    yield "summary.json", (json.dumps(found.summary, indent=1, allow_nan=False) + "\n").encode()
    for name, content in found.tables.items():
        for suffix in (".csv", ".parquet"):
            yield f"tables/{name}{suffix}", table_bytes(content, suffix, metadata=about)
    for name, picture in pictures.items():
        yield f"figures/{name}.png", figure_png(found, picture, name)
        yield f"figures/{name}.svg", figure_svg(found, picture, name)
    yield "report.html", page(found, pictures)


def figure_png(found: Findings, picture: Picture, name: str) -> bytes:
    """A figure with title and origin as PNG at twice its size; settings and provenance in its text chunk."""
    import vl_convert

    return png_with(vl_convert.vegalite_to_png(drawable(_titled(found, picture, name)), scale=2), origin(found))


def figure_svg(found: Findings, picture: Picture, name: str) -> bytes:
    """A figure with title and origin as SVG; settings and provenance in its `metadata` element."""
    import vl_convert

    return svg_with(vl_convert.vegalite_to_svg(drawable(_titled(found, picture, name))), origin(found))


def figure_html(found: Findings, picture: Picture, name: str) -> bytes:
    """A figure as one HTML file that works offline, with what was found there."""
    lines = [_subtitle(found), words.captions(found).get(name, "")]
    title = figures.TITLES[name]
    return chart_page(
        picture, title, tab=one_line(f"{title} · {found.name}"), lines=[line for line in lines if line],
        about=origin(found), width=WIDTH,
    )  # fmt: skip


def page(found: Findings, pictures: dict[str, Picture]) -> bytes:
    """The report: one HTML file with interactive figures and their libraries inside. Works offline."""
    captions = words.captions(found)
    body, scripts = [_head(found), _verdict(found), _method(found), _funnel(found)], []
    for name, (heading, shown) in SECTIONS.items():
        there = [t for t in shown if not found.tables[t].empty]
        if name not in pictures and not there:
            continue
        body.append(f'<section id="{name}"><h2>{html.escape(heading)}</h2>')
        if name in captions:
            body.append(f"<p>{html.escape(captions[name])}</p>")
        if name in pictures:
            body.append(f'<div class="figure" id="figure-{name}"></div>')
            scripts.append(f"draw({in_script(name)}, {in_script(pictures[name].standalone(width=WIDTH))});")
        body += [folded(tables.TITLES[t], found.tables[t]) for t in there]
        body.append("</section>")
    body.append('<section id="all"><h2>All numbers</h2>')
    body += [folded(tables.TITLES[name], found.tables[name]) for name in ("estimates", "facts")]
    body.append("</section>")
    body.append(_origins(found))
    content = _PAGE.format(
        title=html.escape(one_line(found.name)),
        background=LIGHT.background, ink=LIGHT.ink, muted=LIGHT.muted, accent=LIGHT.expert, tables=STYLE,
        body="\n".join(body), origin=in_script(origin(found)), bundle=bundle(), scripts="\n".join(scripts),
    )  # fmt: skip
    return content.encode("utf-8", "replace")


def _head(found: Findings) -> str:
    state = "" if found.state == "done" else f" This study is {found.state}: the numbers are of what is there so far."
    n = found.summary["n_facts"]
    halves = f"{n['discovery']} discovery and {n['validation']} validation facts."
    lines = [f"{_model(found)} · {words.funnel_sentence(found)} {halves}{state}", words.how_to_read(found)]
    lines += [words.DEMO] if _model_name(found) == "demo" else []
    return f"<h1>{html.escape(one_line(found.name))}</h1>" + "".join(f"<p>{html.escape(line)}</p>" for line in lines)


def _verdict(found: Findings) -> str:
    summary = found.summary
    items = "".join(f"<li>{html.escape(line)}</li>" for line in summary["verdict_words"])
    cautions = "".join(f'<li class="caution">{html.escape(line)}</li>' for line in summary["cautions"])
    return (
        f'<section id="verdict"><h2>Verdict: {html.escape(summary["verdict"])}</h2><ul>{items}{cautions}</ul></section>'
    )


def _method(found: Findings) -> str:
    steps = "".join(f"<li>{html.escape(step)}</li>" for step in words.method(found))
    rows = "".join(
        f"<tr><td>{html.escape(str(name))}</td><td>{html.escape(_plain(value))}</td></tr>"
        for name, value in found.settings.items()
    )
    table_ = f"<table><thead><tr><th>setting</th><th>value</th></tr></thead><tbody>{rows}</tbody></table>"
    return (
        f'<section id="method"><h2>What was done</h2><ol>{steps}</ol>'
        f"<details><summary>All settings</summary>{table_}</details></section>"
    )


def _funnel(found: Findings) -> str:
    return f'<section id="funnel"><h2>Funnel</h2>{html_table(found.tables["funnel"])}</section>'


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_plain, value))
    if isinstance(value, dict):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items() if v is not None)
    return NONE if value is None else str(value)


def _origins(found: Findings) -> str:
    shown = html.escape(json.dumps(origin(found), ensure_ascii=False, indent=1, default=str))
    return (
        '<section id="origin"><h2>Where it comes from</h2><p>Settings, model, versions and implementations, as stored '
        f"with the results.</p><details><summary>Show</summary><pre>{shown}</pre></details></section>"
    )


def origin(found: Findings) -> dict[str, Any]:
    """Settings and provenance: all that it takes to get the same numbers again, as JSON values."""
    return {"study": found.name, "settings": found.settings, "provenance": found.provenance}


def _model(found: Findings) -> str:
    parts = [_model_name(found), *(str(found.provenance[k]) for k in ("dtype", "device") if k in found.provenance)]
    return one_line(", ".join(parts))


def _model_name(found: Findings) -> str:
    model = found.settings.get("model")
    return str((model.get("name") if isinstance(model, dict) else model) or "a model")


def _titled(found: Findings, picture: Picture, name: str) -> dict[str, Any]:
    return picture.standalone(width=WIDTH, title=figures.TITLES[name], subtitle=[_subtitle(found)])


def _subtitle(found: Findings) -> str:
    return one_line(f"study {found.name} · {_model(found)}")[:140]


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title} · study · ExpertScope</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
 body {{ background: {background}; color: {ink}; font: 16px/1.55 "Source Sans", "Segoe UI", Arial, sans-serif;
   margin: 2rem auto; max-width: 900px; padding: 0 1rem; }}
 h1 {{ font-size: 1.6rem; margin-bottom: .3rem; overflow-wrap: anywhere; }}
 h2 {{ font-size: 1.2rem; margin: 2.2rem 0 .4rem; }}
 #verdict {{ border-left: 4px solid {accent}; padding: .2rem 0 .2rem 1rem; margin: 1.4rem 0; }}
 #verdict h2 {{ margin-top: 0; }} .caution {{ color: {accent}; }}
 li {{ margin: .25rem 0; }} .figure {{ overflow-x: auto; margin: .6rem 0; }}
{tables} summary {{ color: {muted}; }}
 #method td, #funnel td {{ white-space: normal; }}
 pre {{ white-space: pre-wrap; font-size: 12px; overflow-wrap: anywhere; }}
</style></head><body>
{body}
<script type="application/json" id="expertscope">{origin}</script>
<script>{bundle}</script>
<script>
function draw(name, spec) {{
  vegaEmbed("#figure-" + name, spec, {{actions: {{export: true, source: false, compiled: false, editor: false}}}});
}}
{scripts}</script>
</body></html>
"""
