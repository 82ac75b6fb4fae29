"""Settings, presets and case sets of a study: what protocol.md says, and refusals that name the field."""

from __future__ import annotations

import dataclasses
import json

import pytest

from core.errors import InputError
from core.requests import Fact, ModelSpec
from core.study import cases, scan
from core.study.options import Options
from core.study.plan import Plan
from core.study.settings import PRESETS, StudySettings, preset


def test_paper_preset_is_the_protocol():
    paper = preset("paper").to_dict()
    told = {
        "n": 256, "scan_seed": 0, "min_clean_contrast": 1.0, "min_drop": 0.5, "noise": 3.0, "draws": 1,
        "recurrence": 0.5, "controls": 3, "by_subject": False, "coalition_share": 0.8,
        "noise_levels": [1.0, 2.0, 3.0, 4.0], "grid_seeds": [0, 1, 2, 3, 4],
        "grid_recurrence": [0.25, 0.375, 0.5, 0.625, 0.75], "folds": 5, "resamples": 5000, "flips": 10000,
        "special_tokens": "off", "object_tokens": "paper",
    }  # fmt: skip
    assert {name: paper[name] for name in told} == told


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("rome", {"draws": 10}),
        ("demo", {"recurrence": 0.25, "by_subject": True}),
        ("relaxed", {"n": 512, "min_clean_contrast": 0.5, "min_drop": 0.25}),
    ],
)
def test_presets_change_the_paper_s_only_where_they_say(name, changed):
    paper, mine = preset("paper").to_dict(), preset(name).to_dict()
    assert {key: value for key, value in mine.items() if value != paper[key]} == changed | {"preset": name}


def test_round_trip_through_json():
    settings = preset(
        "rome", n=12, model=ModelSpec("org/name", revision="abc", dtype="bfloat16"), noise_levels=(0.5, 3),
        fresh_seed=7, facts="file.json", cases="paper-mixtral",
    )  # fmt: skip
    assert StudySettings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    assert settings.noise_levels == (0.5, 3.0) and settings.draws == 10


def test_every_option_of_the_results_is_a_setting_with_the_same_default():
    mine = {f.name: f.default for f in dataclasses.fields(StudySettings)}
    for option in dataclasses.fields(Options):
        assert mine[option.name] == option.default, option.name


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 3), ("n", 5.5), ("n", True), ("n", "12"), ("noise", 0), ("noise", float("nan")), ("draws", 0),
        ("recurrence", 1.5), ("min_drop", "much"), ("controls", 0), ("noise_levels", (1, -2)), ("noise_levels", 3),
        ("grid_seeds", (0, 0.5)), ("grid_recurrence", ("a",)), ("folds", 1), ("special_tokens", "maybe"),
        ("object_tokens", "none"), ("preset", "mine"), ("cases", "paper-gpt"), ("facts", " "), ("by_subject", 1),
        ("fresh_seed", -1), ("confidence", 1.0), ("model", "demo"), ("colour", 1),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_named(field, value):
    with pytest.raises(InputError) as caught:
        StudySettings().replace(**{field: value})
    assert caught.value.field == field and caught.value.next


@pytest.mark.parametrize("data", [{"model": {"name": 3}}, {"model": "demo"}, {"model": {"path": "x"}}, {"m": 1}])
def test_settings_from_elsewhere_are_checked(data):
    with pytest.raises(InputError):
        StudySettings.from_dict(data)


def test_fresh_draw_is_further_away_than_the_largest_case_id():
    settings = preset("paper", seed=5)
    assert settings.fresh_seed_for(21_918) == 1_000_005
    assert settings.fresh_seed_for(3_000_000) == 3_000_006
    assert settings.replace(fresh_seed=1).fresh_seed_for(10**9) == 1


def test_plan_from_elsewhere_is_checked():
    plan = Plan(64, 2, 0.1, 8, 100, 10**6, 1_000_000)
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    for damage in ({"threads": "2"}, {"threads": True}, {"more": 1}, {"chunk_tokens": -5}):
        with pytest.raises(InputError, match="plan is damaged"):
            Plan.from_dict(plan.to_dict() | damage)


# ---- case sets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(cases.CASE_SETS))
def test_case_sets_are_two_halves_of_128(name):
    chosen = cases.case_set(name)
    assert len(chosen.discovery) == len(chosen.validation) == 128
    assert len(set(chosen.case_ids)) == 256 and max(chosen.case_ids) < 21_919
    assert "2606.03780" in chosen.source


def counterfact(size: int = 21_919) -> list[Fact]:
    return [Fact("The capital of {} is", f"s{i}", "a", "b", case_id=i, relation=f"P{i % 34}") for i in range(size)]


def test_a_case_set_brings_its_facts_order_and_split():
    settings = preset("paper", cases="paper-qwen3")
    facts = scan.scan_order(counterfact(), settings)
    chosen = cases.case_set("paper-qwen3")
    assert [fact.case_id for fact in facts] == [*chosen.discovery, *chosen.validation]
    assert scan.splits(facts, settings) == ["discovery"] * 128 + ["validation"] * 128


def test_a_case_set_is_for_counterfact_only():
    with pytest.raises(InputError, match="256 facts of CounterFact") as caught:
        cases.choose(counterfact(5_000), "paper-mixtral")
    assert caught.value.field == "cases"
    others = [dataclasses.replace(fact, relation="capital") for fact in counterfact()]
    with pytest.raises(InputError, match="relations are such as P103"):
        cases.choose(others, "paper-mixtral")


def test_of_a_case_set_everything_measured_is_kept():
    import pandas as pd

    settings = preset("paper", cases="paper-qwen3", n=4)
    rows = [(i, "measured", "", value, value) for i, value in enumerate((5.0, -1.0, 0.2))] + [(3, "objects", "", 0, 0)]
    scanned = pd.DataFrame(rows, columns=list(scan.SCAN_COLUMNS)).astype(scan.SCAN_COLUMNS)
    assert scan.funnel(scanned, settings, records=4).kept == (0, 1, 2)
    assert scan.funnel(scanned, settings.replace(cases="scan"), records=4).kept == (0,)


def test_facts_are_stored_as_they_are():
    facts = [
        Fact("a {}", "b é", "c", "d", case_id=2**61 + 1),
        Fact("a {}", "b", "c", None, case_id=3, relation="P1", occurrence=2),
    ]
    assert scan.facts_from_bytes(scan.facts_to_bytes(facts)) == facts
    assert scan.facts_from_bytes(scan.facts_to_bytes(facts[:1])) == facts[:1]


def test_presets_are_documented():
    assert set(PRESETS) == {"paper", "rome", "demo", "relaxed"}
