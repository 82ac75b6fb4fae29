"""Tables as HTML for reports: numbers as their quantities are written, missing ones –, whatever is in them escaped."""

from __future__ import annotations

import html
from typing import Any

import numpy as np
import pandas as pd

from . import formats
from .columns import Form, form_of
from .named_rows import named_rows

MOST_ROWS = 200
"""So many rows of a table stand in a report."""

LONG = 48
"""Letters of a text that stands in one line."""

STYLE = """ .table { overflow-x: auto; margin: .6rem 0; } details { margin: .5rem 0; } summary { cursor: pointer; }
 table { border-collapse: collapse; font-size: 13px; } th { text-align: left; font-weight: 600; }
 td, th { border-bottom: 1px solid rgba(128,128,128,.3); padding: .18rem .6rem; white-space: nowrap; }
 td.n { text-align: right; font-variant-numeric: tabular-nums; } td.w { white-space: normal; min-width: 18rem; }"""
"""How they look."""


def folded(title: str, content: pd.DataFrame, *, more: str = "the table's own file has all.") -> str:
    """A table under its title, closed at first. `more`: said of the rows beyond `MOST_ROWS`."""
    return f"<details><summary>{html.escape(title)}</summary>{table(content, more=more)}</details>"


def table(content: pd.DataFrame, *, more: str = "the table's own file has all.") -> str:
    """A table, or a sentence where it is empty."""
    if content.empty:
        return "<p>Nothing was measured here.</p>"
    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in content)
    looks = [" class=n" if pd.api.types.is_numeric_dtype(content[name]) else "" for name in content]
    forms = [form_of(content, str(name)) for name in content]
    lines = []
    for row in named_rows(content.head(MOST_ROWS)):
        cells = (
            f"<td{look or (' class=w' if _is_long(value) else '')}>{html.escape(cell(value, form))}</td>"
            for value, look, form in zip(row, looks, forms, strict=True)
        )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    rest = f"<p>The first {MOST_ROWS} of {len(content):,} rows; {more}</p>" if len(content) > MOST_ROWS else ""
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div class="table"><table>{body}</table></div>{rest}'


def _is_long(value: Any) -> bool:
    """Whether a text is a sentence, which may go on in the next line."""
    return isinstance(value, str) and len(value) > LONG


def cell(value: Any, form: Form = formats.unknown) -> str:
    """One value as text; `form`: how its column writes numbers."""
    if isinstance(value, (bool, np.bool_)):
        return "✓" if value else ""
    if value is None or (not isinstance(value, str) and pd.isna(value)):
        return formats.NONE
    return form(value) if isinstance(value, (int, float, np.integer, np.floating)) else str(value)
