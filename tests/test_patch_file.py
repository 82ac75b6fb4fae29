"""Patches files: what is accepted, what each mistake is called; the command gives what hooked forwards give."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import checkpoints
import pandas as pd
import pytest
import torch
from test_interventions import ALL, CLEAN, CORRUPT, LAST, OBJECTS, SUBJECT, Bench, reroute
from transformers import AutoTokenizer

from core import cli, models
from core.budget import Budget
from core.catalog import DEMO_FOLDER
from core.corruption import draw_noise
from core.errors import InputError
from core.facts import bundled
from core.patch_file import build, check_choice, check_shape, parse_patches, read_patches
from core.patches import Masked, Own, Step, Updates, Value
from core.patching import patch_prepared, shape_of
from core.prompts import PreparedFact, prepare
from core.requests import SCORES, Fact, TraceRequest

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
    step = {"site": "moe", "layer": 1, "pos": 0, "experts": [4, "shared"], "equal_norm_with": "clean_top_k"}
    (equal,) = parse_patches([{"name": "e", "steps": [step]}])
    assert build(equal, **PLACE).steps[0].source == Updates((4, "shared"), 0, 2, ("clean_top_k",))
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
        (wrong(restore=None, experts=["all"]), "has experts 'all'.*shared, clean_top_k, routing_union"),
        (wrong(restore=None, experts=[1, [2]]), "has experts"),
        (wrong(restore=None, experts={"e": 1}), "has experts"),
        (wrong(restore=None, experts=[1], equal_norm_with=[]), "no expert in equal_norm_with"),
        (wrong(restore=None, experts=[1], equal_norm_with=-1), "has equal_norm_with"),
        (wrong(equal_norm_with=[1]), "restore.*equal_norm_with"),
        (wrong(restore=None, experts=[1], equal_norm_with=[2], knockout="zero", run="clean"), "equal_norm_with"),
        (wrong(restore=None, experts="clean_top_k", knockout="zero", run="clean"), "coalition by its name"),
        (wrong(name=7), "patch 0 has no name"),
        (wrong(name="clean"), "patch 'clean' has the name of a run"),
        (wrong(name="corrupt"), "patch 'corrupt' has the name of a run"),
        (wrong(name=" "), "patch 0 has no name"),
        (wrong(colours=[1], run="corrupt") + [None], "unknown key 'colours'"),
        ([{**ISSUE[0], "step": []}], "patch 'layer' has an unknown key 'step'"),
        (wrong(steps={"site": "moe"}), "has no steps"),
        (wrong(steps=None), "has no steps"),
        (wrong(site=None), "has site None"),
        (wrong(site=["moe"]), r"has site \['moe'\]"),
        (wrong(layer=None), "has layer None"),
        (wrong(layer="3"), "has layer '3'"),
        (wrong(layer=[1, "2"]), "has layer"),
        (wrong(pos=None), "has pos None"),
        (wrong(pos=["last"]), "has pos"),
        (wrong(pos=-1), "has pos -1"),
        (wrong(run=True), "has run True"),
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
        ({"site": "moe", "layer": 1, "pos": "last", "experts": [1], "equal_norm_with": [8]}, "corrupt", "expert 8"),
        ({"site": "moe", "layer": [1, 4], "pos": "last", "experts": [1]}, "corrupt", "layer 4.*0 to 3"),
        ({"site": "residual", "layer": 4, "pos": "last", "restore": "clean"}, "corrupt", "layer 4.*0 to 3"),
        ({"site": "attention", "layer": 4, "pos": "last", "restore": "clean"}, "corrupt", "layer 4.*0 to 3"),
        ({"site": "moe", "layer": 1, "pos": "all", "experts": [1], "knockout": "reroute"}, "clean", "reroutes"),
        ({"site": "moe", "layer": 1, "pos": "all", "experts": [8, "shared"], "knockout": "zero"}, "clean", "expert 8"),
    ],
)
def test_what_the_model_does_not_have_is_said(bench: Bench, step: dict, run: str, message: str) -> None:
    specs = parse_patches([{"name": "x", "run": run, "steps": [step]}])
    with pytest.raises(InputError, match=f"'x', step 0 .*{message}"):
        check_shape(specs, shape_of(bench.model))


def test_a_router_that_is_left_too_few_experts_is_said() -> None:
    """Of eight experts two are selected; masked ones would be selected again. Each position counts for itself."""
    shape = shape_of(Bench("qwen3_moe").model)

    def check(*steps: dict) -> None:
        steps = [{"site": "moe", "layer": 2, "knockout": "reroute", **step} for step in steps]
        (spec,) = parse_patches([{"name": "x", "run": "clean", "steps": steps}])
        check_shape([spec], shape)
        check_choice(spec, build(spec, **PLACE), shape)

    check({"pos": "all", "experts": list(range(6))})
    check({"pos": "last", "experts": [0, 1, 2, 3]}, {"pos": 3, "experts": [4, 5, 6]})
    with pytest.raises(InputError, match="'x' leaves the router of layer 2 1 of 8 experts at position 8, .* selects 2"):
        check({"pos": "last", "experts": [0, 1, 2, 3]}, {"pos": [3, 8], "experts": [3, 4, 5, 6]})
    with pytest.raises(InputError, match="names the shared expert"):
        check({"pos": 0, "experts": [0, "shared"]})


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


@pytest.fixture(scope="module")
def on_the_demo() -> tuple[list[int], PreparedFact, Bench]:
    """A bundled fact with its tokens, and the bench with its first noise draw."""
    fact = bundled()[1500]
    prepared = prepare(AutoTokenizer.from_pretrained(DEMO_FOLDER), fact)
    ids, subject = list(prepared.input_ids), prepared.subject_positions
    model = Bench("demo").model
    sigma = 3 * model.embedding.weight.float().std().item()
    noise = draw_noise(
        seed=0, case_id=fact.case_id, draws=1, n_subject=len(subject), hidden=model.hidden, sigma=sigma
    )  # fmt: skip
    return ids, prepared, Bench("demo", (ids, subject, noise[0]))


@pytest.fixture(scope="module")
def by_hand(on_the_demo: tuple[list[int], PreparedFact, Bench]) -> dict[str, torch.Tensor]:
    """Logits of the whole vocabulary for every patch of the issue's file, by hooked forwards."""
    ids, prepared, bench = on_the_demo
    last, subject, clean = len(ids) - 1, prepared.subject_positions[-1], bench.seen[CLEAN]
    members = [e for e in (1, 7) if e in {*bench.routed(CLEAN, 3, last), *bench.routed(CORRUPT, 3, last)}]
    pair = sum((bench.update(3, last, e) for e in members), torch.zeros(bench.model.hidden))
    two = bench.update(1, subject, 2)
    changes = {
        "layer": [bench.write("moe", 3, last, clean["moe", 3][last])],
        "window": [bench.write("moe", layer, subject, clean["moe", layer][subject]) for layer in (2, 3, 4)],
        "attention": [bench.write("attention", 3, pos, clean["attention", 3][pos]) for pos in (4, 5)],
        "pair": [bench.write("moe", 3, last, pair, add=True)],
        "two sites": [
            bench.write("moe", 1, subject, two, add=True), bench.write("residual", 5, last, clean["residual", 5][last])
        ],
        "knockout": [bench.weights(3, lambda index, weight: weight.masked_fill(index == 1, 0))],
        "reroute": [reroute(bench, 3, 1, range(len(ids)), renormalise=True)],
        "clean": [],
        "corrupt": [],
    }  # fmt: skip
    runs = {name: CLEAN if name in ("knockout", "reroute", "clean") else CORRUPT for name in changes}
    everything = range(bench.model.vocabulary)
    return {name: bench.forward(runs[name], *some, tokens=everything) for name, some in changes.items()}


@pytest.fixture(scope="module")
def loaded():  # noqa: ANN201
    return models.load_model("demo", dtype="float32", device="cpu")


@pytest.mark.parametrize("score", SCORES)
def test_the_issues_file_on_the_demo_by_the_command(
    score: str,
    loaded,  # noqa: ANN001
    on_the_demo: tuple[list[int], PreparedFact, Bench],
    by_hand: dict[str, torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(models, "load_model", lambda *args, **options: loaded)
    prepared = on_the_demo[1]
    (tmp_path / "p.json").write_text(json.dumps(ISSUE))
    ask = ["patch", "--fact", str(prepared.fact.case_id), "--patches", str(tmp_path / "p.json"), "--score", score]
    assert cli.main([*ask, "--no-cache", "--out", str(tmp_path / "out.csv")]) == 0
    table = pd.read_csv(tmp_path / "out.csv").set_index("name")
    assert list(table.index) == ["clean", "corrupt", *(patch["name"] for patch in ISSUE)]
    wanted = {}
    for name, logits in by_hand.items():
        p = logits.double().softmax(-1)
        wanted[name] = {
            "contrast": (logits[prepared.true_id] - logits[prepared.foil_id]).item(),
            "probability": p[prepared.true_id].item(), "log_probability": p[prepared.true_id].log().item(),
            "rank": (logits > logits[prepared.true_id]).sum().item() + 1,
        }  # fmt: skip
        for column, value in wanted[name].items():
            assert table.loc[name, column] == pytest.approx(value, abs=1e-4), (name, column)
    clean, corrupt = wanted["clean"][score], wanted["corrupt"][score]
    for patch in ISSUE:
        value, row = wanted[patch["name"]][score], table.loc[patch["name"]]
        before, whole = (clean, clean) if patch["run"] == "clean" else (corrupt, clean - corrupt)
        assert row.rescue == pytest.approx(value - before, abs=1e-4)
        if abs(whole) < {"contrast": 0.05, "log_probability": 0.05, "probability": 0.005, "rank": 1}[score]:
            assert pd.isna(row.restoration)
        else:
            assert row.restoration == pytest.approx((value - before) / whole, abs=1e-3)
    assert table.restoration.notna().sum() >= 5
    assert len({round(row["contrast"], 4) for row in wanted.values()}) >= 6  # the patches are told apart


def test_all_positions_mean_every_token() -> None:
    assert build(parse_patches(ISSUE)[5], **PLACE).steps[0].positions == ALL
