"""Pictures of the answers about cells: valid Vega-Lite, each mark as long as its number says, ticked experts framed."""

from __future__ import annotations

import altair as alt
import numpy as np
import pandas as pd
import pytest
import vl_convert
from fake_cells import fake_answer
from fake_results import FRANCE, fake_result
from test_charts import scenegraph

from core import charts, palette, views
from core.cells import pictures, tables
from core.cells.asking import ask, ask_clean
from core.links import SHARED, View
from core.picture import Picture
from core.requests import TraceRequest
from pages.parts import section_coalition, section_controls

LAYER, POS, DRAWS = 4, 5, 3
CELL = {"layer": LAYER, "pos": POS}
REQUEST = TraceRequest(fact=FRANCE, draws=DRAWS)
SHAPE = {"top_k": 3}


@pytest.fixture(scope="module")
def at():
    return fake_result(request=REQUEST, **SHAPE)


@pytest.fixture(scope="module")
def experts(at) -> list[int]:
    """The clean-active ones."""
    table = views.active_experts(at, LAYER, POS)
    return [int(e) for e in table[table.status != views.CORRUPT_ONLY].expert]


def rows_of(kind: str, at, experts) -> pd.DataFrame:
    if kind == "coalition":
        return tables.coalition_rows(fake_answer(ask("coalition", REQUEST, **CELL, experts=experts), **SHAPE))
    return tables.control_rows(fake_answer(ask("cell_controls", REQUEST, **CELL, expert=experts[0]), **SHAPE))


def needed(at) -> pd.DataFrame:
    request = REQUEST.replace(draws=2)  # the made-up answer about the clean run has the routing of two draws
    answer = fake_answer(ask_clean("cell_knockouts", request, **CELL), **SHAPE)
    return tables.necessity(fake_result(request=request, **SHAPE), answer)


def every(at, experts, colours=palette.LIGHT) -> dict[str, Picture]:
    curve = fake_answer(ask("minimal_set", REQUEST, **CELL, target=0.8), **SHAPE).tables["curve"]
    roles = {"coalition": section_coalition.ROLES, "controls": section_controls.ROLES}
    out = {
        kind: pictures.effects(rows_of(kind, at, experts), roles=of, palette=colours) for kind, of in roles.items()
    }
    return out | {
        "necessity": pictures.necessity(needed(at), palette=colours),
        "minimal": pictures.minimal_curve(curve, target=0.8, palette=colours),
        "no random sets": pictures.minimal_curve(
            curve.assign(random_min=np.nan, random_max=np.nan, random_restoration=np.nan), target=0.8, palette=colours
        ),
        "draws": pictures.draws(tables.draws_of(at, LAYER, POS), palette=colours),
    }


def test_every_picture_is_valid_and_can_be_drawn(at, experts):
    for name, picture in every(at, experts, palette.DARK).items():
        spec = picture.standalone(width=500, title="t")
        alt.LayerChart.from_dict(spec, validate=True)
        svg = vl_convert.vegalite_to_svg(spec)
        assert len(svg) > 2000 and "NaN" not in svg, name


def lengths(picture: Picture, kind: str = "rect") -> list[float]:
    """Horizontal extents of the marks of one kind, in the order of their rows."""
    marks = [items for role, mark, items in scenegraph(picture) if mark == kind and role == "mark" and items]
    longest = max(marks, key=len)
    return [item.get("width", 0.0) for item in longest]


@pytest.mark.parametrize("kind", ["coalition", "controls"])
def test_bars_are_as_long_as_the_rescues(at, experts, kind):
    rows = rows_of(kind, at, experts)
    roles = {"coalition": section_coalition.ROLES, "controls": section_controls.ROLES}[kind]
    found = lengths(pictures.effects(rows, roles=roles))
    assert len(found) == len(rows) >= 5
    expected = (rows.rescue.abs() / rows.rescue.abs().max()).to_list()
    assert [length / max(found) for length in found] == pytest.approx(expected, abs=0.01)


def test_a_number_stands_right_of_its_bar_and_of_the_line_over_the_draws(at, experts):
    rows = rows_of("coalition", at, experts).copy()
    rows[["rescue", "rescue_min", "rescue_max"]] = [-1.0, -4.0, 2.0]  # a negative mean, draws on both sides of 0
    drawn = scenegraph(pictures.effects(rows, roles=section_coalition.ROLES))
    (lines,) = [items for role, mark, items in drawn if mark == "rule" and role == "mark" and len(items) == len(rows)]
    (numbers,) = [items for role, mark, items in drawn if mark == "text" and role == "mark" and len(items) == len(rows)]
    ends = [max(item["x"], item.get("x2", item["x"])) for item in lines]
    assert all(item["x"] >= end for item, end in zip(numbers, ends, strict=True))


def test_necessity_has_a_bar_for_each_number(at):
    table = needed(at)
    drawn = pictures.necessity(table).tables["table0"]
    values = {(row["name"], row["measure"]): row["value"] for row in drawn.to_dict("records")}
    assert set(values) == {
        (row["name"], name) for row in table.to_dict("records") for name in pictures.NEEDED if pd.notna(row[name])
    }
    assert all(values[name, measure] == table.set_index("name")[measure][name] for name, measure in values)
    without = pictures.necessity(table, direct=False).tables["table0"]
    assert set(without.measure) == {"rescue", "zero", "reroute"}


def test_draws_have_a_dot_each(at):
    picture = pictures.draws(tables.draws_of(at, LAYER, POS))
    dots = [items for role, mark, items in scenegraph(picture) if mark == "symbol" and role == "mark"]
    assert max(map(len, dots)) == DRAWS * (len(views.active_experts(at, LAYER, POS)) + 1)


def test_ticked_experts_are_framed_in_the_map(experts):
    at = fake_result(request=REQUEST, shared=True, **SHAPE)
    view = View(pos=POS, layer=LAYER, coalition=(experts[0], experts[1], SHARED))
    picture = charts.layer_expert(at, POS, view=view)
    framed = [t for t in picture.tables.values() if list(t.columns) == ["layer", "column"] and SHARED in set(t.column)]
    assert [set(t.column) for t in framed] == [{str(experts[0]), str(experts[1]), SHARED}]
    assert all((t.layer == LAYER).all() for t in framed)
