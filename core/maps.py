"""The two maps that several pages draw, layer × token and layer × expert: their designs (see `core.picture`).

Altair only; knows no results. A map has those of its layers for which a picture has a table.
"""

from __future__ import annotations

import altair as alt

from .marks import (
    blank_cells,
    border,
    chosen_by,
    dense_rows,
    diverging,
    expert_axis,
    layer_axis,
    outline,
    selection,
    token_axis,
    tooltip,
)
from .palette import Palette
from .picture import design, named


@design
def token_map(
    n_layers: int, n_tokens: int, title: str, tips: tuple[str, ...], chosen: tuple[str, str, str], palette: Palette
) -> alt.LayerChart:
    """`cells` coloured by their value; `absent`: tokens that are not there; `dense`, `dense_layers`: of
    `marks.dense_tables`; `dots`: tokens that are routed to an expert, hollow where they are in the corrupt run only.

    `chosen`: name and fields of the selection. Open: `ends`, and what `marks.tokens` gives.
    """
    x, y = token_axis(alt.X, n_tokens, palette), layer_axis(n_layers)
    picked = selection(chosen[0], dict.fromkeys(chosen[1:]), False)
    base = named("cells")
    heat = base.mark_rect(cursor="pointer").encode(
        x=x, y=y, color=diverging(title, palette, palette.missing), tooltip=tooltip(tips)
    )
    blank, lines = dense_rows(palette)
    dots = named("dots").mark_point(size=34, strokeWidth=1.8, stroke=palette.expert, tooltip=None)
    fill = chosen_by(alt.FillValue, "datum.routed == 'clean'", palette.expert, "transparent")
    return alt.layer(
        heat.add_params(picked),
        blank_cells("absent", palette).encode(x=x, y=y),
        blank.encode(x=x, y=y),
        lines.encode(y=y),
        outline(base, palette.mark).encode(x=x, y=y).transform_filter(picked),
        dots.encode(x=x, y=y, fill=fill),
    )


@design
def expert_map(
    n_layers: int, n_experts: int, shared: bool, title: str, tips: tuple[str, ...], routed: str, palette: Palette
) -> alt.LayerChart:
    """`experts` coloured by their value, with a border where the column `routed` is true; `undefined`: those without a
    value; `ringed`: routed in a corrupt run only; `dense`, `dense_layers`: of `marks.dense_tables`; `frame`: the
    chosen layer; `ticked`: experts of a coalition. Selection `expert` with fields layer and expert. Open: `ends`.
    """
    x, y = expert_axis(n_experts, shared=shared), layer_axis(n_layers)
    picked = selection("expert", {"layer": None, "expert": None}, False)
    base = named("experts")
    heat = base.mark_rect(cursor="pointer", **border(n_experts)).encode(
        x=x, y=y, color=diverging(title, palette, palette.blank), tooltip=tooltip(tips),
        stroke=chosen_by(alt.StrokeValue, f"datum.{routed}", palette.muted, palette.blank),
    )  # fmt: skip
    missing = named("undefined").mark_rect(color=palette.missing)
    rings = named("ringed").mark_point(
        size=16 if n_experts > 32 else 30, stroke=palette.muted, strokeWidth=1.2, fill=None, tooltip=None
    )
    blank, lines = dense_rows(palette)
    return alt.layer(
        heat.add_params(picked),
        missing.encode(x=x, y=y, tooltip=tooltip(tips)),
        rings.encode(x=x, y=y),
        blank.encode(x=x, y=y),
        lines.encode(y=y),
        outline(named("frame"), palette.mark, width=1.6).encode(y=y),
        outline(named("ticked"), palette.expert).encode(x=x, y=y),
        outline(base, palette.expert).encode(x=x, y=y).transform_filter(picked),
    )
