"""The committed demo model does what its card says: recall, load of the experts, causal structure, files.

Everything is recomputed from ``demo/model`` and ``demo/facts.jsonl``; nothing is retrained.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch

DEMO = Path(__file__).resolve().parents[1] / "demo"
sys.path.insert(0, str(DEMO))
try:
    import card
    import fast
    import measure
    import train
    from factlist import FACTS, load_facts
    from templates import PREFIXES, TEMPLATES, fill
finally:
    sys.path.remove(str(DEMO))

ROUNDING = 2e-3  # figures.json against a recomputation: other kernels, other batches, near ties of the router


@pytest.fixture(scope="module")
def facts():
    return load_facts()


@pytest.fixture(scope="module")
def loaded():
    return measure.load_model(DEMO / "model")


@pytest.fixture(scope="module")
def committed():
    return json.loads((DEMO / "figures.json").read_text())


@pytest.fixture(scope="module")
def recall(loaded, facts):
    return measure.recall_figures(*loaded, facts)


@pytest.fixture(scope="module")
def shares(loaded, facts):
    return measure.expert_shares(*loaded, facts)


@pytest.fixture(scope="module")
def contrasts(loaded, facts):
    return measure.clean_contrasts(*loaded, facts)


@pytest.fixture(scope="module")
def sample(facts, contrasts):
    return measure.draw_sample(facts, contrasts)


@pytest.fixture(scope="module")
def causal(loaded, sample):
    sites = [("moe", "last_subject"), ("moe", "last"), ("residual", "last")]
    traces = measure.causal_traces(*loaded, sample, sites=sites)
    return measure.causal_figures(traces, loaded[0].config.num_hidden_layers)


# ------------------------------------------------------------------------------------------------- the model
def test_is_a_stock_sparse_moe_within_size(loaded):
    model, _ = loaded
    config = model.config
    assert type(model).__name__ == "Qwen3MoeForCausalLM" and type(model).__module__.startswith("transformers.")
    assert config.num_hidden_layers >= 8 and config.num_experts >= 16 and config.num_experts_per_tok in (2, 4)
    assert all(hasattr(block.mlp, "gate") for block in model.model.layers)
    assert (DEMO / "model" / "model.safetensors").stat().st_size <= 12_000_000


def test_weights_are_bf16_safetensors():
    from safetensors import safe_open

    with safe_open(DEMO / "model" / "model.safetensors", "pt") as file:
        assert {file.get_tensor(k).dtype for k in file.keys()} == {torch.bfloat16}


def test_tokenizer(loaded, facts):
    _, tokenizer = loaded
    prompt = facts[0].prompt
    assert tokenizer(prompt)["input_ids"] == tokenizer(prompt, add_special_tokens=False)["input_ids"]
    for words in ([f.true for f in facts], [f.foil for f in facts]):
        assert all(len(ids) == 1 for ids in tokenizer([" " + w for w in words])["input_ids"])
    joined = tokenizer([f"{f.prompt} {f.true}" for f in facts])["input_ids"]
    prompts = tokenizer([f.prompt for f in facts])["input_ids"]
    assert all(long[:-1] == short for long, short in zip(joined, prompts, strict=True))


# ------------------------------------------------------------------------------------- facts and templates
def test_held_out_and_unseen_templates(facts):
    for fact in facts:
        templates = TEMPLATES[fact.relation]
        assert fact.template in templates.trained
        assert fact.unseen and set(fact.unseen) <= {t.replace("{}", fact.subject) for t in templates.unseen}


def test_templates():
    everything = [t for relation in TEMPLATES.values() for t in relation.trained + relation.unseen]
    assert len(everything) == len(set(everything))
    for relation in TEMPLATES.values():
        assert len(relation.trained) >= 18 and len(relation.unseen) >= 4
    for template in everything:
        assert template.count("{}") == 1 and " ," not in template and template == template.strip()
        text, start = fill(template, "Xy", PREFIXES[0])
        assert text[start : start + 2] == "Xy"


# ------------------------------------------------------------------------------------------------- figures
def test_recall_on_held_out_pairs(recall, facts):
    assert recall["held_out_n"] == len(facts) and recall["held_out"] >= 0.98


def test_recall_on_new_templates(recall, facts):
    assert recall["new_templates_n"] == sum(len(f.unseen) for f in facts) and recall["new_templates"] >= 0.90


def test_no_dead_expert(shares):
    assert shares.min() >= 0.005


def test_sample(sample, facts):
    assert len(sample) == 256 and len(facts) >= 4000


def test_corrupt_contrast(causal):
    assert causal["mean_corrupt_contrast"] <= 0.25 * causal["mean_clean_contrast"]


def test_early_site(causal):
    assert causal["best_moe_last_subject"] >= 0.2


def test_late_site(causal):
    assert causal["best_moe_last"] >= 0.1
    assert causal["residual_last"][0] < 0.2 and max(causal["residual_last"]) > 0.8


# --------------------------------------------------------------------------------------- figures.json, card
def _close(new, old, where=""):
    if isinstance(new, dict):
        for key, value in new.items():
            _close(value, old[key], f"{where}.{key}")
    elif isinstance(new, list):
        for i, (a, b) in enumerate(zip(new, old, strict=True)):
            _close(a, b, f"{where}[{i}]")
    elif isinstance(new, float):
        assert new == pytest.approx(old, abs=ROUNDING, rel=ROUNDING), where
    elif new is not None:
        assert new == old, where


def test_figures_are_those_of_the_files(committed, recall, shares, contrasts, causal, facts):
    _close(recall, committed["recall"])
    _close(measure.load_figures(shares), committed["expert_load"])
    _close((contrasts >= 1).float().mean().item(), committed["clean_contrast_at_least_1"])
    _close(causal, committed["causal"])
    assert committed["facts"] == len(facts)


def test_card_is_generated_from_figures_and_files(committed):
    """Hashes, sizes and figures in the card: it is what card.py writes from the committed files."""
    training, runs = card.read("training.json"), card.read("runs.json")
    text = card.CARD.read_text(encoding="utf-8")
    assert text == card.card(committed, training, runs)
    for name in card.HASHED:
        if (DEMO / name).exists():
            assert f"`{card.sha256(DEMO / name)}`" in text, name
    assert card.percent(committed["recall"]["held_out"], 2) in text
    assert card.percent(committed["recall"]["new_templates"], 2) in text


# ------------------------------------------------------------------------------------------------- training
def test_the_model_was_trained_on_the_bundled_list_by_the_committed_recipe(facts):
    training = card.read("training.json")
    assert training["facts_sha256"] == card.sha256(FACTS)
    assert training["facts"] == len(facts)
    assert training["recipe"] == dataclasses.asdict(train.Recipe())


@pytest.mark.parametrize(("products", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_training_kernel_is_the_stock_experts_sum(monkeypatch, products, tolerance):
    from transformers import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

    monkeypatch.setattr(fast, "PRODUCTS", products)
    torch.manual_seed(0)
    experts = Qwen3MoeExperts(Qwen3MoeConfig(hidden_size=32, moe_intermediate_size=24, num_experts=6))
    for weight in experts.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    hidden = torch.randn(150, 32, requires_grad=True)
    weights = torch.rand(150, 2, requires_grad=True)
    index = torch.rand(150, 5).argsort(-1)[:, :2]  # expert 5 gets no token
    results = []
    for forward in (type(experts).forward, fast.sorted_experts):
        out = forward(experts, hidden, index, weights)
        gradients = torch.autograd.grad(out.square().sum(), [hidden, weights, *experts.parameters()])
        results.append([out.detach(), *gradients])
    for stock, ours in zip(*results, strict=True):
        assert (stock - ours).abs().max() <= tolerance * stock.abs().max()
