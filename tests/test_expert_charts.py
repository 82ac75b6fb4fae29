"""The pictures of an expert: valid, one mark for each row that they speak of, in the right order and colour."""

from __future__ import annotations

import altair as alt
import numpy as np
import pandas as pd
import pytest

from core import expert_charts, expert_tables
from core import expert_write_charts as written
from core.palette import DARK, LIGHT
from core.picture import designed

FACTS = 12


def tables(seed: int = 0) -> dict[str, pd.DataFrame]:
    """Rescues of 12 facts of 3 relations, 2 of 4 experts active in each, at layer 3."""
    rng = np.random.default_rng(seed)
    facts = pd.DataFrame({
        "fact": range(FACTS), "case_id": range(100, 100 + FACTS), "relation": ["a", "b", "c"] * 4,
        "subject": [f"s{i}" for i in range(FACTS)], "prompt": "p", "true": "t", "foil": "f", "last": 5,
        "clean_contrast": 3.0, "corrupt_contrast": 0.0, "drop": 3.0,
    })  # fmt: skip
    rows = [(f, 3, e, 0.5, rng.normal(), np.nan) for f in range(FACTS) for e in ((0, 1) if f % 3 else (2, 3))]
    columns = ["fact", "layer", "expert", "router_weight", "rescue", "rescue_sd"]
    return {"facts": facts, "patches": pd.DataFrame(rows, columns=columns)}


def data_of(picture, column: str) -> pd.DataFrame:
    """The picture's first table with this column."""
    return next(table for table in picture.tables.values() if column in table)


@pytest.fixture(scope="module")
def found() -> expert_tables.Rescue:
    return expert_tables.rescue(tables(), 3, 0)


@pytest.fixture(scope="module")
def knockouts() -> pd.DataFrame:
    rng = np.random.default_rng(1)
    rows = [
        (f, 100 + f, ["a", "b", None][f % 3], f"s{f}", mode, place, 1, f % 3 > 0, 0.5, 3.0, 2.0, -rng.random())
        for f in range(FACTS) for mode in ("zero", "reroute") for place in ("all", "last")
    ]  # fmt: skip
    columns = [
        "fact", "case_id", "relation", "subject", "mode", "place", "positions", "clean_active", "router_weight",
        "clean_contrast", "contrast", "change",
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def shares() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "relation": ["a", "b"],
            "tokens": [10, 20],
            "routed": [5, 0],
            "share": [0.5, 0.0],
            "mean_weight": [0.3, np.nan],
        }
    )


def sizes() -> pd.DataFrame:
    rows = [(e, m, 4 * (e < 3), *([v + e] * 6)) for e in range(4) for m, v in (("output_norm", 5), ("angle", 20))]
    names = ["expert", "measure", "tokens", "mean", "low", "quartile", "median", "upper_quartile", "high"]
    return pd.DataFrame(rows, columns=names)


def neurons(write: bool) -> pd.DataFrame:
    n = np.arange(6)
    out = pd.DataFrame({"neuron": n, "in_out_cosine": n / 6 - 0.4, "mean_size": n / 10, "size_rank": 6 - n})
    out["write"] = n / 5 if write else np.nan
    out["write_rank"] = pd.array(6 - n if write else [pd.NA] * 6, dtype="Int64")
    for column in written.SIGNS:
        out[column] = 0.25
    return out


def pictures(found, knockouts, palette):
    knocked = expert_tables.knockout(knockouts)
    tokens = pd.DataFrame({
        "sense": ["promoted", "suppressed"] * 2, "token": [" x", " x", "</b>", "'"], "token_id": [1, 2, 3, 4],
        "effect": [1.0, -1.0, 2.0, -2.0],
    })  # fmt: skip
    direct = found.facts.assign(true_token=" t", direct=found.facts.rescue)
    return {
        "routing": expert_charts.routing_bars(shares(), "relation", expected=0.25, palette=palette),
        "strip": expert_charts.rescue_strip(found.facts, found.relations, palette=palette),
        "histogram": expert_charts.rescue_histogram(found.facts, palette=palette),
        "estimates": expert_charts.estimates(found.estimates, palette=palette),
        "map": expert_charts.expert_map(
            expert_tables.every_expert(tables()), n_layers=4, moe_layers=[1, 3], n_experts=4, palette=palette
        ),
        "knockout": expert_charts.knockout_bars(knocked.estimates, "all", palette=palette),
        "knockout relations": expert_charts.knockout_relations(knocked.relations, "last", palette=palette),
        "tokens": written.written_tokens(tokens, palette=palette),
        "direct": written.direct_strip(direct, "direct", palette=palette),
        "sizes": written.sizes(sizes(), "angle", layer=3, expert=1, palette=palette),
        "neurons": written.neuron_map(neurons(True), palette=palette),
        "signs": written.sign_bars(neurons(True), palette=palette),
    }


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=lambda palette: palette.name)
def test_every_picture_is_valid_and_has_the_background_of_its_theme(found, knockouts, palette):
    for name, picture in pictures(found, knockouts, palette).items():
        spec = picture.standalone(width=500, title="t")
        kind = alt.LayerChart if "layer" in spec else alt.Chart
        kind.from_dict(spec, validate=True)
        assert spec["config"]["background"] == palette.background, name


def test_one_dot_per_fact_relations_where_it_is_never_active_last(found, knockouts):
    strip = pictures(found, knockouts, LIGHT)["strip"]
    dots = data_of(strip, "fact")
    assert sorted(dots.fact) == list(range(FACTS))
    assert (dots.rescue[dots.state == expert_charts.INACTIVE] == 0).all()
    assert dots.groupby("state").size().to_dict() == {expert_charts.ACTIVE: 8, expert_charts.INACTIVE: 4}
    assert list(found.relations.relation)[-1] == "a" and found.relations.n_active.iloc[-1] == 0


def test_the_map_has_a_mark_for_every_expert_that_is_active_somewhere(found, knockouts):
    marks = data_of(pictures(found, knockouts, LIGHT)["map"], "t_clean_active")
    assert set(zip(marks.layer, marks.expert, strict=True)) == {(3, e) for e in range(4)}
    assert list(marks.t_clean_active) == [f"{8 if e < 2 else 4} of {FACTS} facts" for e in marks.expert]


def test_only_modes_that_the_family_allows_are_drawn(knockouts):
    knocked = expert_tables.knockout(knockouts[knockouts["mode"] == "zero"])
    picture = expert_charts.knockout_bars(knocked.estimates, "all")
    assert set(data_of(picture, "series").series) == {"zero"}


def test_experts_without_a_token_are_not_drawn_and_the_others_by_their_median():
    drawn = data_of(written.sizes(sizes(), "output_norm", layer=3, expert=1), "who")
    assert list(drawn.expert) == [2, 1, 0]
    assert list(drawn.who) == ["others of the layer", "this expert", "others of the layer"]


def test_where_there_are_no_writes_neurons_are_drawn_by_their_size():
    with_writes = data_of(written.neuron_map(neurons(True)), "value")
    without = data_of(written.neuron_map(neurons(False)), "value")
    assert list(with_writes.value) == [1.0, 0.8, 0.6, 0.4, 0.2, 0.0]
    assert list(without.value) == [0.5, 0.4, 0.3, 0.2, 0.1, 0.0]
    assert set(without.what) == {"enriching", "depleting"}


def test_the_chosen_neuron_is_marked():
    for neuron in (None, 3):
        spec = written.neuron_map(neurons(True), neuron=neuron).standalone(width=500, title="t")
        (chosen,) = [p for p in spec["params"] if p["name"] == "neuron"]
        assert chosen.get("value") == (None if neuron is None else [{"neuron": 3}])
        assert [m for m in spec["layer"] if m.get("transform") == [{"filter": {"param": "neuron", "empty": False}}]]


def test_another_experts_pictures_need_no_other_design(found):
    every, some = expert_tables.every_expert(tables()), found.estimates
    for draw in (
        lambda factor: expert_charts.estimates(some.assign(mean=some["mean"] * factor), palette=LIGHT),
        lambda factor: expert_charts.routing_bars(
            shares().iloc[:: int(1 / factor)], "relation", expected=factor / 4, palette=LIGHT
        ),
        lambda factor: expert_charts.expert_map(
            every.assign(mean_all=every.mean_all * factor), n_layers=4, moe_layers=[1, 3], n_experts=4
        ),
    ):
        designed.cache_clear()
        one, two = draw(1), draw(0.5)
        assert designed.cache_info().misses == 1
        assert one.standalone(width=300)["datasets"] != two.standalone(width=300)["datasets"]
        assert draw(1).spec == one.spec, "nothing of the other is left"
