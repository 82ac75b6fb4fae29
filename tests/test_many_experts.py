"""48 layers × 128 experts on a narrow page: labels apart, colours not drowned by frames, titles whole. No model."""

from __future__ import annotations

import drawn
import numpy as np
import pandas as pd
import pytest

from core import expert_charts, routing_charts
from core.averages import charts as averages
from core.picture import Picture, enlarged
from core.results import expert_name

LAYERS, EXPERTS, DENSE = 48, 128, (0, 20, 47)
NARROW, LARGE = 430, 1.3
DIGIT = 0.5
"""A digit is at least so wide, as a share of the type's size, in the dashboard's font and in those that stand in."""


def all_experts() -> Picture:
    pairs = [(n, e) for n in range(LAYERS) if n not in DENSE for e in range(EXPERTS)]
    table = pd.DataFrame(pairs, columns=["layer", "expert"]).assign(mean_all=0.1, mean_active=0.1, n_active=3, n=9)
    table["name"] = [expert_name(*pair) for pair in pairs]
    moe = [n for n in range(LAYERS) if n not in DENSE]
    return expert_charts.expert_map(table, n_layers=LAYERS, moe_layers=moe, n_experts=EXPERTS)


def load() -> Picture:
    return routing_charts.load_lines(pd.DataFrame({
        "layer": range(LAYERS), "run": "clean", "load_entropy": np.linspace(0.5, 0.9, LAYERS), "unused": 0,
        "unused_names": "", "busiest": "", "busiest_frequency": 0.1, "tokens": 9,
    }))  # fmt: skip


def divergence() -> Picture:
    values = dict.fromkeys(("divergence", "baseline", "high", "above_baseline", "p"), 0.1)
    table = pd.DataFrame({"layer": range(LAYERS), "tokens_a": 9, "tokens_b": 9, **values})
    return routing_charts.divergence_layers(table)


def pairs() -> Picture:
    table = pd.DataFrame({"expert": [0, 3], "other": [127, 90], "name": "L0E000", "other_name": "L0E127"})
    return routing_charts.pair_map(
        table.assign(together=2, tokens=9, expected=1.5, lift=1.2, reference=0.9), layer=0, n_experts=EXPERTS
    )


def roles() -> Picture:
    table = pd.DataFrame({"layer": range(LAYERS), "role": "last token"})
    named = ("restoration", "rescue", "restoration_low", "restoration_high", "rescue_low", "rescue_high")
    values = dict.fromkeys((*named, "mean_drop", "positive_fraction"), 0.1)
    return averages.role_map(table.assign(**values, n=9, n_facts=9, n_missing=0), n_layers=LAYERS)


DRAWN = {make.__name__: make for make in (all_experts, load, divergence, pairs, roles)}


def items_of(picture: Picture, kind: str, *, role: str) -> list[dict]:
    """What Vega draws of the picture on a narrow page with large type: marks of a kind in a role."""
    return drawn.items(enlarged(picture.standalone(width=NARROW), LARGE), kind, role=role)


@pytest.mark.parametrize("name", DRAWN)
def test_numbers_on_an_axis_stand_apart(name):
    labels = [item for item in items_of(DRAWN[name](), "text", role="axis-label") if item.get("opacity", 1)]
    row = sorted((item for item in labels if item["x"] >= 0), key=lambda item: item["x"])  # left of 0: the rows' names
    assert len(row) >= 5 and row[0]["text"] == "0"
    steps = np.diff([int(item["text"]) for item in row])
    assert len(set(steps[:-1])) == 1, "every second one, fourth one and so on"
    for left, right in zip(row, row[1:], strict=False):
        half = [len(item["text"]) * DIGIT * item["fontSize"] / 2 for item in (left, right)]
        assert right["x"] - left["x"] - sum(half) >= 4, (left["text"], right["text"])


def test_frames_leave_the_colours_of_the_experts_to_be_seen():
    cells = [item for item in items_of(all_experts(), "rect", role="mark") if item.get("stroke")]
    assert len(cells) == (LAYERS - len(DENSE)) * EXPERTS
    for item in cells:
        framed = item["strokeWidth"] * item.get("strokeOpacity", 1)
        assert 2 * framed < 0.15 * item["width"]


def test_the_map_of_all_experts_has_a_row_for_every_layer_and_dashes_through_dense_ones():
    rules = [item["y"] for item in items_of(all_experts(), "rule", role="mark")]
    rows = sorted({item["y"] for item in items_of(all_experts(), "rect", role="mark")}, reverse=True)
    assert len(rows) == LAYERS
    step = rows[0] - rows[1]
    assert sorted(round((rows[0] - y) / step + 0.5) for y in rules) == list(DENSE)


def test_the_longest_legend_title_is_whole():
    (title,) = items_of(pairs(), "text", role="legend-title")
    assert title["limit"] >= 0.6 * title["fontSize"] * len(title["text"])
