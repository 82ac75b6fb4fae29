"""Patches files: what is accepted, what each mistake is called; the command gives what hooked forwards give."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import checkpoints
import pandas as pd
import pytest
import torch
from test_interventions import ALL, CLEAN, CORRUPT, LAST, OBJECTS, SUBJECT, Bench

from core import cli
from core.budget import Budget
from core.corruption import draw_noise
from core.errors import InputError
from core.patch_file import build, check_shape, parse_patches, read_patches
from core.patches import Masked, Own, Step, Updates, Value
from core.patching import patch_prepared, shape_of
from core.prompts import PreparedFact
from core.requests import Fact, TraceRequest

ISSUE = [
    {"name": "layer", "run": "corrupt", "steps": [{"site": "moe", "layer": 3, "pos": "last", "restore": "clean"}]},
    {"name": "window", "run": "corrupt",
     "steps": [{"site": "moe", "layer": [2, 3, 4], "pos": "last_subject", "restore": "clean"}]},
    {"name": "attention", "run": "corrupt",
     "steps": [{"site": "attention", "layer": 3, "pos": [4, 5], "restore": "clean"}]},
    {"name": "pair", "run": "corrupt", "steps": [{"site": "moe", "layer": 3, "pos": "last", "experts": [1, 7]}]},
    {"name": "two sites", "run": "corrupt",
     "steps": [{"site": "moe", "layer": 1, "pos": "last_subject", "experts": [2]},
               {"site": "residual", "layer": 5, "pos": "last", "restore": "clean"}]},
    {"name": "knockout", "run": "clean",
     "steps": [{"site": "moe", "layer": 3, "pos": "all", "experts": [1], "knockout": "zero"}]},
    {"name": "reroute", "run": "clean",
     "steps": [{"site": "moe", "layer": 3, "pos": "all", "experts": [1], "knockout": "reroute"}]},
]  # fmt: skip
PLACE = {"n_tokens": 9, "last_subject": 3, "clean": 0, "corrupt": 2}


def test_every_form_becomes_the_steps_it_means() -> None:
    layer, window, attention, pair, two, knockout, reroute = (
        build(spec, **PLACE) for spec in parse_patches(ISSUE)
    )
    assert (layer.run, layer.steps) == (2, (Step("moe", 3, (8,), "restore", Value(0)),))
    assert [(s.layer, s.positions) for s in window.steps] == [(2, (3,)), (3, (3,)), (4, (3,))]
    assert attention.steps == (Step("attention", 3, (4, 5), "restore", Value(0)),)
    assert pair.steps == (Step("moe", 3, (8,), "add", Updates((1, 7), 0, 2)),)
    assert [s.site for s in two.steps] == ["moe", "residual"]
    assert (knockout.run, knockout.steps) == (0, (Step("moe", 3, tuple(range(9)), "add", Own((1,))),))
    assert reroute.steps == (Step("router", 3, tuple(range(9)), "mask", Masked((1,))),)
    (both,) = parse_patches([{"name": "l", "steps": [{"site": "layer", "layer": 1, "pos": 0, "restore": "corrupt"}]}])
    assert [(s.site, s.source) for s in build(both, **PLACE).steps] == [("attention", Value(2)), ("moe", Value(2))]


def wrong(**changes: object) -> list:
    data = copy.deepcopy(ISSUE[:1])
    step = data[0]["steps"][0]
    for key, value in changes.items():
        target = data[0] if key in ("name", "run", "steps") else step
        if value is None:
            target.pop(key)
        else:
            target[key] = value
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "not a list"),
        ([], "not a list"),
        ([3], "patch 0 is not an object"),
        (wrong(name=None), "patch 0 has no name"),
        (wrong(run="dirty"), "'layer' has run 'dirty'.*corrupt, clean"),
        (wrong(steps=[]), "has no steps"),
        (wrong(steps=[7]), "step 0 is not an object"),
        (wrong(colour="red"), "step 0 has an unknown key 'colour'"),
        (wrong(site="mlp"), "step 0 has site 'mlp'.*attention"),
        (wrong(layer=-1), "has layer -1"),
        (wrong(layer=[]), r"has layer \[\]"),
        (wrong(layer=True), "has layer True"),
        (wrong(pos="first"), "has pos 'first'.*last_subject"),
        (wrong(pos=1.5), "has pos 1.5"),
        (wrong(restore=None), "either"),
        (wrong(experts=[1]), "either"),
        (wrong(restore="noisy"), "has restore 'noisy'"),
        (wrong(knockout="zero"), "restore.*knockout"),
        (wrong(restore=None, experts=[1], site="attention"), "experts.*attention"),
        (wrong(restore=None, experts=[]), "names no expert"),
        (wrong(restore=None, experts=["all"]), "has experts"),
        (wrong(restore=None, experts=[1], knockout="zero"), "corrupt run"),
        (wrong(restore=None, experts=[1], knockout="off", run="clean"), "has knockout 'off'"),
        (ISSUE[:1] * 2, "'layer' is there twice"),
    ],
)
def test_each_mistake_is_named(data: object, message: str) -> None:
    with pytest.raises(InputError, match=f"(?s)--patches: .*{message}"):
        parse_patches(data)


@pytest.mark.parametrize("text", ["", "{", "[1,", "\x00", "[" * 100_000])
def test_what_is_not_json_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(InputError, match="not JSON"):
        read_patches(tmp_path / "p.json")


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_patches(tmp_path / "none.json")


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench("deepseek_v3")  # layer 0 is dense, a shared expert, a group-limited router


@pytest.mark.parametrize(
    ("step", "run", "message"),
    [
        ({"site": "moe", "layer": 9, "pos": "last", "restore": "clean"}, "corrupt", "layer 9.*layers 0 to 3"),
        ({"site": "moe", "layer": 0, "pos": "last", "restore": "clean"}, "corrupt", "layer 0, which has no MoE"),
        ({"site": "layer", "layer": 0, "pos": "last", "restore": "clean"}, "corrupt", "layer 0, which has no MoE"),
        ({"site": "moe", "layer": 1, "pos": "last", "experts": [8]}, "corrupt", "expert 8.*0 to 7"),
        ({"site": "moe", "layer": 1, "pos": "all", "experts": [1], "knockout": "reroute"}, "clean", "reroutes"),
        ({"site": "moe", "layer": 1, "pos": "all", "experts": ["shared"], "knockout": "zero"}, "clean", "shared"),
    ],
)
def test_what_the_model_does_not_have_is_said(bench: Bench, step: dict, run: str, message: str) -> None:
    specs = parse_patches([{"name": "x", "run": run, "steps": [step]}])
    with pytest.raises(InputError, match=f"'x', step 0 .*{message}"):
        check_shape(specs, shape_of(bench.model))


def test_a_position_beyond_the_prompt_is_said() -> None:
    (spec,) = parse_patches([{"name": "x", "steps": [{"site": "moe", "layer": 1, "pos": [2, 9], "restore": "clean"}]}])
    with pytest.raises(InputError, match="position 9.*0 to 8"):
        build(spec, **PLACE)


def test_a_model_without_shared_expert_has_none_to_name() -> None:
    specs = parse_patches([{"name": "x", "steps": [{"site": "moe", "layer": 0, "pos": 0, "experts": ["shared"]}]}])
    with pytest.raises(InputError, match="names the shared expert"):
        check_shape(specs, shape_of(Bench("qwen3_moe").model))


def test_the_rows_are_what_hooked_forwards_give(bench: Bench) -> None:
    """Draw by draw: contrasts, rescue, restoration and the scores of the true object."""
    request = TraceRequest(Fact("a {} b", "s", "t", "f", case_id=4), draws=2, seed=1)
    tokens = tuple(bench.ids[0].tolist())
    pieces, spans = tuple(map(str, tokens)), ((0, 1),) * len(tokens)
    fact = PreparedFact(request.fact, tokens, pieces, spans, SUBJECT, *OBJECTS, "t", "f")
    specs = parse_patches([
        {"name": "layer", "steps": [{"site": "moe", "layer": 2, "pos": "last", "restore": "clean"}]},
        {"name": "noising", "run": "clean",
         "steps": [{"site": "residual", "layer": 1, "pos": "last_subject", "restore": "corrupt"}]},
        {"name": "out", "run": "clean",
         "steps": [{"site": "moe", "layer": 1, "pos": "all", "experts": [0, 1, 2], "knockout": "zero"}]},
    ])  # fmt: skip
    result = patch_prepared(bench.model, request, fact, specs, budget=Budget.measure(bench.model))
    frame = result.frame.set_index(["name", "draw"])
    clean = bench.forward(CLEAN)
    noises = draw_noise(
        seed=1, case_id=4, draws=2, n_subject=2, hidden=bench.model.hidden, sigma=3 * bench.model.embedding_std
    )
    for draw in (0, 1):
        bench.noise = noises[draw]
        corrupt, seen = bench.forward(CORRUPT), bench.record(CORRUPT)
        wanted = {
            "layer": bench.forward(CORRUPT, bench.write("moe", 2, LAST, bench.seen[CLEAN]["moe", 2][LAST])),
            "noising": bench.forward(CLEAN, bench.write("residual", 1, SUBJECT[-1], seen["residual", 1][SUBJECT[-1]])),
            "out": bench.forward(CLEAN, bench.weights(1, lambda i, w: w.masked_fill(i < 3, 0))),
            "corrupt": corrupt,
        }
        for name, logits in wanted.items():
            row = frame.loc[(name, draw)]
            contrast = (logits[0] - logits[1]).item()
            assert row.contrast == pytest.approx(contrast, abs=1e-4)
            whole = (clean[0] - clean[1]).item()
            if row.run == "corrupt":
                before = (corrupt[0] - corrupt[1]).item()
                whole = whole - before
            else:
                before = whole
            assert row.rescue == pytest.approx(contrast - before, abs=1e-4)
            if name != "corrupt" and (abs(whole) if row.run == "clean" else whole) >= 0.05:
                assert row.restoration == pytest.approx((contrast - before) / whole, rel=1e-3, abs=1e-4)
    with torch.no_grad():
        probabilities = bench.module(input_ids=bench.ids).logits[0, -1].softmax(-1)
    row = result.frame[result.frame.name == "clean"].iloc[0]
    assert row.probability == pytest.approx(probabilities[OBJECTS[0]].item(), rel=1e-4)
    assert row["rank"] == (probabilities > probabilities[OBJECTS[0]]).sum().item() + 1


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = checkpoints.save(tmp_path / "tiny")
    (tmp_path / "p.json").write_text(json.dumps([
        {"name": "layer <b>", "steps": [{"site": "moe", "layer": 2, "pos": "last", "restore": "clean"}]},
        {"name": "knockout", "run": "clean",
         "steps": [{"site": "moe", "layer": 3, "pos": "all", "experts": [1], "knockout": "reroute"}]},
    ]))  # fmt: skip
    ask = ["patch", "--model", str(folder), "--prompt", "The capital of {} is", "--subject", "New York"]
    ask += ["--true", "Paris", "--foil", "Rome", "--draws", "2", "--patches", str(tmp_path / "p.json")]
    assert cli.main([*ask, "--out", str(tmp_path / "out.parquet")]) == 0
    out = capsys.readouterr().out
    assert "layer <b>" in out and "knockout" in out
    table = pd.read_parquet(tmp_path / "out.parquet")
    asked = table[~table.name.isin(["clean", "corrupt"])]
    assert asked.groupby("name").size().to_dict() == {"layer <b>": 2, "knockout": 2}
    assert set(asked.draw) == {0, 1}
    assert cli.main([*ask[:-1], str(tmp_path / "no.json")]) == 2
    step = {"site": "moe", "layer": 77, "pos": 0, "restore": "clean"}
    (tmp_path / "p.json").write_text(json.dumps([{"name": "x", "steps": [step]}]))
    assert cli.main(ask) == 2
    assert "layer 77" in capsys.readouterr().err


def test_all_positions_mean_every_token() -> None:
    assert build(parse_patches(ISSUE)[5], **PLACE).steps[0].positions == ALL
