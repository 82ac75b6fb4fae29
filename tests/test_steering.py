"""Steering against plain forward hooks that scale the expert's contribution, over families, places and factors."""

from __future__ import annotations

import dataclasses

import families
import numpy as np
import pytest
import torch

from core import expert_questions as questions
from core.derived import DerivedRequest, derive
from core.errors import InputError
from core.moe import MoeModel
from core.steering import CLEAN, SCALED, TOP
from tests import oracle
from tests.dossier_worlds import FAMILIES, World, random_facts, words, world

STEPS = 3


@torch.no_grad()
def logits_by_hand(place: World, ids: list[int], factor: float, positions: list[int]) -> tuple[torch.Tensor, int]:
    """(next-token logits of a text with the busiest expert's contribution scaled, how many positions had one)."""
    layer, expert = place.busiest
    model = place.model.model
    blocks, routed, at = oracle.find_blocks(model), {}, []

    def before(module, args, kwargs) -> None:  # noqa: ANN001
        _, routed["index"], routed["weight"] = [*args, *kwargs.values()][:3]

    def scale(module, args, kwargs, output):  # noqa: ANN001, ANN202
        hidden = (args[0] if args else kwargs["hidden_states"]).reshape(len(ids), -1)
        index, weight = routed["index"].reshape(len(ids), -1), routed["weight"].reshape(len(ids), -1)
        y = oracle.first(output).clone()
        for pos in positions:
            for slot in (index[pos] == expert).nonzero().flatten().tolist():
                c = weight[pos, slot] * oracle.expert_output(model, layer, expert, hidden[pos])
                y.view(len(ids), -1)[pos] += (factor - 1) * c
                at.append(pos)
        return oracle.like(output, y)

    with oracle.hooked(blocks[layer].experts, before, before=True), oracle.hooked(blocks[layer], scale):
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].float(), len(at)


def places_of(fact, where: str, length: int) -> list[int]:  # noqa: ANN001
    prompt = len(fact.input_ids)
    return {"all": list(range(length)), "last": [prompt - 1], "subject": list(fact.subject_positions)}[where]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("where", "factor"), [("all", -2.0), ("last", 4.0), ("subject", 0.0)])
def test_next_tokens_and_continuations(family: str, where: str, factor: float) -> None:
    place = world(family)
    layer, expert = place.busiest
    facts = place.facts[:5]
    result = derive(place.model, questions.steering(
        place.model.spec, facts, layer=layer, expert=expert, factor=factor, where=where, continued=STEPS
    ))  # fmt: skip
    table, tokens = result.tables["facts"].set_index("fact"), result.tables["tokens"]
    moved = 0.0
    for number, fact in enumerate(place.prepared[: len(facts)]):
        for run, by in ((CLEAN, 1.0), (SCALED, factor)):
            ids = list(fact.input_ids)
            for step in range(STEPS):
                logits, n = logits_by_hand(place, ids, by, places_of(fact, where, len(ids)))
                if step == 0:
                    row = table.loc[number]
                    assert row[f"{run}_true"] == pytest.approx(logits[fact.true_id].item(), abs=1e-4)
                    assert row[f"{run}_foil"] == pytest.approx(logits[fact.foil_id].item(), abs=1e-4)
                    want = (logits[fact.true_id] - logits[fact.foil_id]).item()
                    assert row[f"{run}_contrast"] == pytest.approx(want, abs=1e-4)
                    assert run == CLEAN or row.scaled_positions == n
                    mine = tokens[(tokens.fact == number) & (tokens.run == run)].sort_values("rank")
                    best = logits.softmax(-1).topk(TOP).values
                    np.testing.assert_allclose(mine.probability, best, atol=1e-5)
                    np.testing.assert_allclose(mine.probability, logits.softmax(-1)[mine.token_id.tolist()], atol=1e-5)
                if ids[-1] == place.model.config.eos_token_id:
                    break
                rows = result.tables["continuations"]
                said = rows[(rows.fact == number) & (rows.run == run) & (rows.step == step + 1)].iloc[0]
                chosen = logits.softmax(-1)
                assert said.probability == pytest.approx(chosen.max().item(), abs=1e-5)
                assert chosen[said.token_id] == pytest.approx(chosen.max().item(), abs=1e-6)
                ids.append(int(said.token_id))
        moved = max(moved, abs(table.loc[number].scaled_contrast - table.loc[number].clean_contrast))
    assert moved > 1e-3  # the factor did something


def test_a_factor_of_one_changes_nothing() -> None:
    place = world("demo")
    layer, expert = place.busiest
    result = derive(place.model, questions.steering(
        place.model.spec, place.facts[:3], layer=layer, expert=expert, factor=1, continued=4
    ))  # fmt: skip
    table = result.tables["facts"]
    assert table.scaled_positions.sum() > 0
    np.testing.assert_allclose(table.scaled_contrast, table.clean_contrast, atol=1e-5)
    assert table.scaled_continuation.tolist() == table.clean_continuation.tolist()


def test_the_continuation_as_text() -> None:
    """Prompt and continuation together are what the tokens decode to."""
    place = world("demo")
    layer, expert = place.busiest
    result = derive(place.model, questions.steering(
        place.model.spec, place.facts[:3], layer=layer, expert=expert, factor=0, continued=6
    ))  # fmt: skip
    rows = result.tables["continuations"]
    for row in result.tables["facts"].itertuples():
        some = rows[(rows.fact == row.fact) & (rows.run == CLEAN)].sort_values("step")
        ids = [*place.prepared[row.fact].input_ids, *some.token_id]
        text = place.model.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        assert text.strip() == row.prompt + row.clean_continuation
        assert row.clean_continuation.startswith(" ") and len(row.clean_continuation) > 3


def test_texts_end_at_their_end_and_at_the_models_longest(monkeypatch) -> None:
    place = world("qwen3_moe")
    layer, expert = place.busiest
    ask = questions.steering(place.model.spec, place.facts[:1], layer=layer, expert=expert, factor=0, continued=20)
    whole = derive(place.model, ask).tables["continuations"]
    clean = whole[whole.run == CLEAN].token_id.tolist()
    third = next(i for i, token in enumerate(clean) if token not in clean[:i] and i >= 2)
    monkeypatch.setattr(place.model.config, "eos_token_id", [clean[third], 10**6])
    some = derive(place.model, ask).tables["continuations"]
    assert some[some.run == CLEAN].token_id.tolist() == clean[: third + 1]
    monkeypatch.undo()
    monkeypatch.setattr(place.model, "max_length", len(place.prepared[0].input_ids) + 2)
    some = derive(place.model, ask).tables["continuations"]
    assert some.groupby("run").step.max().tolist() == [2, 2]


def test_without_a_continuation() -> None:
    place = world("qwen3_moe")
    layer, expert = place.busiest
    result = derive(place.model, questions.steering(
        place.model.spec, place.facts[:2], layer=layer, expert=expert, factor=2.5, continued=0
    ))  # fmt: skip
    assert result.tables["continuations"].empty and len(result.tables["tokens"]) == 2 * 2 * TOP
    assert set(result.tables["facts"].clean_continuation) == {""}


def test_a_model_whose_layers_cannot_be_run_alone() -> None:
    """zaya: every row is a forward of the whole model."""
    model = MoeModel(families.build("zaya"), words(256))
    layer = model.moe_layers[-1]
    facts = random_facts(2)
    asked = [
        questions.steering(model.spec, facts, layer=layer, expert=expert, factor=0, continued=0)
        for expert in range(model.n_experts)
    ]
    answers = [derive(model, question).tables["facts"] for question in asked]
    slots = sum(table.scaled_positions.sum() for table in answers)
    assert slots == model.structure.top_k * (5 + 6)  # tokens of the two prompts
    for table in answers:
        moved = (table.scaled_contrast - table.clean_contrast).abs()
        assert (moved[table.scaled_positions == 0] == 0).all()
    assert max((table.scaled_contrast - table.clean_contrast).abs().max() for table in answers) > 1e-4


def test_a_foil_left_to_the_model() -> None:
    place = world("qwen3_moe")
    layer, expert = place.busiest
    auto = dataclasses.replace(place.facts[0], foil=None, foil_auto=True)
    ask = questions.steering(place.model.spec, [auto], layer=layer, expert=expert, factor=0, continued=0)
    row = derive(place.model, ask).tables["facts"].iloc[0]
    logits, _ = logits_by_hand(place, list(place.prepared[0].input_ids), 1.0, [])
    logits[place.prepared[0].true_id] = -torch.inf
    assert row.foil_token == f"w{int(logits.argmax())}"
    assert row.clean_foil == pytest.approx(logits.max().item(), abs=1e-4)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"factor": 4.1}, "factor"), ({"factor": -2.5}, "factor"), ({"factor": "much"}, "factor"),
        ({"factor": float("nan")}, "factor"), ({"factor": 1, "where": "everywhere"}, "where"),
        ({"factor": 1, "continued": 21}, "continued"), ({"factor": 1, "continued": -1}, "continued"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked(wrong: dict, field: str) -> None:
    with pytest.raises(InputError) as error:
        questions.steering(world("qwen3_moe").model.spec, [], layer=0, expert=0, **wrong)
    assert error.value.field == field


@pytest.mark.parametrize(
    ("kind", "settings", "field"),
    [
        ("expert_size", {"layer": 2}, "expert"), ("expert_writes", {"expert": 0, "layer": "2"}, "layer"),
        ("expert_neurons", {"expert": True, "layer": 2}, "expert"),
        ("expert_size", {"expert": 0, "layer": 2, "noise": 3}, "noise"),
        ("expert_writes", {"expert": 0, "layer": 2, "noise": "loud"}, "noise"),
        ("steering", {"expert": 0, "layer": 2}, "factor"),
        ("steering", {"expert": 0, "layer": 2, "factor": 1, "continued": 2.5}, "continued"),
        ("steering", {"expert": 0, "layer": 2, "factor": 1, "where": 3}, "where"),
    ],
)  # fmt: skip
def test_a_question_written_by_hand(kind: str, settings: dict, field: str) -> None:
    place = world("qwen3_moe")
    with pytest.raises(InputError) as error:
        derive(place.model, DerivedRequest.of(kind, place.model.spec, facts=place.facts[:1], **settings))
    assert error.value.field == field


def test_what_is_left_out_of_a_question_has_its_default() -> None:
    place = world("qwen3_moe")
    layer, expert = place.busiest
    settings = {"layer": layer, "expert": expert, "factor": 0}
    result = derive(place.model, DerivedRequest.of("steering", place.model.spec, facts=place.facts[:1], **settings))
    assert result.values["where"] == "all" and result.tables["continuations"].step.max() == 20


def test_a_question_has_only_the_settings_that_count() -> None:
    spec, facts = world("qwen3_moe").model.spec, world("qwen3_moe").facts[:1]
    whole = {"noise": 2.0, "seed": 4, "draws": 3, "corruption": "noise", "special_tokens": "off"}
    size = questions.size(spec, facts, layer=1, expert=2, **whole)
    assert size.get() == {"layer": 1, "expert": 2, "special_tokens": "off"}
    assert questions.writes(spec, facts, layer=1, expert=2, **whole).get() == {"layer": 1, "expert": 2, **whole}
    replaced = questions.writes(spec, facts, layer=1, expert=2, **{**whole, "corruption": "replace"}).get()
    assert "noise" not in replaced and replaced["seed"] == 4
