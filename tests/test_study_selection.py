"""Split, selection, controls, coalitions and robustness against slow re-implementations over plain lists of dicts."""

from __future__ import annotations

import random
from statistics import fmean

import numpy as np
import pandas as pd
import pytest
import study_worlds as worlds
from hypothesis import given
from hypothesis import strategies as st

from core.study import coalitions, controls, joint, robustness, selection, split, values
from core.study import rows as table
from core.study.options import Options

OPTIONS = Options(resamples=200, flips=200)


@pytest.fixture(scope="module")
def messy() -> pd.DataFrame:
    """Random rescues and routing, two draws, repeated subjects."""
    rng = random.Random(5)
    effect = {(f, e): rng.gauss(0.05 * e, 0.5) for f in range(31) for e in range(9)}
    world = worlds.World(
        lambda f, la: worlds.routed(f, la, n_experts=9, always=[2] if f % 3 else []),
        lambda f, la, members: sum(effect[f, e] for e in members) * (0.5 + la),
        n=31, draws=2, relations=7, settings={"recurrence": 0.3},
    )  # fmt: skip
    world.subject = lambda fact: f"s{fact % 19}"
    return worlds.study(world)


def records(rows: pd.DataFrame, **where) -> list[dict]:
    """Rows as dicts, filtered one by one."""
    if id(rows) not in _RECORDS:
        _RECORDS[id(rows)] = (rows, rows.to_dict("records"))
    return [r for r in _RECORDS[id(rows)][1] if all(r[k] == v for k, v in where.items())]


_RECORDS: dict[int, tuple[pd.DataFrame, list[dict]]] = {}


def mean_rescue(found: list[dict]) -> dict[int, float]:
    """Fact → mean rescue of its rows."""
    by_fact: dict[int, list[float]] = {}
    for r in found:
        by_fact.setdefault(r["scan_index"], []).append(r["rescue"])
    return {fact: fmean(rescues) for fact, rescues in by_fact.items()}


def halves(rows: pd.DataFrame) -> tuple[list[int], list[int]]:
    of = {r["scan_index"]: r["split"] for r in records(rows)}
    return sorted(f for f in of if of[f] == "discovery"), sorted(f for f in of if of[f] == "validation")


def slow_table(rows: pd.DataFrame, layer: int) -> dict[int, dict[int, float]]:
    """Fact → active expert → mean rescue over draws."""
    found = records(rows, kind="expert", stage="main", layer=layer)
    out: dict[int, dict[int, float]] = {}
    for expert in sorted({r["expert"] for r in found}):
        for fact, rescue in mean_rescue([r for r in found if r["expert"] == expert]).items():
            out.setdefault(fact, {})[expert] = rescue
    return out


def slow_choice(active: dict[int, dict[int, float]], facts: list[int], recurrence: float) -> int | None:
    best = None
    for expert in range(100):
        count = sum(expert in active[f] for f in facts)
        mean = fmean(active[f].get(expert, 0.0) for f in facts)
        if count >= recurrence * len(facts) and count and (best is None or mean > best[0] + 1e-12):
            best = (mean, expert)
    return best and best[1]


def slow_specificity(rows: pd.DataFrame, active: dict[int, dict[int, float]], expert: int, fact: int, n: int) -> float:
    case_id = 100 + 7 * fact
    others = sorted(e for e in active[fact] if e != expert)
    drawn = random.Random(1000 + case_id).sample(others, min(n, len(others)))
    return active[fact].get(expert, 0.0) - fmean(active[fact][e] for e in drawn)


def test_the_plain_split_is_the_shuffled_lists_first_half():
    order = list(range(11))
    random.Random(3).shuffle(order)
    found = split.halves([f"s{i}" for i in range(11)], split_seed=3, by_subject=False)
    assert {i for i, half in enumerate(found) if half == "discovery"} == set(order[:5])


@given(st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=40), st.integers(0, 5))
def test_a_subject_is_never_in_both_halves(subjects, seed):
    found = split.halves(subjects, split_seed=seed, by_subject=True)
    for subject in set(subjects):
        assert len({half for s, half in zip(subjects, found, strict=True) if s == subject}) == 1
    assert found.count("discovery") <= len(subjects) // 2
    sizes = [subjects.count(s) for s in set(subjects)]
    assert found.count("discovery") >= len(subjects) // 2 - max(sizes) + 1
    unique = [f"{s} {i}" for i, s in enumerate(subjects)]
    assert split.halves(unique, split_seed=seed, by_subject=True) == split.halves(
        subjects, split_seed=seed, by_subject=False
    )


def test_subjects_that_differ_in_case_or_spacing_are_one():
    found = split.halves(["New York", "x", "new  york ", "y"], split_seed=1, by_subject=True)
    assert found[0] == found[2]


def test_folds_deal_the_shuffled_relations_round_robin():
    names = ["P5", "P1", "P3", "P2", "P4", "P6", "P7"]
    order = sorted(names)
    random.Random(0).shuffle(order)
    folds = split.relation_folds([*names, "P1"], folds=5)
    assert folds == [[order[0], order[5]], [order[1], order[6]], [order[2]], [order[3]], [order[4]]]
    assert split.relation_folds([None, "P1"], folds=5) in ([[""], ["P1"]], [["P1"], [""]])


def test_layer_and_expert_are_those_of_the_loops(messy):
    discovery, _ = halves(messy)
    means = {}
    for layer in range(3):
        by_fact = mean_rescue(records(messy, kind="layer", stage="main", layer=layer))
        means[layer] = fmean(by_fact[f] for f in discovery)
    assert selection.best_layer(messy) == max(means, key=means.get)
    for layer in range(3):
        active = slow_table(messy, layer)
        for recurrence in (0.0, 0.25, 0.4, 0.5, 0.7, 1.0):
            choice = selection.choose_expert(messy, layer=layer, recurrence=recurrence)
            assert choice.expert == slow_choice(active, discovery, recurrence)
            assert choice.n == len(discovery) == 15
        for row in choice.experts.itertuples():
            mine = [active[f][row.expert] for f in discovery if row.expert in active[f]]
            assert row.n_active == len(mine)
            assert row.recurrence == pytest.approx(len(mine) / 15)
            assert row.mean_active == pytest.approx(fmean(mine))
            assert row.mean_all == pytest.approx(sum(mine) / 15)


def test_half_of_the_facts_is_enough_and_one_less_is_not():
    rows = small([[(0, 0.5, 1.0), (1, 0.5, 0.2)], [(0, 0.5, 1.0), (2, 0.5, 0.1)], [(1, 1.0, 0.3)], [(1, 1.0, 0.3)]])
    assert selection.choose_expert(rows, layer=0, recurrence=0.5).expert == 0
    assert selection.choose_expert(rows, layer=0, recurrence=0.75).expert == 1
    assert selection.choose_expert(rows, layer=0, recurrence=0.76).expert is None
    assert selection.choose_expert(rows, layer=0, recurrence=0.76).needed == 4


def small(facts: list[list[tuple[int, float, float]]], **fields) -> pd.DataFrame:
    """Discovery facts at layer 0, each a list of (expert, weight, rescue)."""
    return table.table(
        {
            "scan_index": i, "case_id": i, "relation": "P", "subject": f"s{i}", "split": "discovery", "draw": 0,
            "noise": 3.0, "stage": "main", "kind": "expert", "layer": 0, "pos": 1, "expert": expert,
            "clean_active": True, "router_weight_clean": weight, "clean_contrast": 3.0, "corrupt_contrast": 1.0,
            "rescue": rescue, **fields,
        }
        for i, active in enumerate(facts)
        for expert, weight, rescue in active
    )  # fmt: skip


def test_inactive_is_zero_unmeasured_is_missing_and_equals_go_to_the_lowest():
    rows = small([[(4, 1.0, 1.0)], [(2, 1.0, 1.0)], [(4, 1.0, np.nan)]])
    unmeasured = small([[(9, 1.0, 0.0)]] * 4).assign(layer=1)
    experts = values.expert_table(pd.concat([rows, unmeasured]), layer=0)
    assert experts.rescue.loc[0].tolist() == [0.0, 1.0]
    assert experts.rescue.loc[1].tolist() == [1.0, 0.0]
    assert experts.rescue.loc[2, 2] == 0.0
    assert np.isnan(experts.rescue.loc[2, 4])
    assert experts.rescue.loc[3].isna().all()
    assert list(experts.measured) == [0, 1, 2]
    tie = small([[(7, 1.0, 1.0), (3, 1.0, 1.0)], [(7, 1.0, 2.0), (3, 1.0, 2.0)]])
    assert selection.choose_expert(tie, layer=0, recurrence=1.0).expert == 3


def test_rank_among_the_active():
    rows = small([[(1, 0.5, 1.0), (2, 0.3, 2.0), (3, 0.2, 1.0)], [(2, 0.5, -1.0), (1, 0.5, 0.0)], [(2, 1.0, 5.0)]])
    ranks = selection.ranks(values.expert_table(rows, layer=0), pd.Index([0, 1, 2]), 1)
    assert ranks.to_dict() == {0: 2.0, 1: 1.0}
    assert selection.ranks(values.expert_table(rows, layer=0), pd.Index([0, 1, 2]), 8).empty


@pytest.mark.parametrize(("top_k", "wanted", "n"), [(8, 3, 3), (4, 3, 3), (3, 3, 2), (2, 3, 1), (1, 3, 0), (8, 1, 1)])
def test_as_many_controls_as_the_protocol_draws(top_k, wanted, n):
    assert controls.n_controls(top_k, wanted=wanted) == n


def test_controls_are_the_protocols_draw():
    drawn = controls.random_controls(17, [9, 2, 5, 7, 1], 5, 3)
    assert drawn == random.Random(1017).sample([1, 2, 7, 9], 3)
    assert controls.random_controls(17, [2, 9], 5, 1) == random.Random(1017).sample([2, 9], 1)
    assert controls.random_controls(17, [5], 5, 3) == []


def test_the_gate_matched_control_has_the_nearest_weight():
    assert controls.gate_matched({3: 0.5, 1: 0.3, 8: 0.65}, 3) == 8
    assert controls.gate_matched({3: 0.5, 1: 0.25, 8: 0.75}, 3) == 1
    assert controls.gate_matched({3: 0.5}, 3) is None
    assert controls.gate_matched({3: 0.5}, 4) is None


def test_control_rows_repeat_the_drawn_experts(messy):
    _, validation = halves(messy)
    layer = selection.best_layer(messy)
    expert = selection.choose_expert(messy, layer=layer, recurrence=0.3).expert
    made = controls.control_rows(messy, layer=layer, expert=expert)
    own = messy[messy.kind.isin(["control_random", "control_gate_matched"]) & (messy.stage == "main")]
    pd.testing.assert_frame_equal(made, own.reset_index(drop=True))
    active = slow_table(messy, layer)
    for fact in validation:
        mine = records(made, scan_index=fact, kind="control_random")
        others = sorted(e for e in active[fact] if e != expert)
        wanted = random.Random(1000 + 100 + 7 * fact).sample(others, 3)
        assert sorted(r["expert"] for r in mine) == sorted(wanted * 2), "one row per draw"
        for r in mine:
            same = {k: r[k] for k in ("scan_index", "stage", "layer", "expert", "draw")}
            (original,) = records(messy, kind="expert", **same)
            assert {k: v for k, v in r.items() if k != "kind"} == {k: v for k, v in original.items() if k != "kind"}
        assert bool(records(made, scan_index=fact, kind="control_gate_matched")) == (expert in active[fact])
    assert not records(made, split="discovery")
    assert controls.control_rows(messy, layer=layer, expert=None).empty


def test_the_grid_is_that_of_the_loops(messy):
    layer = 2
    active = slow_table(messy, layer)
    subjects = [f"s{f % 19}" for f in range(31)]
    for by_subject in (False, True):
        options = Options(by_subject=by_subject)
        grid = robustness.stability_grid(messy, options, layer=layer, expert=2)
        assert len(grid) == 25
        for row in grid.itertuples():
            half = split.halves(subjects, split_seed=row.split_seed, by_subject=by_subject)
            discovery = [f for f in range(31) if half[f] == "discovery"]
            validation = [f for f in range(31) if half[f] == "validation"]
            expert = slow_choice(active, discovery, row.recurrence)
            assert row.same == (expert == 2)
            if expert is None:
                assert row.expert is pd.NA
                assert np.isnan(row.expert_rescue)
                continue
            assert row.expert == expert
            assert row.n_active == sum(expert in active[f] for f in discovery)
            assert row.expert_rescue == pytest.approx(fmean(active[f].get(expert, 0.0) for f in validation))
            expected = fmean(slow_specificity(messy, active, expert, f, 3) for f in validation)
            assert row.specificity == pytest.approx(expected)


def test_the_grids_own_split_and_threshold_is_the_main_selection(messy):
    grid = robustness.stability_grid(messy, Options(), layer=2, expert=2).set_index(["split_seed", "recurrence"])
    choice = selection.choose_expert(messy, layer=2, recurrence=0.375)
    assert grid.expert[0, 0.375] == choice.expert
    assert grid.needed[0, 0.375] == choice.needed


def test_held_out_relations_select_on_four_folds_and_evaluate_on_the_fifth(messy):
    layer, active = 1, slow_table(messy, 1)
    table_ = robustness.held_out_relations(messy, Options(recurrence=0.3), layer=layer, expert=2)
    names = sorted({f"P{i}" for i in range(7)})
    random.Random(0).shuffle(names)
    assert len(table_) == 5
    for fold, row in enumerate(table_.itertuples()):
        held = [f for f in range(31) if f"P{f % 7}" in names[fold::5]]
        rest = [f for f in range(31) if f not in held]
        expert = slow_choice(active, rest, 0.3)
        assert (row.held_out, row.n, row.expert) == (len(held), len(rest), expert)
        assert row.relations == ", ".join(sorted(names[fold::5]))
        assert row.expert_rescue == pytest.approx(fmean(active[f].get(expert, 0.0) for f in held))


def test_per_relation_means_are_those_of_the_loops(messy):
    _, validation = halves(messy)
    layer, expert = 2, 2
    active = slow_table(messy, layer)
    messy = pd.concat(
        [
            messy[~messy.kind.str.startswith("control_")],
            controls.control_rows(messy, layer=layer, expert=expert),
        ]
    )
    whole = mean_rescue(records(messy, kind="layer", stage="main", layer=layer))
    found = robustness.per_relation(messy, OPTIONS, layer=layer, expert=expert)
    assert found.n.sum() == len(validation)
    assert list(found.n) == sorted(found.n, reverse=True)
    for row in found.itertuples():
        mine = [f for f in validation if f"P{f % 7}" == row.relation]
        assert row.n == row.layer_rescue_n == len(mine)
        assert row.n_active == sum(expert in active[f] for f in mine)
        assert row.layer_rescue == pytest.approx(fmean(whole[f] for f in mine))
        assert row.expert_rescue == pytest.approx(fmean(active[f].get(expert, 0.0) for f in mine))
        assert row.specificity == pytest.approx(fmean(slow_specificity(messy, active, expert, f, 3) for f in mine))


def test_noise_levels_and_the_fresh_draw_are_means_of_their_own_stages(messy):
    layer = selection.best_layer(messy)
    expert = selection.choose_expert(messy, layer=layer, recurrence=0.3).expert
    _, validation = halves(messy)
    noise = robustness.noise_sensitivity(messy, OPTIONS, layer=layer, expert=expert)
    assert sorted(set(noise.noise)) == [1.0, 2.0, 3.0, 4.0]
    for row in noise.itertuples():
        stage = "main" if row.noise == 3.0 else f"noise_{row.noise:g}"
        mine = records(messy, kind="layer", stage=stage, layer=layer, split="validation")
        if row.quantity == "drop":
            by_fact: dict[int, list[float]] = {}
            for r in mine:
                by_fact.setdefault(r["scan_index"], []).append(r["clean_contrast"] - r["corrupt_contrast"])
            expected = fmean(map(fmean, by_fact.values()))
        elif row.quantity == "layer_rescue":
            expected = fmean(mean_rescue(mine).values())
        else:
            found = mean_rescue(records(messy, kind="expert", stage=stage, layer=layer, expert=expert))
            expected = fmean(found.get(f, 0.0) for f in validation)
        assert row.mean == pytest.approx(expected)
        assert (row.n, row.n_missing) == (len(validation), 0)
    fresh = robustness.fresh_draw(messy, OPTIONS, layer=layer, expert=expert)
    drawn = mean_rescue(records(messy, kind="expert", stage="fresh_draw", layer=layer, expert=expert))
    mine = fresh[(fresh.draw == "fresh") & (fresh.quantity == "expert_rescue")].iloc[0]
    assert mine["mean"] == pytest.approx(fmean(drawn.get(f, 0.0) for f in validation))
    assert set(fresh.draw) == {"same", "fresh"}
    assert fresh["mean"].notna().all()


def test_the_joint_search_looks_at_every_pair_and_states_the_shrinkage(messy):
    discovery, validation = halves(messy)
    found = joint.search(messy, Options(recurrence=0.3, resamples=200, flips=200))
    pairs, best = {}, None
    for layer in range(3):
        active = slow_table(messy, layer)
        for expert in range(9):
            count = sum(expert in active[f] for f in discovery)
            if count:
                pairs[layer, expert] = fmean(active[f].get(expert, 0.0) for f in discovery)
                if count >= 0.3 * 15 and (best is None or pairs[layer, expert] > pairs[best]):
                    best = (layer, expert)
    assert found.n_pairs == len(pairs)
    assert found.winner == best
    active = slow_table(messy, best[0])
    means = [fmean(active[f].get(best[1], 0.0) for f in half) for half in (discovery, validation)]
    assert [found.discovery.mean, found.validation.mean] == pytest.approx(means)
    assert found.shrinkage == pytest.approx(means[0] - means[1])
    expected = fmean(slow_specificity(messy, active, best[1], f, 3) for f in validation)
    assert found.specificity.mean == pytest.approx(expected)
    assert {(p.layer, p.expert): p.mean_all for p in found.pairs.itertuples()} == pytest.approx(pairs)
    assert joint.search(messy, Options(recurrence=1.01)).winner is None


def test_coalitions_grow_along_each_rule_until_they_reach_the_share():
    # all weight orders are 1, 2, 3; expert 3 has the highest mean alone, 1 and 3 together do it all
    facts = [[(1, 0.5, 0.2), (2, 0.3, 0.0), (3, 0.2, 0.6)]] * 2
    rows = small(facts)
    whole = small([[(0, 1.0, 1.0)]] * 2, kind="layer", expert=None, clean_active=None, router_weight_clean=None)
    rows = pd.concat([rows, whole], ignore_index=True)
    plan = coalitions.search_plan(rows, layer=0)
    assert list(plan.experts[plan.scan_index == 0]) == ["1", "1,2", "1,2,3", "1,3", "3"]
    rescue = {"1": 0.2, "3": 0.6, "1,2": 0.3, "1,3": 0.85, "1,2,3": 1.0}

    def searched(rescue):
        tries = small([[(0, 1.0, 0.0)]] * 2, kind="coalition_minimal", stage="coalition_search", expert=None)
        parts = [
            tries.assign(experts=e, rescue=r, clean_active=pd.NA, router_weight_clean=np.nan) for e, r in rescue.items()
        ]
        return pd.concat([rows, *parts], ignore_index=True)

    chosen = coalitions.choose(searched(rescue), layer=0)
    assert (chosen.rule, chosen.size, chosen.reached) == ("discovery_rescue", 2, True)
    by_weight = chosen.curve[chosen.curve.rule == "router_weight"]
    assert by_weight.mean_rescue.tolist() == pytest.approx([0.2, 0.3, 1.0])
    assert by_weight.share.tolist() == pytest.approx([0.2, 0.3, 1.0])
    assert coalitions.choose(searched(rescue), layer=0, share=0.5).size == 1
    assert coalitions.choose(searched({**rescue, "1": 0.9}), layer=0).rule == "router_weight"
    none = coalitions.choose(searched(dict.fromkeys(rescue, 0.1)), layer=0)
    assert (none.size, none.reached) == (3, False)
    assert coalitions.choose(rows, layer=0) is None


def test_validation_facts_get_the_first_of_their_own_order_and_random_ones_of_that_size(messy):
    layer = selection.best_layer(messy)
    _, validation = halves(messy)
    plan = coalitions.plan(messy, coalitions.Coalition("router_weight", 2, True, 0.8, pd.DataFrame()), layer=layer)
    assert set(plan.scan_index) == set(validation)
    for fact, mine in plan.groupby("scan_index"):
        weights = worlds.routed(fact, layer, n_experts=9, always=[2] if fact % 3 else [])
        order = sorted(weights, key=weights.get, reverse=True)
        drawn = {kind: list(part.experts.map(coalitions.parse)) for kind, part in mine.groupby("kind")}
        assert drawn["coalition_clean_topk"] == [tuple(sorted(weights))]
        assert drawn["coalition_minimal"] == [tuple(sorted(order[:2]))]
        rng = random.Random(2000 + 100 + 7 * fact)
        assert drawn["coalition_random"] == [tuple(sorted(rng.sample(sorted(weights), 2))) for _ in range(3)]


def test_an_expert_that_discovery_never_saw_comes_last():
    rows = pd.concat(
        [small([[(1, 0.5, -1.0), (2, 0.5, 1.0)]]), small([[]] + [[(1, 0.1, 0), (2, 0.2, 0), (7, 0.7, 9.0)]])], axis=0
    )
    rows.loc[rows.scan_index == 1, "split"] = "validation"
    assert coalitions.orders(rows, layer=0)["discovery_rescue"][1] == [2, 1, 7]
    assert coalitions.orders(rows, layer=0)["router_weight"][1] == [7, 2, 1]


def test_rows_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="kind"):
        small([[(1, 1.0, 1.0)]], kind="experts")
    with pytest.raises(ValueError, match="columns"):
        small([[(1, 1.0, 1.0)]], token="x")
