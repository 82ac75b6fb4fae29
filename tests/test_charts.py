"""The charts' specs: valid Vega-Lite, the right numbers in the right place, honest scales, selections, tooltips."""

from __future__ import annotations

import altair as alt
import drawn
import numpy as np
import pandas as pd
import pytest
import vl_convert
from fake_results import FRANCE, fake_result
from written import written

from core import charts, palette, tooltips, views
from core.links import SHARED, View
from core.picture import limit as picture_limit
from core.requests import TraceRequest

ODD = ["'); alert(1)//", "\\", '"', "\u2028", "</script>", "日本"]


@pytest.fixture(scope="module")
def result():
    return fake_result(request=TraceRequest(fact=FRANCE, draws=3), dense=(0,), shared=True)


def pictures(result, view=View(), colours=palette.LIGHT):
    pos = 5 if view.pos is None else view.pos
    layer = 4 if view.layer is None else view.layer
    return {
        "layer_token": charts.layer_token(result, view=view, palette=colours),
        "layer_expert": charts.layer_expert(result, pos, view=view, palette=colours),
        "routing_strip": charts.routing_strip(result, layer, view=view, palette=colours),
        "expert_bars": charts.expert_bars(result, layer, pos, view=view, palette=colours),
    }


def expert_at(result, layer=4, pos=5):
    return int(views.active_experts(result, layer, pos).query("expert >= 0").expert.iloc[0])


def marks(spec, kind):
    return [layer for layer in spec["layer"] if layer["mark"]["type"] == kind]


def table_with(picture, column):
    return next(table for table in picture.tables.values() if column in table)


def scenegraph(picture):
    """What Vega draws, as (mark name, items) of every group."""
    return drawn.groups(picture.standalone(width=600))


@pytest.mark.parametrize(
    ("measure", "colours", "tokens"),
    [("restoration", palette.LIGHT, None), ("rescue", palette.DARK, ODD)],
    ids=["light, plain tokens", "dark, odd tokens"],
)
def test_every_spec_is_valid_and_can_be_drawn(measure, colours, tokens):
    result = fake_result(request=TraceRequest(fact=FRANCE, draws=2), dense=(0,), shared=True, tokens=tokens)
    for view in (View(measure=measure), View(measure, pos=5, layer=4, expert=expert_at(result))):
        for name, picture in pictures(result, view, colours).items():
            spec = picture.standalone(width=500, title="t", subtitle=["a", "b"])
            alt.LayerChart.from_dict(spec, validate=True)
            svg = vl_convert.vegalite_to_svg(spec)
            assert len(svg) > 2000, name
            assert "NaN" not in svg, name


def drawn_rects(picture):
    return [items for role, kind, items in scenegraph(picture) if kind == "rect" and role == "mark" and items]


def test_each_cell_stands_where_its_layer_and_token_say_with_the_colour_of_its_value(result):
    picture = charts.layer_token(result)
    cells = views.layer_cells(result)
    items = max(drawn_rects(picture), key=len)
    assert len(items) == len(cells)
    xs = sorted({round(item["x"], 3) for item in items})
    ys = sorted({round(item["y"], 3) for item in items}, reverse=True)
    end = picture_limit(cells.restoration)
    low, mid, high = (np.array(rgb(c)) for c in (palette.LIGHT.low, palette.LIGHT.mid, palette.LIGHT.high))
    for item, cell in zip(items, cells.itertuples(), strict=True):
        assert xs.index(round(item["x"], 3)) == cell.pos
        assert ys.index(round(item["y"], 3)) == cell.layer - 1, "layer 0 is dense, layers go upwards"
        part = cell.restoration / end
        expected = mid + (high - mid) * part if part >= 0 else mid + (mid - low) * part
        assert np.abs(np.array(rgb(item["fill"])) - expected).max() <= 2


def rgb(colour: str) -> tuple[int, ...]:
    if colour.startswith("#"):
        return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return tuple(int(float(part)) for part in colour.strip("rgba()").split(",")[:3])


def test_all_experts_are_drawn_and_unrouted_ones_are_blank(result):
    picture = charts.layer_expert(result, 5)
    grid = views.expert_grid(result, 5)
    items = max(drawn_rects(picture), key=len)
    assert len(items) == len(grid)
    for item, row in zip(items, grid.itertuples(), strict=True):
        blank = rgb(item["fill"]) == rgb(palette.LIGHT.blank)
        assert blank == (row.status == views.NOT_ROUTED)
    rings = [items for role, kind, items in scenegraph(picture) if kind == "symbol" and role == "mark"]
    assert len(rings[0]) == (grid.status == views.CORRUPT_ONLY).sum()


def test_missing_restorations_are_grey_and_rescues_are_not():
    result = fake_result(drop=0.01)
    grey = rgb(palette.LIGHT.missing)
    assert all(rgb(item["fill"]) == grey for item in max(drawn_rects(charts.layer_token(result)), key=len))
    shown = max(drawn_rects(charts.layer_token(result, view=View(measure="rescue"))), key=len)
    assert any(rgb(item["fill"]) != grey for item in shown)
    grid = views.expert_grid(result, 5)
    overlay = [items for items in drawn_rects(charts.layer_expert(result, 5)) if rgb(items[0]["fill"]) == grey]
    assert len(overlay[0]) == (grid.status != views.NOT_ROUTED).sum()


@pytest.mark.parametrize(
    ("values", "end"),
    [([0.0], 0.05), ([], 0.05), ([np.nan], 0.05), ([-0.31, 0.1], 0.35), ([1.0], 1.0), ([2.2], 2.5), ([12.0, -3], 15.0)],
)
def test_scales_are_symmetric_and_round(values, end):
    assert picture_limit(pd.Series(values, dtype=float)) == pytest.approx(end)
    result = fake_result()
    for name in ("layer_token", "layer_expert"):
        scale = marks(pictures(result)[name].spec, "rect")[0]["encoding"]["color"]["condition"]["scale"]
        assert scale["domain"][0] == -scale["domain"][2]
        assert scale["domain"][1] == 0
        assert scale["clamp"] is True


def test_the_views_choices_are_marked(result):
    expert = expert_at(result)
    view = View(pos=5, layer=4, expert=expert)
    made = pictures(result, view)
    preset = {name: [p for p in made[name].spec.get("params", []) if "select" in p] for name in made}
    assert [p["value"] for p in preset["layer_token"]] == [[{"layer": 4, "pos": 5}]]
    assert [p["value"] for p in preset["layer_expert"]] == [[{"layer": 4, "expert": expert}]]
    assert [p["value"] for p in preset["routing_strip"]] == [[{"pos": 5, "expert": expert}]]
    pink = palette.LIGHT.expert
    for name, picture in made.items():
        outlines = [items for items in drawn_rects(picture) if items[0].get("stroke") in (pink, palette.LIGHT.mark)]
        assert outlines, name
    dots = [items for role, kind, items in scenegraph(made["layer_token"]) if kind == "symbol" and role == "mark"]
    strip = views.routing_strip(result, 4)
    assert len(dots[0]) == (strip.expert == expert).sum()
    shared = charts.layer_expert(result, 5, view=View(pos=5, layer=4, expert=SHARED))
    assert shared.spec["params"][0]["value"] == [{"layer": 4, "expert": views.SHARED_INDEX}]


def test_nothing_is_marked_when_nothing_is_chosen(result):
    for picture in (charts.layer_token(result), charts.layer_expert(result, 5), charts.routing_strip(result, 4)):
        assert all("value" not in param for param in picture.spec["params"])
        assert not any(items[0].get("stroke") == palette.LIGHT.expert for items in drawn_rects(picture))


def test_dense_layers_are_rows_of_their_own(result):
    for picture in (charts.layer_token(result), charts.layer_expert(result, 5)):
        assert len(marks(picture.spec, "rule")) == 1
        notes = table_with(picture, "t_kind")
        assert set(notes.layer) == {0}
        assert "dense" in notes.t_kind.iloc[0]
        y = picture.spec["layer"][0]["encoding"]["y"]
        assert y["scale"]["domain"] == [5, 4, 3, 2, 1, 0]


def test_tooltips_say_what_the_numbers_mean(result):
    cells = views.layer_cells(result)
    told = tooltips.cell_tooltips(result, cells)
    for cell, tip in zip(cells.itertuples(), told.itertuples(), strict=True):
        assert f"layer {cell.layer}" in tip.t_cell
        assert f"({cell.pos})" in tip.t_cell
        assert tip.t_restoration == f"{cell.restoration:.3f}".replace("-", "−")
        assert f"n = {result.request.draws}" in tip.t_over_draws
        assert f"sd {cell.rescue_sd:.3f}" in tip.t_over_draws
        lifted = "lifted" if cell.true_shift >= 0 else "lowered"
        assert tip.t_reading.startswith(f"true object {lifted} {abs(cell.true_shift):.3f}")
        assert ("foil put down" in tip.t_reading) == (cell.foil_shift <= 0)
    table = table_with(charts.layer_token(result), "t_cell")
    assert list(table.t_restoration) == list(told.t_restoration)


def test_expert_tooltips_tell_the_direct_part_from_the_rest(result):
    pos = len(result.provenance.tokens) - 1
    grid = views.expert_grid(result, pos)
    told = tooltips.expert_tooltips(result, grid)
    said = 0
    for cell, tip in zip(grid.itertuples(), told.itertuples(), strict=True):
        if cell.status == views.NOT_ROUTED:
            assert tip.t_direct_part == "–"
            continue
        rest = f"through later layers {written(cell.rescue - cell.direct)}"
        assert tip.t_direct_part == f"{written(cell.direct)} logits, {rest}"
        said += 1
    assert said
    assert (tooltips.expert_tooltips(result, grid.assign(direct=np.nan)).t_direct_part == "–").all()


def test_near_ties_are_named(result):
    strip = views.routing_strip(result, 4)
    strip.loc[0, ["near_tie_clean", "margin_clean"]] = [True, 0.001]
    assert "clean 0.001 (near tie)" in tooltips.strip_tooltips(result, strip).t_routing_margin[0]
    routing = result.routing.copy()
    routing.loc[(routing.layer == 4) & (routing.pos == 3), "near_tie"] = True
    marked = type(result)(**{**result.__dict__, "routing": routing})
    labels = charts.routing_strip(marked, 4).spec["layer"][0]["encoding"]["y"]["scale"]["domain"]
    ties = set(routing[(routing.layer == 4) & routing.near_tie].pos)
    assert {pos for pos, label in enumerate(labels) if label.startswith("≈")} == ties
    assert 3 in ties


def test_bars_add_up_to_the_rescue(result):
    long = table_with(charts.expert_bars(result, 4, 5), "part")
    table = views.active_experts(result, 4, 5).set_index("name")
    for name, total in long.groupby("name").value.sum().items():
        assert total == pytest.approx(table.rescue[name])


def test_large_models_go_to_the_canvas_and_small_ones_do_not():
    big = fake_result(
        request=TraceRequest(fact=FRANCE, draws=1),
        n_layers=48,
        n_experts=128,
        top_k=8,
        tokens=[f" t{i}" for i in range(60)],
    )
    pos = 59
    for picture in (charts.layer_token(big), charts.layer_expert(big, pos), charts.routing_strip(big, 20)):
        assert picture.spec["usermeta"]["embedOptions"]["renderer"] == "canvas"
        assert picture.spec["height"] <= 800
    assert len(table_with(charts.layer_expert(big, pos), "t_expert")) == 48 * 128
    small = charts.layer_token(fake_result())
    assert small.spec["usermeta"]["embedOptions"]["renderer"] == "svg"
