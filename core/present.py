"""What is on a page as one self-contained HTML file: charts that stay interactive offline, captions, tables, settings.

Knows no page and no result: it is given parts. Every text that came from a person or a model is escaped where it
stands.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from .embedding import bundle, in_script, one_line
from .html_tables import STYLE, folded, table
from .palette import LIGHT
from .picture import Picture
from .script import Script

WIDTH = 860
"""Width of a chart in pixels."""


@dataclass(frozen=True)
class Part:
    """One figure or table of a page. `caption`: what stands below it there."""

    title: str
    picture: Picture | None = None
    table: pd.DataFrame | None = None
    caption: str = ""


def page(
    title: str,
    parts: Sequence[Part],
    *,
    findings: Sequence[str] = (),
    lines: Sequence[str] = (),
    script: Script | None = None,
    about: Any = None,
) -> bytes:
    """The report. `findings`: what was found, in sentences; `lines`: what was asked and answered with, in small print;
    `script`: how to get the numbers again; `about`: request and provenance (JSON values)."""
    config = next((part.picture.spec.get("config", {}) for part in parts if part.picture is not None), {})
    body, scripts = [f"<h1>{html.escape(one_line(title))}</h1>"], []
    if findings:
        body.append(f"<ul>{''.join(f'<li>{html.escape(one_line(line))}</li>' for line in findings)}</ul>")
    body += [f'<p class="small">{html.escape(one_line(line))}</p>' for line in lines]
    for number, part in enumerate(parts):
        body.append(f"<section><h2>{html.escape(one_line(part.title))}</h2>")
        if part.picture is not None:
            body.append(f'<div class="figure" id="figure-{number}"></div>')
            scripts.append(f"draw({number}, {in_script(part.picture.standalone(width=WIDTH))});")
        if part.caption:
            body.append(f"<p>{html.escape(one_line(part.caption))}</p>")
        if part.table is not None:
            if part.picture is None:
                body.append(table(part.table, more="the page has all."))
            else:
                body.append(folded("Numbers", part.table, more="the page's own download has all."))
        body.append("</section>")
    if script is not None:
        body.append("<section><h2>The same numbers again</h2>")
        body += [f"<pre>{html.escape(text)}</pre>" for text in (script.command, script.python) if text]
        body.append("</section>")
    shown = html.escape(json.dumps(about, ensure_ascii=False, indent=1, default=str))
    body.append(
        f"<section><h2>Where it comes from</h2><details><summary>Settings and provenance</summary><pre>{shown}</pre>"
        "</details></section>"
    )
    content = _PAGE.format(
        title=html.escape(one_line(title)),
        background=html.escape(str(config.get("background", LIGHT.background))),
        ink=html.escape(str(config.get("axis", {}).get("labelColor", LIGHT.ink))),
        tables=STYLE, body="\n".join(body), about=in_script(about), bundle=bundle(), scripts="\n".join(scripts),
    )  # fmt: skip
    return content.encode("utf-8", "replace")


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title} · ExpertScope</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
 body {{ background: {background}; color: {ink}; font: 16px/1.55 "Source Sans", "Segoe UI", Arial, sans-serif;
   margin: 2rem auto; max-width: 960px; padding: 0 1rem; overflow-wrap: anywhere; }}
 h1 {{ font-size: 1.6rem; margin-bottom: .3rem; }} h2 {{ font-size: 1.15rem; margin: 2.2rem 0 .4rem; }}
 .small {{ font-size: 13px; margin: .15rem 0; opacity: .85; }} .figure {{ overflow-x: auto; margin: .6rem 0; }}
{tables}
 pre {{ white-space: pre-wrap; font-size: 12px; }}
</style></head><body>
{body}
<script type="application/json" id="expertscope">{about}</script>
<script>{bundle}</script>
<script>
function draw(number, spec) {{
  vegaEmbed("#figure-" + number, spec, {{actions: {{export: true, source: false, compiled: false, editor: false}}}});
}}
{scripts}</script>
</body></html>
"""
