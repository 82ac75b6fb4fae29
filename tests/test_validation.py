"""Which facts a model can be asked about: outcomes and reasons, and contrasts held against plain forward passes."""

from __future__ import annotations

import collections
from dataclasses import replace

import checkpoints
import pandas as pd
import pytest
import tokenizers_for_tests
import torch
from word_facts import word_facts

from core import validation
from core.checks import ensure_checked
from core.corruption import draw_noise
from core.derived import derive
from core.errors import Cancelled
from core.moe import MoeModel
from core.progress import Progress
from core.prompts import prepare
from core.requests import Fact, ModelSpec, TraceRequest
from core.trace import trace

ODD = [
    Fact("The capital of {} is", "Delhi", "Marie Curie", "Rome", case_id=100),
    Fact("The capital of {} is", "Delhi", "Paris", "Marie Curie", case_id=101),
    Fact("The capital of {} is", "Delhi", "Paris", None, case_id=102),
    Fact("The capital of {} is", "Delhi", "Paris", " Paris", case_id=103),
    Fact("The capital of France is", "Delhi", "Paris", "Rome", case_id=104),
    Fact("France and France", "France", "Paris", "Rome", case_id=105),
    Fact("The capital of {} is ", "Delhi", "Paris", "Rome", case_id=106),
    Fact("The capital of {} is", "Delhi", "xyzzy", "Rome", case_id=107),
]
EXPECTED = ["true_token", "foil_token", "no_foil", "objects", "subject", "subject", "prompt", "true_token"]
AUTO = Fact("The city of {} is", "New York", "Paris", None, case_id=200, foil_auto=True)


@pytest.fixture(scope="module")
def model() -> MoeModel:
    found = MoeModel(checkpoints.build("qwen2_moe"), tokenizers_for_tests.tokenizer("prefix_space"))
    ensure_checked(found)
    return found


def ask(facts, **settings):
    return validation.ask(ModelSpec("ours"), facts, **settings)


def plain_contrasts(model: MoeModel, fact: Fact, *, noise: float, draws: int, seed: int) -> tuple[float, float, int]:
    """(clean, mean corrupt contrast, foil id) from whole forward passes of the model itself, noise added by hand."""
    prepared = prepare(model.tokenizer, fact)
    ids = torch.tensor([prepared.input_ids])
    embedding = model.embedding

    def logits(vectors):
        with torch.no_grad():
            return model.model(inputs_embeds=vectors).logits[0, -1].double()

    with torch.no_grad():
        vectors = embedding(ids)
    clean = logits(vectors)
    foil = prepared.foil_id
    if foil is None:
        others = clean.clone()
        others[prepared.true_id] = -torch.inf
        foil = int(others.argmax())
    drawn = draw_noise(
        seed=seed, case_id=fact.case_id, draws=draws, n_subject=len(prepared.subject_positions), hidden=model.hidden,
        sigma=noise * float(embedding.weight.detach().float().std()),
    )  # fmt: skip
    corrupt = []
    for one in drawn:
        noisy = vectors.clone()
        noisy[0, list(prepared.subject_positions)] += one
        found = logits(noisy)
        corrupt.append(float(found[prepared.true_id] - found[foil]))
    return float(clean[prepared.true_id] - clean[foil]), sum(corrupt) / draws, foil


def test_every_fact_gets_its_outcome_and_the_reason(model):
    facts = [*word_facts(), *ODD]
    result = derive(model, ask(facts, measure=False))
    table = result.tables["facts"]
    assert table.case_id.tolist() == [fact.case_id for fact in facts]
    assert table.outcome.tolist() == ["usable"] * 12 + ["true_token", "no_foil"] + EXPECTED
    assert (table.reason != "").tolist() == (table.outcome != "usable").tolist()
    assert "2 tokens" in table.set_index("case_id").reason[100] and "occurs 2 times" in table.reason[19]
    assert table[["clean_contrast", "corrupt_contrast", "drop"]].isna().all(axis=None)
    counts = collections.Counter(table.outcome)
    summary = result.tables["counts"]
    assert dict(zip(summary.outcome, summary.facts, strict=True)) == counts and list(summary.outcome)[0] == "usable"
    assert result.values == {"facts": 22, "usable": 12, "left_out": []}


def test_contrasts_are_those_of_plain_forward_passes(model, monkeypatch):
    monkeypatch.setattr(validation, "_BATCH_TOKENS", 60)  # several batches
    facts = [*word_facts(), AUTO, *ODD]
    settings = {"noise": 2.0, "draws": 2, "seed": 7}
    result = derive(model, ask(facts, min_clean_contrast=-1000.0, min_drop=-1000.0, **settings))
    table = result.tables["facts"].set_index("case_id")
    usable = [fact for fact in facts if table.outcome[fact.case_id] == "usable"]
    assert len(usable) == 13 and AUTO in usable
    for fact in usable:
        clean, corrupt, foil = plain_contrasts(model, fact, **settings)
        row = table.loc[fact.case_id]
        assert row.clean_contrast == pytest.approx(clean, abs=1e-4)
        assert row.corrupt_contrast == pytest.approx(corrupt, abs=1e-4)
        assert row["drop"] == pytest.approx(clean - corrupt, abs=1e-4)
        assert row.foil == (fact.foil or model.piece(foil).strip())
    assert table.loc[[f.case_id for f in facts if f not in usable], "clean_contrast"].isna().all()


def test_the_filters_are_the_traces_own_contrasts(model):
    facts = [replace(fact, case_id=fact.case_id) for fact in word_facts()[:12]]
    traced = [trace(model, TraceRequest(fact, model=model.spec, experts="none")) for fact in facts]
    clean = sorted(t.clean_contrast for t in traced)
    least = (clean[5] + clean[6]) / 2
    table = derive(model, ask(facts, min_clean_contrast=least, min_drop=0.0)).tables["facts"]
    for outcome, result in zip(table.outcome, traced, strict=True):
        expected = "usable" if result.drop >= 0 else "drop"
        assert outcome == ("clean_contrast" if result.clean_contrast < least else expected)
    below = table[table.outcome == "clean_contrast"]
    assert len(below) == 6 and below.reason.str.contains("The clean contrast is").all()


def test_an_empty_list_and_settings_that_do_not_count(model):
    result = derive(model, ask([]))
    assert result.values == {"facts": 0, "usable": 0, "left_out": []} and result.tables["facts"].empty
    assert ask([], measure=False) == ask([], measure=False, noise=9.0, min_drop=3.0)
    assert ask([]) != ask([], noise=9.0)
    pd.testing.assert_frame_equal(
        result.tables["counts"], pd.DataFrame({"outcome": ["usable"], "meaning": ["usable"], "facts": [0]})
    )


def test_it_can_be_cancelled(model):
    class Stop(Progress):
        def check(self) -> None:
            raise Cancelled

    with pytest.raises(Cancelled):
        derive(model, ask(word_facts()), progress=Stop())
