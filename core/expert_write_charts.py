"""The pictures of what one expert writes: tokens, direct parts, its size beside its layer's others, its neurons.

Draws tables of `core.writes`, `core.expert_size` and `core.neurons`; every mark says in its tooltip what it is.
"""

from __future__ import annotations

import altair as alt
import numpy as np
import pandas as pd

from .formats import cosine, count, logits, norm, percent, small
from .marks import PERCENT, selection
from .palette import LIGHT, Palette
from .picture import Picture, Tables, finish, unchecked
from .results import expert_name
from .study.drawing import colours, names_axis, zero_line
from .views import visible

MEASURE_NAMES = {
    "output_norm": "output norm",
    "contribution_norm": "contribution norm",
    "magnitude_ratio": "magnitude ratio of the block output, with ÷ without it",
    "angle": "angle of the block output, with and without it (degrees)",
    "cosine": "cosine of the block output, with and without it",
    "router_weight": "router weight",
}
SIGNS = {
    "gate_pos_in_pos": "gate +, in +",
    "gate_pos_in_neg": "gate +, in −",
    "gate_neg_in_pos": "gate −, in +",
    "gate_neg_in_neg": "gate −, in −",
}
"""Column of `core.neurons` → the sign combination in words."""
NEURONS_DRAWN = 2000
ROWS = 30


@unchecked
def written_tokens(tokens: pd.DataFrame, *, palette: Palette = LIGHT) -> Picture:
    """Bars of the effect on each token's logit: the promoted ones above, the suppressed ones below."""
    data = Tables()
    order = pd.concat([
        tokens[tokens.sense == "promoted"].sort_values("effect", ascending=False),
        tokens[tokens.sense == "suppressed"].sort_values("effect", ascending=False),
    ])  # fmt: skip
    label = [f"{visible(token)} #{i}" for token, i in zip(order.token, order.token_id, strict=True)]
    shown = pd.DataFrame({
        "label": label, "effect": order.effect.to_numpy(), "sense": order.sense.to_numpy(),
        "t_token": label, "t_effect": [f"{logits(e)} logits" for e in order.effect],
    })  # fmt: skip
    y = alt.Y("label:N", sort=label, scale=alt.Scale(domain=label), title=None, axis=names_axis(palette))
    x = alt.X("effect:Q", title="effect on the token's logit", axis=alt.Axis(tickCount=7))
    color = colours("sense", {"promoted": palette.high, "suppressed": palette.low})
    tips = [alt.Tooltip("t_token:N", title="title"), alt.Tooltip("t_effect:N", title="effect")]
    chart = alt.layer(
        alt.Chart(data(shown)).mark_bar(height=11).encode(x=x, y=y, color=color, tooltip=tips),
        zero_line(data, palette, axis="x"),
    )
    return finish(chart, data, len(shown), max(17 * len(shown), 60), palette)


@unchecked
def direct_strip(facts: pd.DataFrame, value: str, *, palette: Palette = LIGHT) -> Picture:
    """One dot per fact where the expert is clean-active: the direct part `value` (logits) by relation; tick: mean."""
    data = Tables()
    mine = facts.assign(value=facts[value])
    means = mine.groupby("relation").value.mean().sort_values(ascending=False).head(ROWS)
    mine = mine[mine.relation.isin(means.index)]
    dots = mine[["relation", "value"]].assign(
        t_fact=mine.subject + " → " + mine.true_token.str.strip(),
        t_direct=[f"{logits(v)} logits" for v in mine.value],
    )
    ticks = means.rename("value").reset_index()
    ticks["t_mean"] = [f"{logits(v)} logits" for v in ticks.value]
    order = list(means.index)
    y = alt.Y("relation:N", sort=order, scale=alt.Scale(domain=order), title=None, axis=names_axis(palette))
    x = alt.X("value:Q", title="direct part (logits)", axis=alt.Axis(tickCount=7))
    tips = [alt.Tooltip("t_fact:N", title="title"), alt.Tooltip("t_direct:N", title="direct part")]
    chart = alt.layer(
        zero_line(data, palette, axis="x"),
        alt.Chart(data(dots)).mark_circle(size=58, opacity=0.75, color=palette.high).encode(x=x, y=y, tooltip=tips),
        alt.Chart(data(ticks))
        .mark_tick(color=palette.expert, thickness=2.5, size=18)
        .encode(x=x, y=y, tooltip=[alt.Tooltip("relation:N", title="title"), alt.Tooltip("t_mean:N", title="mean")]),
    )
    return finish(chart, data, len(dots), max(24 * len(order), 60), palette)


@unchecked
def sizes(table: pd.DataFrame, measure: str, *, layer: int, expert: int, palette: Palette = LIGHT) -> Picture:
    """All experts of the layer by their median, this one in its own colour: thin line 5–95 %, thick line the quartiles,
    tick the median. Selection `expert` with the field expert."""
    data = Tables()
    rows = table[(table.measure == measure) & (table.tokens > 0)].sort_values("median", ascending=False)
    names = [expert_name(layer, e) for e in rows.expert]
    shown = rows[["expert", "low", "quartile", "median", "upper_quartile", "high"]].assign(
        name=names,
        who=np.where(rows.expert == expert, "this expert", "others of the layer"),
        t_name=names,
        t_median=[norm(v) for v in rows["median"]],
        t_quartiles=[f"{norm(a)} to {norm(b)}" for a, b in zip(rows.quartile, rows.upper_quartile, strict=True)],
        t_most=[f"{norm(a)} to {norm(b)}" for a, b in zip(rows.low, rows.high, strict=True)],
        t_tokens=[count(n) for n in rows.tokens],
    )
    labels = {"labelAngle": -60, "labelFontSize": 11} if len(names) <= 40 else {"labelAngle": -90, "labelFontSize": 9}
    x = alt.X(
        "name:N", sort=names, scale=alt.Scale(domain=names), title="expert, by median",
        axis=alt.Axis(labelOverlap="greedy", ticks=False, **labels),
    )  # fmt: skip
    axis = alt.Scale(zero=measure in ("output_norm", "contribution_norm", "angle", "router_weight"))
    color = colours("who", {"this expert": palette.expert, "others of the layer": palette.kept})
    chosen = alt.selection_point(name="expert", fields=["expert"], on="click", clear=False, toggle=False, empty=False)
    tips = [alt.Tooltip("t_name:N", title="title")]
    tips += [alt.Tooltip(f"t_{name}:N", title=title) for name, title in _SIZE_TIPS.items()]
    named = alt.Chart(data(shown))
    width = max(3, min(14, 420 // max(len(names), 1)))
    chart = alt.layer(
        named.mark_rule(strokeWidth=1.2, tooltip=None).encode(
            x=x, y=alt.Y("low:Q", title=MEASURE_NAMES[measure], scale=axis), y2="high:Q", color=color
        ),
        named.mark_bar(size=width, cursor="pointer", opacity=0.85)
        .encode(x=x, y=alt.Y("quartile:Q"), y2="upper_quartile:Q", color=color, tooltip=tips)
        .add_params(chosen),
        named.mark_tick(thickness=2, size=width + 4, color=palette.ink, tooltip=None).encode(x=x, y="median:Q"),
    )
    return finish(chart, data, 3 * len(names), 300, palette)


_SIZE_TIPS = {"median": "median", "quartiles": "middle half", "most": "5–95 %", "tokens": "tokens"}


@unchecked
def neuron_map(neurons: pd.DataFrame, *, neuron: int | None = None, palette: Palette = LIGHT) -> Picture:
    """Each neuron by its input–output cosine and what it writes to true − foil (logits, mean over own facts; where
    that is missing its mean size). Selection `neuron` with the field neuron, the given one preset; it has a ring."""
    data = Tables()
    value, title = ("write", "write to true − foil (logits)")
    if neurons.write.isna().all():
        value, title = ("mean_size", "mean size")
    rank = f"{'write' if value == 'write' else 'size'}_rank"
    rows = neurons.sort_values(rank).head(NEURONS_DRAWN)
    dots = pd.DataFrame({
        "neuron": rows.neuron, "cosine": rows.in_out_cosine, "value": rows[value],
        "what": np.where(rows.in_out_cosine >= 0, "enriching", "depleting"),
        "t_neuron": [f"neuron {n}" for n in rows.neuron],
        "t_value": [small(v) for v in rows[value]],
        "t_cosine": [cosine(c) for c in rows.in_out_cosine],
        "t_rank": [count(r) for r in rows[rank].astype(float)],
    })  # fmt: skip
    chosen = selection("neuron", {"neuron": neuron}, neuron is not None)
    tips = [alt.Tooltip("t_neuron:N", title="title"), alt.Tooltip("t_value:N", title=value.replace("_", " "))]
    tips += [alt.Tooltip("t_cosine:N", title="input–output cosine"), alt.Tooltip("t_rank:N", title="rank")]
    color = colours("what", {"enriching": palette.high, "depleting": palette.low})
    x, y = alt.X("cosine:Q", title="input–output cosine"), alt.Y("value:Q", title=title)
    named = alt.Chart(data(dots))
    marks = named.mark_circle(size=46, opacity=0.75, cursor="pointer").encode(x=x, y=y, color=color, tooltip=tips)
    ring = named.mark_point(size=150, stroke=palette.expert, strokeWidth=2.5, tooltip=None).encode(x=x, y=y)
    chart = alt.layer(zero_line(data, palette), marks.add_params(chosen), ring.transform_filter(chosen))
    return finish(chart, data, len(dots), 300, palette)


@unchecked
def sign_bars(neurons: pd.DataFrame, *, palette: Palette = LIGHT) -> Picture:
    """How often the pre-activations of some neurons have which signs, as stacked bars in the order of the table."""
    data = Tables()
    label = [f"neuron {n}" for n in neurons.neuron]
    parts = [
        pd.DataFrame({
            "label": label, "signs": words, "share": neurons[column].to_numpy(dtype=float), "order": i,
            "t_neuron": label, "t_share": [f"{words}: {percent(s)}" for s in neurons[column]],
        })
        for i, (column, words) in enumerate(SIGNS.items())
    ]  # fmt: skip
    y = alt.Y("label:N", sort=label, scale=alt.Scale(domain=label), title=None, axis=names_axis(palette))
    whole = alt.Scale(domain=[0, 1])
    axis = alt.Axis(labelExpr=PERCENT, tickCount=5)
    x = alt.X("share:Q", title="share of the expert's tokens", axis=axis, scale=whole)
    colors = dict(zip(SIGNS.values(), (palette.high, palette.joined, palette.low, palette.kept), strict=True))
    tips = [alt.Tooltip("t_neuron:N", title="title"), alt.Tooltip("t_share:N", title="share")]
    bars = alt.Chart(data(pd.concat(parts, ignore_index=True))).mark_bar(height=15)
    chart = bars.encode(x=x, y=y, color=colours("signs", colors), order=alt.Order("order:Q"), tooltip=tips)
    return finish(chart, data, 4 * len(label), max(24 * len(label), 60), palette)
