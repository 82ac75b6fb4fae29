"""Marking another cell or expert in a map builds no chart: only its presets and small tables change."""

from __future__ import annotations

import dataclasses

import pytest
from fake_results import FRANCE, fake_result

from core import charts, views
from core.links import SHARED, View
from core.palette import DARK, LIGHT
from core.picture import records
from core.requests import TraceRequest

POS = 5
VIEWS = [
    View(), View(pos=POS), View(pos=POS, layer=1), View(pos=POS, layer=1, expert=3),
    View(pos=3, layer=4, expert=SHARED), View(pos=2, layer=2, expert=5), View(pos=POS, layer=1, expert=SHARED),
    View(pos=POS, layer=1, expert=0, coalition=(0, 1, 2, 3, SHARED)),
]  # fmt: skip
MAPS = {
    "layer_token": lambda result, view, palette: charts.layer_token(result, view=view, palette=palette),
    "layer_expert": lambda result, view, palette: charts.layer_expert(result, POS, view=view, palette=palette),
    "routing_strip": lambda result, view, palette: charts.routing_strip(result, 1, view=view, palette=palette),
    "expert_bars": lambda result, view, palette: charts.expert_bars(result, 1, POS, view=view, palette=palette),
}


@pytest.fixture(scope="module")
def result():
    return fake_result(request=TraceRequest(fact=FRANCE, draws=2, experts="all"), dense=(2,), shared=True)


def told(picture) -> dict:
    return picture.standalone(width=300)


@pytest.mark.parametrize("name", MAPS)
def test_a_map_is_built_once_and_marked_as_if_it_were_built_anew(result, name, monkeypatch):
    wanted = [told(MAPS[name](dataclasses.replace(result), view, LIGHT)) for view in VIEWS]
    built = []
    finish = charts.rows_of
    monkeypatch.setattr(charts, "rows_of", lambda *given, **options: built.append(name) or finish(*given, **options))
    mine = dataclasses.replace(result)
    for _ in range(2):
        assert [told(MAPS[name](mine, view, LIGHT)) for view in VIEWS] == wanted
    assert built == [name]
    MAPS[name](mine, VIEWS[0], DARK)
    assert built == [name] * 2
    assert len({str(spec) for spec in wanted}) > 1, "the views do differ"


OVERLAYS = {"dots", "frame", "ticked", "marked_column", "marked_row"}


def named(picture) -> dict[str, list]:
    """The tables of what is marked, as rows."""
    return {name: records(table) for name, table in picture.tables.items() if name in OVERLAYS}


def test_what_is_marked_is_what_the_view_names(result):
    view = View(pos=POS, layer=1, expert=3, coalition=(0, 3, SHARED))
    cells = charts.layer_token(result, view=view)
    assert cells.spec["params"][0]["value"] == [{"layer": 1, "pos": POS}]
    strip = views.routing_strip(result, 1)
    here = strip[strip.expert == 3]
    assert [row["label"] for row in named(cells)["dots"]] == list(here.label)
    assert {row["layer"] for row in named(cells)["dots"]} == {1}
    experts = named(charts.layer_expert(result, POS, view=view))
    assert experts["frame"] == [{"layer": 1}]
    assert [row["column"] for row in experts["ticked"]] == ["0", "3", "shared"]
    marked = named(charts.routing_strip(result, 1, view=view))
    labels = charts.routing_strip(result, 1).spec["layer"][0]["encoding"]["y"]["scale"]["domain"]
    assert marked == {"marked_column": [{"column": "3"}], "marked_row": [{"label": labels[POS]}]}


def test_nothing_is_left_of_marks_that_are_not_there(result):
    for make in MAPS.values():
        picture = make(result, View(), LIGHT)
        assert not named(picture)
        data = {layer["data"]["name"] for layer in picture.spec["layer"] if "data" in layer}
        assert data <= set(picture.tables)
        assert all("value" not in param for param in picture.spec.get("params", []))
