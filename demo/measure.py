"""Measures the demo model: recall, load of the experts, causal structure.  Writes ``figures.json``.

Plain forward hooks on the stock model, independent of ``core/``.  ``python demo/measure.py [model] [facts]``.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import argparse
import json
import random
from collections import defaultdict
from pathlib import Path

import torch
from factlist import DEMO, FACTS, Fact, load_facts
from transformers import AutoModelForCausalLM, AutoTokenizer

SAMPLE, DRAWS, NOISE_LEVEL, SEED = 256, 10, 3.0, 0


# ------------------------------------------------------------------------------------------ loading, batching
def load_model(folder: Path | str = DEMO / "model"):
    """The committed bf16 weights in fp32, and the tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def pad(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids and lengths.  Attention is causal: padding on the right changes nothing before it."""
    lengths = torch.tensor([len(r) for r in rows])
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    return ids, lengths


def last_logits(model, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Full-vocabulary logits at the last prompt token."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    return model.lm_head(hidden[torch.arange(len(ids)), lengths - 1])


def object_ids(tokenizer, facts: list[Fact]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids of the true objects and of the foils, as they follow the prompt."""
    out = []
    for words in ([f.true for f in facts], [f.foil for f in facts]):
        rows = tokenizer([" " + w for w in words])["input_ids"]
        assert all(len(r) == 1 for r in rows)
        out.append(torch.tensor([r[0] for r in rows]))
    return out[0], out[1]


def by_length(rows: list[list[int]], size: int):
    """Batches of row numbers, rows of similar length together."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    return [order[i : i + size] for i in range(0, len(order), size)]


@torch.no_grad()
def all_logits(model, tokenizer, prompts: list[str], batch: int = 256):
    """Yields (row numbers, logits at the last token)."""
    rows = tokenizer(prompts)["input_ids"]
    for chunk in by_length(rows, batch):
        yield chunk, last_logits(model, *pad([rows[i] for i in chunk]))


# ------------------------------------------------------------------------------------------------- recall
def recall(model, tokenizer, facts: list[Fact], prompts: list[str]) -> torch.Tensor:
    """For each (fact, prompt): is the true object the argmax over the whole vocabulary?"""
    true, _ = object_ids(tokenizer, facts)
    right = torch.zeros(len(facts), dtype=torch.bool)
    for chunk, logits in all_logits(model, tokenizer, prompts):
        right[chunk] = logits.argmax(-1) == true[chunk]
    return right


def _per_relation(pairs: list[Fact], right: torch.Tensor) -> dict[str, float]:
    groups = defaultdict(list)
    for fact, ok in zip(pairs, right.tolist(), strict=True):
        groups[fact.relation].append(ok)
    return {relation: sum(v) / len(v) for relation, v in sorted(groups.items())}


def recall_figures(model, tokenizer, facts: list[Fact]) -> dict:
    """Recall on the held-out (fact, template) pairs and on every prompt of a template never trained."""
    held = recall(model, tokenizer, facts, [f.prompt for f in facts])
    pairs = [(f, p) for f in facts for p in f.unseen]
    unseen_facts = [f for f, _ in pairs]
    unseen = recall(model, tokenizer, unseen_facts, [p for _, p in pairs])
    return {
        "held_out": held.float().mean().item(),
        "held_out_n": len(facts),
        "held_out_by_relation": _per_relation(facts, held),
        "new_templates": unseen.float().mean().item(),
        "new_templates_n": len(pairs),
        "new_templates_by_relation": _per_relation(unseen_facts, unseen),
    }


# -------------------------------------------------------------------------------------------- expert load
@torch.no_grad()
def expert_shares(model, tokenizer, facts: list[Fact]) -> torch.Tensor:
    """[layer, expert]: share of the layer's routed tokens, over all tokens of all held-out prompts."""
    layers, experts = model.config.num_hidden_layers, model.config.num_experts
    counts = torch.zeros(layers, experts, dtype=torch.long)
    real: list[torch.Tensor] = []

    def count(layer):
        def hook(_module, _inputs, output):
            counts[layer] += torch.bincount(output[2][real[0]].reshape(-1), minlength=experts)

        return hook

    hooks = [block.mlp.gate.register_forward_hook(count(layer)) for layer, block in enumerate(model.model.layers)]
    rows = tokenizer([f.prompt for f in facts])["input_ids"]
    try:
        for chunk in by_length(rows, 256):
            ids, lengths = pad([rows[i] for i in chunk])
            real[:] = [(torch.arange(ids.shape[1])[None] < lengths[:, None]).reshape(-1)]
            model.model(input_ids=ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return counts / counts.sum(1, keepdim=True)


def load_figures(shares: torch.Tensor) -> dict:
    """The least and the most used expert of every layer, and the normalised entropy of the load."""
    entropy = -(shares * shares.clamp_min(1e-12).log()).sum(1) / torch.tensor(float(shares.shape[1])).log()
    return {
        "least_share": shares.min().item(),
        "least_share_by_layer": shares.min(1).values.tolist(),
        "most_share_by_layer": shares.max(1).values.tolist(),
        "entropy_by_layer": entropy.tolist(),
    }


# -------------------------------------------------------------------------------------------- causal tracing
def subject_positions(tokenizer, fact: Fact) -> tuple[list[int], list[int]]:
    """Token ids of the held-out prompt, and the positions of the tokens that overlap the subject's characters."""
    encoded = tokenizer(fact.prompt, return_offsets_mapping=True)
    start, end = fact.subject_start, fact.subject_start + len(fact.subject)
    positions = [i for i, (a, b) in enumerate(encoded["offset_mapping"]) if b > start and a < end]
    return encoded["input_ids"], positions


def clean_contrasts(model, tokenizer, facts: list[Fact]) -> torch.Tensor:
    """logit(true) - logit(foil) at the last token of the held-out prompt."""
    true, foil = object_ids(tokenizer, facts)
    out = torch.zeros(len(facts))
    for chunk, logits in all_logits(model, tokenizer, [f.prompt for f in facts]):
        rows = torch.arange(len(chunk))
        out[chunk] = logits[rows, true[chunk]] - logits[rows, foil[chunk]]
    return out


def draw_sample(facts: list[Fact], contrasts: torch.Tensor, size: int = SAMPLE) -> list[Fact]:
    """All facts shuffled by ``random.Random(0)``; the first ``size`` with a clean contrast of at least 1."""
    order = list(range(len(facts)))
    random.Random(0).shuffle(order)
    return [facts[i] for i in order if contrasts[i] >= 1.0][:size]


class Sites:
    """Forward hooks: record the clean run, add noise to the embeddings, patch one site."""

    def __init__(self, model):
        self.record: dict | None = None
        self.noise: torch.Tensor | None = None
        self.patch: tuple[tuple[str, int], torch.Tensor, torch.Tensor] | None = None  # (site, layer), positions, values
        self.handles = [model.get_input_embeddings().register_forward_hook(self._embed)]
        for layer, block in enumerate(model.model.layers):
            self.handles.append(block.mlp.register_forward_hook(self._site(("moe", layer))))
            self.handles.append(block.register_forward_hook(self._site(("residual", layer))))

    def _embed(self, _module, _inputs, output):
        return output if self.noise is None else output + self.noise

    def _site(self, key):
        def hook(_module, _inputs, output):
            hidden = output[0] if isinstance(output, tuple) else output
            if self.record is not None:
                self.record[key] = hidden
            if self.patch is not None and self.patch[0] == key:
                hidden = hidden.clone()
                hidden[torch.arange(len(hidden)), self.patch[1]] = self.patch[2]
                return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
            return None

        return hook

    def __enter__(self):
        return self

    def __exit__(self, *_exc):
        for handle in self.handles:
            handle.remove()


def _contrasts(logits: torch.Tensor, true: torch.Tensor, foil: torch.Tensor) -> torch.Tensor:
    """[fact, draw] from logits of facts times draws."""
    logits = logits.view(len(true), -1, logits.shape[-1])
    rows = torch.arange(len(true))
    return logits[rows, :, true] - logits[rows, :, foil]


@torch.no_grad()
def causal_traces(model, tokenizer, sample: list[Fact], draws: int = DRAWS, sites=None, batch: int = 24) -> dict:
    """Clean and corrupt contrasts and the contrasts under every patch, ``[fact]`` or ``[fact, draw]``.

    Patches: the MoE block's output at the last subject token and at the last token, the residual stream after the
    layer at the same two positions.
    """
    layers, hidden = model.config.num_hidden_layers, model.config.hidden_size
    embedding = model.get_input_embeddings().weight
    sigma = NOISE_LEVEL * embedding.float().std()
    true, foil = object_ids(tokenizer, sample)
    encoded = [subject_positions(tokenizer, f) for f in sample]
    sites = sites or [(k, p) for k in ("moe", "residual") for p in ("last_subject", "last")]
    out: dict = {"clean": torch.zeros(len(sample)), "corrupt": torch.zeros(len(sample), draws)}
    for kind, position in sites:
        for layer in range(layers):
            out[kind, position, layer] = torch.zeros(len(sample), draws)

    with Sites(model) as run:
        for chunk in by_length([ids for ids, _ in encoded], batch):
            ids, lengths = pad([encoded[i][0] for i in chunk])
            where = {"last": lengths - 1, "last_subject": torch.tensor([encoded[i][1][-1] for i in chunk])}
            rows = torch.arange(len(chunk))

            run.record, run.noise, run.patch = {}, None, None
            out["clean"][chunk] = _contrasts(last_logits(model, ids, lengths), true[chunk], foil[chunk])[:, 0]
            clean, run.record = run.record, None

            noise = torch.zeros(len(chunk), draws, ids.shape[1], hidden)
            for row, i in enumerate(chunk):
                positions = encoded[i][1]
                generator = torch.Generator("cpu").manual_seed(SEED + sample[i].case_id)
                noise[row, :, positions] = torch.randn(draws, len(positions), hidden, generator=generator) * sigma
            run.noise = noise.flatten(0, 1)
            many, long = ids.repeat_interleave(draws, 0), lengths.repeat_interleave(draws)
            out["corrupt"][chunk] = _contrasts(last_logits(model, many, long), true[chunk], foil[chunk])
            for kind, position in sites:
                for layer in range(layers):
                    value = clean[kind, layer][rows, where[position]].repeat_interleave(draws, 0)
                    run.patch = ((kind, layer), where[position].repeat_interleave(draws), value)
                    out[kind, position, layer][chunk] = _contrasts(
                        last_logits(model, many, long), true[chunk], foil[chunk]
                    )
            run.patch = run.noise = None
    return out


def causal_figures(traces: dict, layers: int) -> dict:
    """Ratios of means: mean rescue / mean drop, over facts and draws."""
    clean, corrupt = traces["clean"], traces["corrupt"]
    drop = clean.mean() - corrupt.mean()

    def curve(kind, position):
        if (kind, position, 0) not in traces:
            return None
        return [((traces[kind, position, i].mean() - corrupt.mean()) / drop).item() for i in range(layers)]

    figures = {
        "facts": len(clean),
        "draws": corrupt.shape[1],
        "noise_level": NOISE_LEVEL,
        "mean_clean_contrast": clean.mean().item(),
        "mean_corrupt_contrast": corrupt.mean().item(),
        "corrupt_over_clean": (corrupt.mean() / clean.mean()).item(),
        "moe_last_subject": curve("moe", "last_subject"),
        "moe_last": curve("moe", "last"),
        "residual_last_subject": curve("residual", "last_subject"),
        "residual_last": curve("residual", "last"),
    }
    for name in ("moe_last_subject", "moe_last"):
        values = figures[name]
        if values:
            figures[f"best_{name}"] = max(values)
            figures[f"best_{name}_layer"] = values.index(max(values))
    return figures


# ------------------------------------------------------------------------------------------------- the whole
def figures(model, tokenizer, facts: list[Fact]) -> dict:
    """Everything that the model card states."""
    contrasts = clean_contrasts(model, tokenizer, facts)
    traces = causal_traces(model, tokenizer, draw_sample(facts, contrasts))
    config = model.config
    return {
        "facts": len(facts),
        "relations": len({f.relation for f in facts}),
        "subjects": len({f.subject for f in facts}),
        "objects": len({f.true for f in facts}),
        "model": {
            "class": type(model).__name__,
            "parameters": sum(p.numel() for p in model.parameters()),
            "layers": config.num_hidden_layers,
            "experts": config.num_experts,
            "top_k": config.num_experts_per_tok,
            "hidden": config.hidden_size,
            "expert_hidden": config.moe_intermediate_size,
            "heads": config.num_attention_heads,
            "kv_heads": config.num_key_value_heads,
            "vocabulary": config.vocab_size,
        },
        "recall": recall_figures(model, tokenizer, facts),
        "expert_load": load_figures(expert_shares(model, tokenizer, facts)),
        "clean_contrast_at_least_1": (contrasts >= 1).float().mean().item(),
        "causal": causal_figures(traces, config.num_hidden_layers),
    }


def rounded(value, digits: int = 4):
    """Floats rounded, so that the file is readable."""
    if isinstance(value, float):
        return round(value, digits)
    if isinstance(value, dict):
        return {k: rounded(v, digits) for k, v in value.items()}
    return [rounded(v, digits) for v in value] if isinstance(value, list) else value


def write_figures(folder: Path, facts: Path, out: Path | None) -> str:
    """Measure the model in ``folder`` on ``facts``; the JSON text, also written to ``out``."""
    text = json.dumps(rounded(figures(*load_model(folder), load_facts(facts))), indent=1) + "\n"
    if out:
        out.write_text(text)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default=DEMO / "model", type=Path)
    parser.add_argument("facts", nargs="?", default=FACTS, type=Path)
    parser.add_argument("--out", type=Path, default=None, help="default: figures.json in demo/ for the bundled model")
    args = parser.parse_args()
    out = args.out or (DEMO / "figures.json" if args.model == DEMO / "model" else None)
    print(write_figures(args.model, args.facts, out))


if __name__ == "__main__":
    main()
