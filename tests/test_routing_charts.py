"""The Routing page's pictures: valid, the right numbers in the right place, large models stay legible and clickable."""

from __future__ import annotations

import altair as alt
import numpy as np
import pandas as pd
import pytest
import vl_convert
from test_charts import scenegraph, table_with
from written import written

from core import routing_charts as charts
from core.palette import DARK, LIGHT
from core.picture import designed
from core.requests import Fact
from core.routed import PlacedPrompt, token_table
from core.routing import RoutedTokens
from core.routing_kinds import parts_of_answer
from core.routing_sets import co_activation_table, frequency_table, random_lift, relation_table, wide_table


def made_up(*, layers: tuple[int, ...], n_experts: int, top_k: int, facts: int = 12, seed: int = 0) -> RoutedTokens:
    """Random routing of facts of two relations, two tokens before a subject of two and one after it."""
    generator = np.random.default_rng(seed)
    prompts = [
        PlacedPrompt(Fact("a", f"s{i}", "t", case_id=i, relation=f"r{i % 2}"), tuple(range(5)), (2, 3))
        for i in range(facts)
    ]
    tokens = token_table(prompts, [[prompt.ids] * 2 for prompt in prompts], lambda i: f"w{i}")
    shape = (len(tokens), len(layers), n_experts)
    index = np.argsort(generator.normal(size=shape) + np.linspace(1, 0, n_experts), axis=2)[..., -top_k:]
    weight = generator.random(index.shape).astype(np.float32)
    return RoutedTokens(tokens, index.astype(np.uint8), weight, layers, n_experts)


@pytest.fixture(scope="module")
def routed() -> RoutedTokens:
    return made_up(layers=(1, 2, 4), n_experts=6, top_k=2)


@pytest.fixture(scope="module")
def tables(routed) -> dict[str, pd.DataFrame]:
    facts = [Fact("a", f"s{i}", "t", case_id=i, relation=f"r{i % 2}") for i in range(12)]
    return parts_of_answer(routed, facts, range(12))[0]


def of(table: pd.DataFrame, **chosen) -> pd.DataFrame:
    for name, value in chosen.items():
        table = table[table[name] == value]
    return table.reset_index(drop=True)


def frequency_map(wide: pd.DataFrame, *, n_layers: int, n_experts: int, run: str = "clean", **options):
    tips = charts.frequency_tips(wide)
    table = pd.concat([wide.assign(value=wide[run]), tips], axis=1)
    return charts.expert_map(
        table, n_layers=n_layers, n_experts=n_experts, title="frequency", tips=list(tips), signed=run == "change",
        **options,
    )  # fmt: skip


def pictures(routed, tables, palette):
    wide = wide_table(tables["frequency"], "last token")
    where = {"run": "clean", "position_class": "last token"}
    pairs = co_activation_table(routed, "clean", "all", 2).assign(reference=random_lift(6, 2))
    changed = of(tables["clean_corrupt"], position_class="last token")
    parts = of(tables["frequency"], layer=2, **where).assign(part=0.1, part_baseline=0.02, share_a=0.2, share_b=0.3)
    chosen = {"layer": 2, "expert": 3, "palette": palette}
    return {
        "map": frequency_map(wide, n_layers=5, n_experts=6, **chosen),
        "change": frequency_map(wide, n_layers=5, n_experts=6, run="change", **chosen),
        "bars": charts.frequency_bars(of(wide, layer=2), n_experts=6, **chosen),
        "load": charts.load_lines(of(tables["load"], position_class="others"), layer=2, palette=palette),
        "relations": charts.relation_map(relation_table(routed, layer=2, **where), n_experts=6, **chosen),
        "pairs": charts.pair_map(pairs, n_experts=6, **chosen),
        "divergence": charts.divergence_layers(changed, layer=2, palette=palette),
        "parts": charts.divergence_parts(parts, names=("A: </script>", "B: 'x'"), expert=3, palette=palette),
    }


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_every_spec_is_valid_and_can_be_drawn(routed, tables, palette):
    for name, picture in pictures(routed, tables, palette).items():
        spec = picture.standalone(width=500, title="t")
        alt.LayerChart.from_dict(spec, validate=True)
        if palette is DARK and name not in ("map", "parts"):
            continue
        svg = vl_convert.vegalite_to_svg(spec)
        assert len(svg) > 2000 and "NaN" not in svg and "undefined" not in svg, name


def test_a_cell_has_its_frequency_and_its_colour(routed, tables):
    wide = wide_table(tables["frequency"], "last token")
    picture = frequency_map(wide, n_layers=5, n_experts=6)
    drawn = table_with(picture, "t_frequency_(clean)").set_index(["layer", "expert"])
    last = (routed.tokens.role == "last token").to_numpy()
    for at, layer in enumerate(routed.layers):
        for expert in range(6):
            shares = {}
            for run in ("clean", "corrupt"):
                mine = routed.index[last & (routed.tokens.run == run).to_numpy(), at]
                shares[run] = (mine == expert).any(1).mean()
            row = drawn.loc[(layer, expert)]
            assert row.value == pytest.approx(shares["clean"])
            assert row["t_frequency_(clean)"] == f"{100 * shares['clean']:.1f} % of 12 tokens"
            assert row["t_change"] == f"{written(100 * (shares['corrupt'] - shares['clean']), 1)} points"
    cells = [items for role, kind, items in scenegraph(picture) if kind == "rect" and role == "mark"][0]
    assert len(cells) == 18
    busiest = max(drawn.value)
    fills = {cell["fill"] for cell, value in zip(cells, drawn.value, strict=True) if value == busiest}
    assert len(fills) == 1, "the busiest experts have the scale's end colour"
    rules = [items for role, kind, items in scenegraph(picture) if kind == "rule" and role == "mark"]
    assert sum(map(len, rules)) == 2, "layers 0 and 3 are dense"


def test_pairs_are_coloured_by_lift_against_random_choices(routed):
    pairs = co_activation_table(routed, "clean", "all", 2).assign(reference=random_lift(6, 2))
    drawn = table_with(charts.pair_map(pairs, layer=2, n_experts=6), "t_pair")
    assert len(drawn) == 30, "both halves of the matrix, without the diagonal"
    for row in drawn.itertuples():
        mine = pairs[(pairs.expert == min(row.expert, row.other)) & (pairs.other == max(row.expert, row.other))].iloc[0]
        assert row.defined == (mine.expected * mine.reference >= 1)
        if row.defined and mine.lift > 0:
            value = np.clip(np.log2(mine.lift / mine.reference), -charts.LIFT_END, charts.LIFT_END)
            assert row.value == pytest.approx(value)
        elif row.defined:
            assert row.value == -charts.LIFT_END
    assert random_lift(6, 2) == pytest.approx(0.6) and np.isnan(random_lift(8, 1))
    choices = np.array([np.random.default_rng(i).permutation(6)[:2] for i in range(6000)])
    both = ((choices == 0).any(1) & (choices == 1).any(1)).mean()
    assert both / ((choices == 0).any(1).mean() * (choices == 1).any(1).mean()) == pytest.approx(0.6, abs=0.05)


def test_a_divergence_within_chance_looks_so(tables):
    table = of(tables["clean_corrupt"], position_class="last token")
    table = table.assign(divergence=[0.2, 0.01, 0.3], baseline=[0.1, 0.02, 0.1], high=[0.15, 0.05, 0.31])
    drawn = table_with(charts.divergence_layers(table), "beyond")
    assert [word.startswith("above") for word in drawn.beyond] == [True, False, False]


def test_the_axis_of_a_load_that_is_the_same_everywhere_can_be_read(tables):
    load = of(tables["load"], position_class="last token")
    same = table_with(picture := charts.load_lines(load.assign(load_entropy=0.25)), "load_entropy")
    assert len(same) == len(load)
    labels = [item["text"] for role, kind, items in scenegraph(picture) if kind == "text" for item in items]
    numbers = [float(label) for label in labels if label.startswith("0.") and label[2:].isdigit()]
    assert len(numbers) >= 3 and min(numbers) < 0.25 < max(numbers) and max(map(len, map(str, numbers))) <= 5
    full = charts.load_lines(load.assign(load_entropy=1.0))
    labels = [item["text"] for role, kind, items in scenegraph(full) if kind == "text" for item in items]
    assert max(float(label) for label in labels if label.replace(".", "").isdigit() and "." in label) == 1.0


def test_many_layers_and_experts_stay_legible_and_clickable():
    routed = made_up(layers=tuple(range(48)), n_experts=128, top_k=8, facts=4)
    wide = wide_table(frequency_table(routed), "all")
    picture = frequency_map(wide, n_layers=48, n_experts=128, layer=44, expert=69)
    assert picture.marks == 48 * 128
    assert picture.spec["usermeta"]["embedOptions"]["renderer"] == "canvas", "thousands of marks are too many for SVG"
    cells = [items for role, kind, items in scenegraph(picture) if kind == "rect" and role == "mark"][0]
    assert len(cells) == 48 * 128
    assert min(cell["height"] for cell in cells) >= 9 and min(cell["width"] for cell in cells) >= 4
    clicks = [layer for layer in picture.spec["params"] if layer["name"] == "expert"]
    assert clicks[0]["value"] == [{"layer": 44, "expert": 69}]
    pairs = co_activation_table(routed, "clean", "all", 44).assign(reference=random_lift(128, 8))
    assert charts.pair_map(pairs, layer=44, n_experts=128).spec["height"] <= 700


def test_what_only_differs_in_its_numbers_and_marks_shares_a_design(routed, tables):
    wide = wide_table(tables["frequency"], "last token")
    changed = of(tables["clean_corrupt"], position_class="last token")
    for draw in (
        lambda share, mark: frequency_map(wide.assign(clean=wide.clean * share), n_layers=5, n_experts=6, **mark),
        lambda share, mark: charts.frequency_bars(
            of(wide.assign(clean=wide.clean * share), layer=2), n_experts=6, **{"layer": 2} | mark
        ),
        lambda share, mark: charts.divergence_layers(
            changed.assign(divergence=changed.divergence * share), layer=mark.get("layer")
        ),
    ):
        designed.cache_clear()
        first, second = draw(1.0, {}), draw(0.5, {"layer": 2, "expert": 3})
        assert designed.cache_info().misses == 1
        assert [p.get("value") for p in first.spec["params"]] == [None]
        (chosen,) = second.spec["params"][0]["value"]
        assert chosen["layer"] == 2
        assert first.standalone(width=300)["datasets"] != second.standalone(width=300)["datasets"]
        assert draw(1.0, {}).spec == first.spec, "nothing of the other is left"
    designed.cache_clear()
    ends = [
        frequency_map(wide.assign(clean=wide.clean * share), n_layers=5, n_experts=6).spec["layer"][0]["encoding"]
        for share in (1.0, 0.5)
    ]
    tops = [each["color"]["scale"]["domain"][1] for each in ends]
    assert tops == [wide.clean.max(), wide.clean.max() / 2]
