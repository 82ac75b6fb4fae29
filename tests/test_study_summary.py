"""The summary: planted answers come back, every number is that of a loop over the rows, nothing is dropped silently."""

from __future__ import annotations

import json
import random
from statistics import fmean

import numpy as np
import pandas as pd
import pytest
import study_worlds as worlds

from core import stats
from core.study import rows as table
from core.study.summary import expert_id, summarise

QUICK = {"resamples": 400, "flips": 400}
ESTIMATES = (
    "layer_rescue", "expert_rescue", "expert_rescue_active_only", "specificity", "gate_matched_specificity",
    "equal_norm_specificity", "clean_topk", "routing_union", "minimal_coalition", "random_coalition",
)  # fmt: skip


@pytest.fixture(scope="module")
def one() -> pd.DataFrame:
    return worlds.study(worlds.one_expert(draws=2, n=40))


@pytest.mark.parametrize(
    ("world", "verdict", "layer", "expert"),
    [
        (worlds.one_expert(), "specific expert", 1, "L01E005"),
        (worlds.one_expert(settings={"by_subject": True}), "specific expert", 1, "L01E005"),
        (worlds.pair(), "coalition", 2, None),
        (worlds.pair(top_k=2), "coalition", 2, None),
        (worlds.each_its_own(), "no recurrent expert", 0, None),
        (worlds.nothing(), "no layer-level localisation", None, None),
    ],
    ids=["one", "one, by subject", "pair", "pair in a top-2 model", "each its own", "nothing"],
)
def test_planted_answers_come_back(world, verdict, layer, expert):
    found = summarise(worlds.study(world), QUICK | world.settings, {})
    assert found["verdict"] == verdict
    if layer is not None:
        assert found["layer"] == layer
    if verdict == "specific expert":
        assert found["expert"] == found["joint_search"]["expert"] == expert
        assert found["stability"] == {"same": 25, "of": 25}
        assert found["held_out"] == {"same": 5, "of": 5}
        assert found["rank"] == {"first": found["activity"]["validation"]["active"],
                                 "of": found["activity"]["validation"]["active"], "mean": 1.0}  # fmt: skip
    if verdict == "coalition":
        assert found["coalition"]["size"] == 2
        assert found["minimal_coalition"]["mean"] == pytest.approx(2.0, abs=0.1)
    if verdict == "no recurrent expert":
        assert found["expert"] is None
        assert found["expert_rescue"]["n"] == 0
        assert found["recurrence"] is None


def test_a_single_stronger_expert_elsewhere_is_found_by_the_joint_search_and_said():
    world = worlds.one_expert()
    plain = world.rescue
    # layer 1 has the stronger block, layer 0 the stronger expert, whose block is spoilt by the others
    world.rescue = lambda f, la, m: (
        plain(f, la, m) + ((3.0 if 9 in m else 0.0) - (2.0 if len(m) > 2 else 0.0) if la == 0 else 0.0)
    )
    routing = world.routing
    world.routing = lambda f, la: worlds.routed(f, la, always=[9]) if la == 0 else routing(f, la)
    found = summarise(worlds.study(world), QUICK, {})
    assert (found["expert"], found["joint_search"]["expert"]) == ("L01E005", "L00E009")
    assert not found["joint_search"]["same_as_two_stage"]
    assert any("L0E009" in caution for caution in found["cautions"])


def test_an_equal_beside_the_selected_expert_is_cautioned():
    def routing(fact: int, layer: int) -> dict[int, float]:
        idle = list(worlds.routed(fact, layer, always=[3, 8]))[2:]
        return {3: 0.45, 8: 0.05, idle[0]: 0.3, idle[1]: 0.2} if layer == 2 else worlds.routed(fact, layer)

    found = summarise(
        worlds.study(worlds.World(routing, lambda f, la, m: float(la == 2) * ((3 in m) + (8 in m)))), QUICK, {}
    )
    assert {found["expert"], found["runner_up"]["expert"]} == {"L02E003", "L02E008"}
    assert found["verdict"] == "specific expert", "idle experts have the nearest router weights"
    assert any("does as much" in caution for caution in found["cautions"])


def by_fact(rows: pd.DataFrame, **where) -> dict[int, float]:
    out: dict[int, list[float]] = {}
    for r in rows.to_dict("records"):
        if all(r[k] == v for k, v in where.items()):
            out.setdefault(r["scan_index"], []).append(r["rescue"])
    return {fact: fmean(v) for fact, v in out.items()}


def test_every_estimate_is_recomputed_from_the_rows(one):
    found = summarise(one, QUICK, {"scanned": 60, "kept": 40})
    layer, expert = found["layer"], 5
    at = {"stage": "main", "split": "validation", "layer": layer}
    validation = sorted(by_fact(one, kind="layer", **at))
    assert len(validation) == found["n_facts"]["validation"] == 20
    mine = by_fact(one, kind="expert", expert=expert, **at)
    zeroed = {f: mine.get(f, 0.0) for f in validation}

    def minus(left, right):
        return [left[f] - right[f] for f in sorted(set(left) & set(right))]

    kinds = {"clean_topk": "coalition_clean_topk", "routing_union": "coalition_routing_union",
             "minimal_coalition": "coalition_minimal", "random_coalition": "coalition_random"}  # fmt: skip
    expected = {
        "layer_rescue": list(by_fact(one, kind="layer", **at).values()),
        "expert_rescue": list(zeroed.values()),
        "expert_rescue_active_only": list(mine.values()),
        "specificity": minus(zeroed, by_fact(one, kind="control_random", **at)),
        "gate_matched_specificity": minus(mine, by_fact(one, kind="control_gate_matched", **at)),
        "equal_norm_specificity": minus(
            by_fact(one, kind="equal_norm_selected", **at), by_fact(one, kind="equal_norm_control", **at)
        ),
        **{name: list(by_fact(one, kind=kind, **at).values()) for name, kind in kinds.items()},
    }
    assert tuple(expected) == ESTIMATES
    for name, values in expected.items():
        again = stats.estimate(values, resamples=400, flips=400).to_dict()
        assert set(found[name]) == {"mean", "ci_low", "ci_high", "positive_fraction", "p_sign_flip", "n"}
        assert found[name] == pytest.approx(again), name
        assert found["missing"][name] == 20 - len(values)
    discovery = by_fact(one, kind="layer", stage="main", split="discovery", layer=layer)
    active = by_fact(one, kind="expert", expert=expert, stage="main", split="discovery", layer=layer)
    assert found["recurrence"] == len(active) / len(discovery)
    assert found["activity"]["discovery"] == {"active": len(active), "of": 20}
    assert found["activity"]["validation"] == {"active": len(mine), "of": 20}
    assert found["settings"] == QUICK
    assert found["funnel"] == {"scanned": 60, "kept": 40}
    drops = [5.0 - 0.05 for _ in validation]
    assert found["beside"]["drop"]["mean"] == pytest.approx(fmean(drops))
    assert found["restoration"]["layer_rescue"] == pytest.approx(found["layer_rescue"]["mean"] / fmean(drops))


def test_subjects_are_the_unit_where_the_settings_say_so(one):
    shared = one.assign(subject=[f"s{f // 4}" for f in one.scan_index])
    facts, subjects = (summarise(shared, QUICK | {"by_subject": flag}, {}) for flag in (False, True))
    at = {"stage": "main", "split": "validation", "layer": 1}
    values = by_fact(one, kind="layer", **at)
    again = stats.estimate(list(values.values()), units=[f // 4 for f in values], resamples=400, flips=400)
    assert subjects["layer_rescue"] == pytest.approx(again.to_dict())
    assert subjects["layer_rescue"]["ci_low"] != facts["layer_rescue"]["ci_low"]


def test_the_order_of_the_rows_does_not_matter(one):
    shuffled = one.sample(frac=1.0, random_state=3)
    assert json.dumps(summarise(shuffled, QUICK, {})) == json.dumps(summarise(one, QUICK, {}))


def test_it_is_json_and_survives_parquet(one, tmp_path):
    one.to_parquet(tmp_path / "rows.parquet")
    back = table.table(pd.read_parquet(tmp_path / "rows.parquet"))
    first = json.dumps(summarise(one, QUICK, {}), allow_nan=False)
    assert json.dumps(summarise(back, QUICK, {}), allow_nan=False) == first


def test_missing_values_are_stated(one):
    holes = one.copy()
    facts = sorted(set(one.scan_index[one.split == "validation"]))[:3]
    holes.loc[
        (holes.kind == "layer") & (holes.layer == 1) & holes.scan_index.isin(facts) & (holes.draw == 1), "rescue"
    ] = np.nan
    found = summarise(holes, QUICK, {})
    assert found["layer_rescue"]["n"] == 17
    assert found["missing"]["layer_rescue"] == 3
    assert any("3 facts missing" in caution for caution in found["cautions"])


@pytest.mark.parametrize("kinds", [[], ["layer"], ["layer", "expert"], ["layer", "expert", "coalition_minimal"]])
def test_an_unfinished_study_has_a_summary_too(one, kinds):
    found = summarise(one[one.kind.isin(kinds)], QUICK, {"scanned": 3})
    json.dumps(found, allow_nan=False)
    assert (found["layer"] is None) == (kinds == [])
    assert (found["expert"] is None) == ("expert" not in kinds)
    assert found["specificity"]["n"] == 0
    assert found["verdict"] == ("no recurrent expert" if "layer" in kinds else "no layer-level localisation")


def test_one_fact_has_no_interval_and_no_verdict_from_it():
    found = summarise(worlds.study(worlds.one_expert(n=2)), QUICK, {})
    assert found["layer_rescue"]["n"] == 1
    assert found["layer_rescue"]["ci_low"] is None
    assert found["verdict"] == "no layer-level localisation"


def test_a_top_1_model_has_no_controls():
    world = worlds.World(
        lambda f, la: {f % 2 if la == 1 else 0: 1.0},
        lambda f, la, m: 2.0 * (la == 1),
        n=24,
        settings={"recurrence": 0.25},
    )
    found = summarise(worlds.study(world), QUICK | {"recurrence": 0.25}, {})
    assert found["expert"] is not None
    assert found["specificity"]["n"] == found["gate_matched_specificity"]["n"] == 0
    assert found["verdict"] == "no recurrent expert"
    assert "cannot be tested" in " ".join(found["verdict_words"])


def test_experts_are_written_as_in_the_format():
    assert expert_id(6, 5) == "L06E005"
    assert expert_id(44, 69) == "L44E069"
    assert expert_id(6, None) is None


def test_random_routing_without_effect_is_rarely_called_specific():
    rng, specific = random.Random(0), 0
    for i in range(8):
        offset = rng.random()
        world = worlds.World(
            lambda f, la: worlds.routed(f, la, n_experts=6),
            lambda f, la, m, o=offset: random.Random(f"{f} {la} {sorted(m)} {o}").gauss(0, 0.5), n=24,
        )  # fmt: skip
        specific += summarise(worlds.study(world, joint=False), QUICK, {"i": i})["verdict"] == "specific expert"
    assert specific <= 1
