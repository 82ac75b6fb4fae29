"""Questions about cells against plain hooked forwards: other sites, windows, coalitions, knockouts, controls."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from fake_results import FRANCE
from test_interventions import CLEAN, CORRUPT, SUBJECT, Bench, reroute
from test_minimal import DRAWS, LIMIT, ByHand, question

from cache import Store
from core import views
from core.cells import asking, tables, words
from core.cells.coalition import coalition
from core.cells.controls import controls
from core.cells.knockouts import knockouts
from core.cells.measure import Case
from core.cells.site_map import site_layers, site_map
from core.derived import DerivedResult, derive
from core.errors import InputError
from core.minimal import Candidate
from core.models import load_model
from core.requests import TraceRequest
from core.results import expert_name
from core.sites import ATTENTION, LAYER, MOE, RESIDUAL, window_around
from core.trace import trace

PARTS = {MOE: ["moe"], ATTENTION: ["attention"], LAYER: ["attention", "moe"], RESIDUAL: ["residual"]}


@pytest.fixture(scope="module", params=["granitemoe", "deepseek_v3", "qwen3_next"])
def asked(request: pytest.FixtureRequest) -> tuple[Bench, Case, ByHand]:
    bench = Bench(request.param)
    trace_request, fact, by_hand = question(bench)
    return bench, Case.of(bench.model, trace_request, fact), by_hand


@pytest.mark.parametrize(("site", "window"), [(MOE, 3), (ATTENTION, 1), (LAYER, 2), (RESIDUAL, 1)])
def test_a_map_at_any_site_and_window_is_that_of_hooks(asked, site: str, window: int) -> None:
    bench, case, by_hand = asked
    found = site_map(bench.model, case, site, window)
    layers, n = site_layers(bench.model, site), bench.model.n_layers
    assert layers == [la for la in range(n) if site in (ATTENTION, RESIDUAL) or la in bench.moe]
    rows = found.rows.set_index(["layer", "pos", "draw"])
    assert sorted(rows.index) == list(itertools.product(layers, range(bench.n), range(DRAWS)))
    largest = 0.0
    for layer, pos in itertools.product(layers, (0, SUBJECT[-1], 5, bench.n - 1)):
        here = [la for la in window_around(layer, window, n) if la in layers]
        changes = [
            bench.write(name, la, pos, bench.seen[CLEAN][name, la][pos]) for la in here for name in PARTS[site]
        ]
        for draw in range(DRAWS):
            wanted = by_hand.at(draw, CORRUPT, *changes)
            row = rows.loc[layer, pos, draw]
            assert row.contrast == pytest.approx(wanted, abs=LIMIT)
            assert row.rescue == pytest.approx(wanted - by_hand.corrupt[draw], abs=LIMIT)
            assert row.restoration == pytest.approx(row.rescue / (by_hand.clean - by_hand.corrupt[draw]), abs=1e-3)
            largest = max(largest, abs(row.rescue))
    assert largest > 0.01  # the patches matter
    left = rows[rows.index.get_level_values("pos") < SUBJECT[0]]
    assert (left.rescue == 0).all()


def test_windows_are_romes() -> None:
    for layer, width, n in itertools.product(range(12), range(1, 15), (1, 7, 12)):
        if layer < n:
            theirs = range(max(0, layer - width // 2), min(n, layer - (-width // 2)))
            assert window_around(layer, width, n) == theirs and layer in theirs


def test_what_no_model_has_is_said() -> None:
    bench = Bench("granitemoe")
    request, fact, _ = question(bench)
    case = Case.of(bench.model, request, fact)
    with pytest.raises(InputError, match="no site 'head'"):
        site_map(bench.model, case, "head", 1)
    with pytest.raises(InputError, match="window is 0"):
        site_map(bench.model, case, MOE, 0)


REQUESTS = [
    TraceRequest(FRANCE, noise=2.5, draws=3, seed=7, special_tokens="off", object_tokens="paper", first_token=True),
    TraceRequest(FRANCE, corruption="replace", draws=2, seed=4),
    TraceRequest(FRANCE, corruption="replace", replacement=("Spain", "Peru")),
]


@pytest.mark.parametrize("request_", REQUESTS)
def test_a_question_carries_the_traces_settings(request_: TraceRequest) -> None:
    derived = asking.ask("site_map", request_, site=ATTENTION, window=2)
    assert asking.question(derived) == request_.replace(experts="none")
    assert {name: derived.get()[name] for name in ("site", "window")} == {"site": ATTENTION, "window": 2}


def test_what_cannot_change_a_number_makes_no_other_question() -> None:
    for request, changes in zip(REQUESTS[1:], ({"noise": 1.0}, {"noise": 1.0, "seed": 3}), strict=True):
        same = request.replace(experts="all", **changes)
        assert asking.ask("site_map", same, site=MOE, window=1) == asking.ask("site_map", request, site=MOE, window=1)


@pytest.fixture(scope="module")
def demo():
    return load_model("demo")


def test_layer_patches_of_one_layer_are_the_traces_own(demo) -> None:
    result = trace(demo, FRANCE, draws=2, seed=3)
    answer = derive(demo, asking.ask("site_map", result.request, site=MOE, window=1))
    assert answer.values["layers"] == demo.moe_layers
    ours = views.layer_cells(tables.at_site(result, answer))
    pd.testing.assert_frame_equal(ours, views.layer_cells(result), check_exact=False, atol=LIMIT, rtol=0)
    assert np.isfinite(ours.rescue_sd).all() and ours.rescue_sd.max() > 0.01


# ---- one cell --------------------------------------------------------------------------------------------------------


def sum_of(bench: Bench, by_hand: ByHand, draw: int, place: tuple[int, int], experts) -> tuple:  # noqa: ANN001
    """The hook that adds the updates of several experts."""
    delta = sum(by_hand.update(draw, Candidate(*place, expert)) for expert in experts)
    return bench.write("moe", *place, delta, add=True)


def routed(bench: Bench, by_hand: ByHand, draw: int, run: int, place: tuple[int, int]) -> list[int]:
    bench.noise = by_hand.noises[draw]
    return bench.routed(run, *place)


def same(row: pd.Series, by_hand: ByHand, draw: int, wanted: float) -> None:
    assert row.contrast == pytest.approx(wanted, abs=LIMIT)
    assert row.rescue == pytest.approx(wanted - by_hand.corrupt[draw], abs=LIMIT)


@pytest.mark.parametrize("where", ["last", "last_subject"])
def test_a_coalition_is_the_sum_of_its_updates(asked, where: str) -> None:
    bench, case, by_hand = asked
    place = {"last": (bench.moe[-1], bench.n - 1), "last_subject": (bench.moe[0], SUBJECT[-1])}[where]
    clean = routed(bench, by_hand, 0, CLEAN, place)
    absent = next(e for e in range(bench.model.n_experts) if all(
        e not in routed(bench, by_hand, draw, run, place) for draw in range(DRAWS) for run in (CLEAN, CORRUPT)
    ))  # fmt: skip
    chosen = [*clean[:2], absent]
    rows = coalition(bench.model, case, *place, chosen).rows
    assert rows.rescue.abs().max() > 0.005
    for draw, mine in rows.groupby("draw"):
        union = {*clean, *routed(bench, by_hand, draw, CORRUPT, place)}
        wanted = {"coalition": clean[:2], "clean_top_k": clean, "routing_union": union}
        for kind, experts in wanted.items():
            (row,) = mine[mine.kind == kind].itertuples()
            same(row, by_hand, draw, by_hand.at(draw, CORRUPT, sum_of(bench, by_hand, draw, place, experts)))
        for row in mine[mine.kind == "expert"].itertuples():
            same(row, by_hand, draw, by_hand.at(draw, CORRUPT, sum_of(bench, by_hand, draw, place, [row.expert])))
        (layer,) = mine[mine.kind == "layer"].itertuples()
        value = bench.seen[CLEAN]["moe", place[0]][place[1]]
        same(layer, by_hand, draw, by_hand.at(draw, CORRUPT, bench.write("moe", *place, value)))
        (single,) = mine[mine.expert == absent].itertuples()
        assert single.rescue == pytest.approx(0, abs=LIMIT)


def test_with_the_shared_expert_a_coalition_can_be_the_whole_layer() -> None:
    bench = Bench("granitemoeshared")
    request, fact, by_hand = question(bench)
    place = (bench.moe[0], bench.n - 1)
    union = {e for draw in range(DRAWS) for run in (CLEAN, CORRUPT) for e in routed(bench, by_hand, draw, run, place)}
    case = Case.of(bench.model, request, fact)
    rows = coalition(bench.model, case, *place, [*sorted(union), "shared"]).rows
    wide = rows.pivot_table(index="draw", columns="name", values="rescue")
    assert wide["coalition"].to_numpy() == pytest.approx(wide["layer"].to_numpy(), abs=LIMIT)
    assert (wide["routing_union"] - wide["layer"]).abs().max() > 10 * LIMIT  # the shared expert's part
    with pytest.raises(InputError, match="no expert 99"):
        coalition(bench.model, case, *place, [99])
    with pytest.raises(InputError, match="no expert shared"):
        plain = Bench("granitemoe")
        request, fact, _ = question(plain)
        coalition(plain.model, Case.of(plain.model, request, fact), plain.moe[0], 4, ["shared"])


@pytest.mark.parametrize(("family", "renormalise"), [("mixtral", True), ("olmoe", False)])
def test_knockouts_of_a_cell_are_those_of_hooks(family: str, renormalise: bool) -> None:
    bench = Bench(family)
    request, fact, by_hand = question(bench)
    layer, pos = bench.moe[1], 5
    table, clean = knockouts(bench.model, Case.of(bench.model, request, fact), layer, pos)
    assert clean == pytest.approx(by_hand.clean, abs=LIMIT)
    active = sorted(bench.routed(CLEAN, layer, pos))
    assert sorted(table.expert.dropna().unique()) == active and table.cost.abs().max() > 0.005
    assert len(table) == (len(active) + 1) * 4
    for row in table.itertuples():
        experts = active if pd.isna(row.expert) else [row.expert]
        positions = [pos] if row.positions == "this position" else list(range(bench.n))
        if row.mode == "reroute":
            if len(experts) > 1:
                continue
            change = reroute(bench, layer, experts[0], positions, renormalise=renormalise)
        else:
            change = bench.weights(layer, zeroed(experts, positions, bench.n))
        wanted = by_hand.at(0, CLEAN, change)
        assert row.contrast == pytest.approx(wanted, abs=LIMIT)
        assert row.cost == pytest.approx(by_hand.clean - wanted, abs=LIMIT)
        assert row.share == pytest.approx(row.cost / by_hand.clean, abs=1e-3)


def zeroed(experts: list[int], positions: list[int], n: int):  # noqa: ANN201 - index, weight -> weight
    here = torch.zeros(n, 1, dtype=torch.bool)
    here[positions] = True
    return lambda index, weight: weight.masked_fill(torch.isin(index, torch.tensor(experts)) & here, 0)


def test_a_router_that_cannot_be_driven_has_zero_knockouts_only() -> None:
    bench = Bench("deepseek_v3")
    request, fact, _ = question(bench)
    table, _ = knockouts(bench.model, Case.of(bench.model, request, fact), bench.moe[0], 4)
    assert set(table["mode"]) == {"zero"}


def test_controls_are_the_papers_and_measured_like_the_expert(asked) -> None:
    bench, case, by_hand = asked
    place = (bench.moe[-1], bench.n - 1)
    clean = sorted(routed(bench, by_hand, 0, CLEAN, place))
    expert = clean[0]
    found, weights = controls(bench.model, case, *place, expert)
    assert sorted(weights) == clean
    matched = min(clean[1:], key=lambda e: (abs(weights[e] - weights[expert]), e))
    assert found.rows.rescue.abs().max() > 0.005
    for row in found.rows.itertuples():
        delta = by_hand.update(row.draw, Candidate(*place, row.expert))
        if row.kind == "equal_norm":
            assert row.expert in (expert, matched)
            other = by_hand.update(row.draw, Candidate(*place, matched if row.expert == expert else expert))
            delta = delta * min(1.0, (other.norm() / delta.norm()).item())
        same(row, by_hand, row.draw, by_hand.at(row.draw, CORRUPT, bench.write("moe", *place, delta, add=True)))
    assert len(found.rows) == DRAWS * (len(clean) + 2)


def made_up(rescues: dict[tuple[str, int], list[float]], **values) -> DerivedResult:  # noqa: ANN003
    rows = [
        {"kind": kind, "expert": e, "name": expert_name(3, e), "draw": draw, "rescue": value}
        for (kind, e), many in rescues.items()
        for draw, value in enumerate(many)
    ]
    request = asking.ask("cell_controls", TraceRequest(FRANCE))
    return DerivedResult(request, {"patches": pd.DataFrame(rows)}, {"drop": 4.0} | values, {})


CONTROLS = {
    ("expert", 1): [1.0, 3.0], ("expert", 4): [0.5, 0.7], ("expert", 6): [3.0, 3.0], ("expert", 7): [-1.0, 1.0],
    ("equal_norm", 1): [0.4, 0.6], ("equal_norm", 6): [3.0, 3.0],
}  # fmt: skip


def test_specificity_is_the_selected_minus_the_mean_of_its_random_controls() -> None:
    weights = {"1": 0.4, "4": 0.1, "6": 0.3, "7": 0.2}
    answer = made_up(CONTROLS, expert=1, matched=6, random=[4, 7], weights=weights)
    found = tables.specificity(answer)
    assert (found.selected, found.controls, found.matched) == pytest.approx((2.0, 0.3, 3.0))
    assert found.specificity == pytest.approx(1.7)
    assert found.specificity_sd == pytest.approx(np.std([1.0 - (-0.25), 3.0 - 0.85], ddof=1))
    assert (found.equal_selected, found.equal_matched, found.rank, found.of) == pytest.approx((0.5, 3.0, 2, 4))
    rows = tables.control_rows(answer)
    assert list(rows.role) == ["selected", "gate-matched", "active-random", "active-random", "selected", "gate-matched"]
    assert list(rows.restoration) == pytest.approx([0.5, 0.75, 0.15, 0.0, 0.125, 0.75])
    said = " ".join(words.controls(found, "L3E001"))
    for part in ("rank 2 of 4", "**+1.700** (sd 0.636 over draws)", "+0.500 against +3.000"):
        assert part in said


def test_an_expert_that_is_not_clean_active_counts_as_zero_and_its_controls_are_drawn_all_the_same() -> None:
    rescues = {key: values for key, values in CONTROLS.items() if key[0] == "expert"}
    weights = {"4": 0.1, "6": 0.3, "7": 0.2}
    found = tables.specificity(made_up(rescues, expert=1, matched=None, random=[6, 7], weights=weights))
    assert (found.active, found.selected, found.specificity, found.rank) == (False, 0.0, pytest.approx(-1.5), 0)
    assert np.isnan(found.matched) and "counts 0" in words.controls(found, "L3E001")[0]
    alone = made_up({("expert", 1): [1.0, 3.0]}, expert=1, matched=None, random=[], weights={"1": 1.0})
    assert "no other clean-active expert" in words.controls(tables.specificity(alone), "L3E001")[0]


def test_the_kinds_are_answered_stored_and_found_again(demo, home) -> None:
    request = TraceRequest(FRANCE, draws=2, seed=3)
    at = trace(demo, request)
    last, layer = len(at.provenance.tokens) - 1, 5
    cell = {"layer": layer, "pos": last}
    active = views.active_experts(at, layer, last)
    experts = [int(e) for e in active.expert]
    with Store.open() as store:
        asked_ = {
            "coalition": asking.ask("coalition", request, **cell, experts=experts[:2]),
            "minimal": asking.ask("minimal_set", request, **cell, target=0.8),
            "knockouts": asking.ask_clean("cell_knockouts", request, **cell),
            "controls": asking.ask("cell_controls", request, **cell, expert=experts[0]),
        }
        found = {name: derive(demo, one, store=store) for name, one in asked_.items()}
        again = {name: derive(demo, one, store=store) for name, one in asked_.items()}
    assert all(result.cached for result in again.values())
    for name, result in found.items():
        for table, value in result.tables.items():
            pd.testing.assert_frame_equal(again[name].tables[table], value, check_dtype=False)
    rows = tables.coalition_rows(again["coalition"])
    singles = rows[rows.role == tables.SINGLE].set_index("name")
    expected = active.set_index("name")
    for name in singles.index:
        for column in ("rescue", "rescue_sd", "rescue_min", "rescue_max", "restoration"):
            assert singles[column][name] == pytest.approx(expected[column][name], abs=LIMIT)
    assert tables.rescue_of(rows, tables.SUM) == pytest.approx(singles.rescue.sum(), abs=1e-9)
    whole = views.layer_cells(at).set_index(["layer", "pos"]).rescue[layer, last]
    assert tables.rescue_of(rows, tables.LAYER) == pytest.approx(whole, abs=LIMIT)
    assert tables.UNION not in set(rows.role)  # the demo has no shared expert
    needed = tables.necessity(at, again["knockouts"])
    alone = needed[needed.expert.notna()]
    assert list(alone.rescue) == sorted(alone.rescue, reverse=True) and needed.rescue.isna().sum() == 1
    assert list(alone.direct) == pytest.approx(list(expected.direct[alone.name]))
    assert not needed[["zero", "zero_all", "reroute", "reroute_all"]].isna().any().any()
    curve = again["minimal"].tables["curve"]
    assert set(zip(curve.layer, curve.pos, strict=True)) == {(layer, last)}
    assert again["minimal"].values["scope"].startswith("layer 5, position")
    spread = tables.draws_of(at, layer, last)
    means = spread.groupby("name").rescue.mean()
    assert means["layer patch"] == pytest.approx(whole) and len(spread) == 2 * (len(active) + 1)
    for name in expected.index:
        assert means[name] == pytest.approx(expected.rescue[name])


def test_a_cell_without_any_of_the_experts_is_said_in_words() -> None:
    layer = pd.DataFrame({"name": ["layer"], "role": [tables.LAYER], "rescue": [2.0], "restoration": [0.5]})
    assert words.coalition(layer) == "No expert is put back. The layer patch rescues +2.000 logits."
    columns = ["name", "expert", "rescue", "zero"]
    assert words.necessity(pd.DataFrame(columns=columns), clean_contrast=3.0, reroutable=True) == [
        "No expert is clean-active here, so there is none to knock out."
    ]
    unknown = pd.DataFrame([["L0E001", 1, np.nan, 0.25], ["L0E002", 2, np.nan, 0.75]], columns=columns)
    (said,) = words.necessity(unknown, clean_contrast=3.0, reroutable=True)
    assert said == "Most needed: **L0E002**, without it the clean contrast of +3.000 loses 0.750 logits."


def test_a_set_of_every_candidate_is_not_compared_with_itself() -> None:
    curve = pd.DataFrame(
        {"restoration": [0.1], "random_sets": [20], "random_restoration": [0.1], "random_min": [0.1],
         "random_max": [0.1]}
    )  # fmt: skip
    said = {n: words.minimal(curve, scope="layer 1", target=0.8, reached=False, candidates=n) for n in (1, 2)}
    assert said[1].endswith("That is every clean-active expert there, so no random set of as many is another one.")
    assert said[2].endswith("20 random sets of 1: 0.100 on average, 0.100 to 0.100.")
    assert all(text.startswith("1 expert of layer 1 restores 0.100 of the drop; the target") for text in said.values())


def test_words_say_whether_the_parts_add_up() -> None:
    def rows(single: float, together: float) -> pd.DataFrame:
        said = {tables.SINGLE: single, tables.SUM: 2 * single, tables.TOGETHER: together, tables.LAYER: 2.0}
        out = pd.DataFrame({"name": list(said), "role": list(said), "rescue": list(said.values())})
        return pd.concat([out.iloc[:1], out], ignore_index=True).assign(restoration=together / 4)

    assert "so they add up" in words.coalition(rows(0.5, 1.05))
    assert "do 0.500 more than that" in words.coalition(rows(0.5, 1.5))
    assert "do 0.500 less than that" in words.coalition(rows(0.5, 0.5))
    assert "so they add up" in words.coalition(rows(0.5, 0.5), floor=0.6)
    assert "**2 experts together**: rescue **+1.500** logits, restoration 0.375, 75.0 % of the layer patch" in (
        words.coalition(rows(0.5, 1.5))
    )
