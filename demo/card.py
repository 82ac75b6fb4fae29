# ruff: noqa: E501 (a page of text)
"""Writes the model card (``README.md``) from ``figures.json``, ``training.json``, ``runs.json`` and the files' hashes.

``python demo/card.py``; ``train.py`` calls it at its end.  No figure in the card is typed in by hand.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from factlist import DEMO
from templates import TEMPLATES

CARD = DEMO / "README.md"
HASHED = (
    "facts.jsonl",
    "model/config.json",
    "model/generation_config.json",
    "model/model.safetensors",
    "model/tokenizer.json",
    "model/tokenizer_config.json",
)

TEXT = """\
# The bundled demo model

<!-- written by demo/card.py from figures.json, training.json and runs.json: change those, not this file -->

A small sparse mixture-of-experts language model that ships with ExpertScope, so that a fresh machine shows something
real at once. It is a stock `{class}` (the code path of Qwen3-30B-A3B) with a learned top-{top_k} router, trained from
nothing on the bundled facts: {parameters} parameters, {layers} layers × {experts} experts, hidden size {hidden}, expert
size {expert_hidden}, {heads} attention heads ({kv_heads} for keys and values), a byte-level BPE of {vocabulary} tokens.
Weights: {megabytes} MB (bf16 safetensors).

```python
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("demo/model")
model = AutoModelForCausalLM.from_pretrained("demo/model", dtype="float32")
```

## What it is not

- **It is no evidence about large models.** It is a tiny model made for one purpose. It has seen nothing but sentences
  of our own about {training_facts} facts; it can't chat, reason, or continue any other text.
- **Training shaped where recall happens.** For {bottleneck} of the training statements an attention mask lets the
  tokens behind the subject see it only through its last token (the entity bottleneck), and that only from layer
  {read_from} on. Without this, in our trials the last token held nearly everything after two layers and there was hardly an
  early site. So the early site at the last subject token and the late site at the last token were *put there*, to look
  like what has been reported for large models; that they appear on the maps says nothing about why they appear
  elsewhere. Inference uses no mask: it is the stock model.
- The corrupt run adds noise of three standard deviations to embeddings that never saw any: off the model's distribution.
- The facts are a small, uneven selection; that a fact is missing means nothing, and "recall" here is memorising a list.
  Where a subject has several true answers the list holds one.
- Its load of experts was balanced by a loss term; which expert serves which relation is an accident of the seed.

## Figures

Measured by `demo/measure.py` on the committed files (bf16 weights loaded in fp32); recomputed by `tests/test_demo_model.py`.

| what | figure | required |
| --- | --- | --- |
| facts / relations / subjects / objects | {facts} / {relations} / {subjects} / {objects} | ≥ 4,000 facts, ≥ 25 relations |
| recall on held-out (fact, template) pairs, all {held_out_n} facts | {held_out} | ≥ 98 % |
| recall on templates never trained, {new_templates_n} prompts | {new_templates} | ≥ 90 % |
| least used expert of any layer, share of the layer's routed tokens | {least_share} | ≥ 0.5 % |
| held-out prompts with clean contrast ≥ 1 | {passing} | stated |
| mean clean contrast | {clean} | |
| mean corrupt contrast, share of the clean one | {corrupt} ({ratio}) | ≤ 25 % |
| early site: best single MoE layer at the last subject token | {early} (layer {early_layer}) | ≥ 0.2 |
| late site: best single MoE layer at the last token | {late} (layer {late_layer}) | ≥ 0.1 |
| residual at the last token, first layer → last layer | {residual_first} → {residual_last} | from < 0.2 to > 0.8 |
| weights | {megabytes} MB | ≤ 12 MB |

Recall is the argmax over the whole vocabulary. The causal figures are over {sample} facts (all facts shuffled by `random.Random(0)`,
the first {sample} whose held-out prompt has a clean contrast of at least 1; subjects of a single token included), the
record's foil, noise level {noise_level} (× the standard deviation of the embedding table), {draws} draws a fact, ratio of the mean
rescue to the mean drop.

Restoration by layer:

| layer | {layer_head} |
| --- |{layer_rule}
| MoE output at the last subject token | {moe_last_subject} |
| MoE output at the last token | {moe_last} |
| residual stream at the last subject token | {residual_last_subject} |
| residual stream at the last token | {residual_last_row} |
| least used expert | {least_by_layer} |
| normalised entropy of the load | {entropy_by_layer} |

Recall by relation (held-out pairs, new templates):

| relation | held-out | new | relation | held-out | new |
| --- | --- | --- | --- | --- | --- |
{relation_rows}

## Training

`python demo/train.py`: facts → tokenizer → model → figures → this card; one CPU thread, seeded, {minutes} minutes for
the committed weights (torch {torch}, transformers {transformers}). The tokenizer
adds no special tokens; objects and the words of templates are single tokens, subjects come in pieces. Each relation has
{trained_templates} sentence templates of our own that are trained and {unseen_templates} that never are; each fact keeps one of the trained ones back
(its `requested_rewrite.prompt`). Loss: cross-entropy of the object + {other} × that of {other_share} of the other positions + {balance} × the
load-balancing loss, computed per layer. Matrix products in bf16, the rest in fp32. AdamW, batches of {batch} statements, {steps} steps, learning rate {rate} with warm-up and cosine decay. The recipe
is the `Recipe` class in `train.py`.

### What was tried

{runs_note}

| run | what | held-out | new templates | least expert | corrupt / clean | early | late | residual at last: first → last |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
{run_rows}

{lessons}

## Facts: sources and licences

{sources}

The sentences are our own. The tokenizer and the weights were made from these facts and sentences only.

## Files

| file | bytes | sha256 |
| --- | --- | --- |
{hash_rows}
"""


def percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f} %"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _row(values: list[float], form=lambda v: f"{v:.2f}") -> str:
    return " | ".join(form(v) for v in values)


def _span(values: list[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _relation_rows(recall: dict) -> str:
    cells = [
        f"{relation} | {percent(held)} | {percent(recall['new_templates_by_relation'][relation])}"
        for relation, held in recall["held_out_by_relation"].items()
    ]
    cells += [" | | "] * (len(cells) % 2)
    half = len(cells) // 2
    return "\n".join(f"| {a} | {b} |" for a, b in zip(cells[:half], cells[half:], strict=True))


def _run_rows(runs: list[dict]) -> str:
    rows = []
    for run in runs:
        f = run["figures"]
        rows.append(
            f"| {run['name']} | {run['what']} | {percent(f['held_out'])} | {percent(f['new_templates'])} | {percent(f['least_share'], 2)}"
            f" | {percent(f['corrupt_over_clean'], 0)} | {f['early']:.2f} | {f['late']:.2f} | {f['residual'][0]:.2f} → {f['residual'][1]:.2f} |"
        )
    return "\n".join(rows)


def sources_text() -> str:
    """The section on sources, taken from ``sources/README.md`` without its title."""
    path = DEMO / "sources" / "README.md"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else ["(see sources/README.md)"]
    if lines and lines[0].startswith("# "):
        lines = lines[1:]
    return "\n".join(("##" + line if line.startswith("#") else line) for line in lines).strip()


def card(figures: dict, training: dict, runs: dict) -> str:
    """The model card's text."""
    recipe = training["recipe"]
    recall, load, causal, model = figures["recall"], figures["expert_load"], figures["causal"], figures["model"]
    trained = sorted({len(t.trained) for t in TEMPLATES.values()})
    unseen = sorted({len(t.unseen) for t in TEMPLATES.values()})
    files = [name for name in HASHED if (DEMO / name).exists()]
    return TEXT.format(
        **{**model, "parameters": f"{model['parameters'] / 1e6:.2f} million"},
        **{k: f"{figures[k]:,}" for k in ("facts", "relations", "subjects", "objects")},
        megabytes=f"{(DEMO / 'model/model.safetensors').stat().st_size / 1e6:.2f}",
        bottleneck=f"{recipe['bottleneck']:.0%}",
        held_out_n=f"{recall['held_out_n']:,}",
        held_out=percent(recall["held_out"], 2),
        new_templates_n=f"{recall['new_templates_n']:,}",
        new_templates=percent(recall["new_templates"], 2),
        least_share=percent(load["least_share"], 2),
        passing=percent(figures["clean_contrast_at_least_1"], 2),
        clean=f"{causal['mean_clean_contrast']:.2f}",
        corrupt=f"{causal['mean_corrupt_contrast']:.2f}",
        ratio=percent(causal["corrupt_over_clean"]),
        early=f"{causal['best_moe_last_subject']:.3f}",
        early_layer=causal["best_moe_last_subject_layer"],
        late=f"{causal['best_moe_last']:.3f}",
        late_layer=causal["best_moe_last_layer"],
        residual_first=f"{causal['residual_last'][0]:.2f}",
        residual_last=f"{causal['residual_last'][-1]:.2f}",
        sample=causal["facts"],
        draws=causal["draws"],
        noise_level=causal["noise_level"],
        layer_head=" | ".join(str(i) for i in range(model["layers"])),
        layer_rule=" --- |" * model["layers"],
        moe_last_subject=_row(causal["moe_last_subject"]),
        moe_last=_row(causal["moe_last"]),
        residual_last_subject=_row(causal["residual_last_subject"]),
        residual_last_row=_row(causal["residual_last"]),
        least_by_layer=_row(load["least_share_by_layer"], percent),
        entropy_by_layer=_row(load["entropy_by_layer"]),
        relation_rows=_relation_rows(recall),
        minutes=training["minutes"],
        torch=training["torch"],
        transformers=training["transformers"],
        trained_templates=_span(trained),
        unseen_templates=_span(unseen),
        other=recipe["other"],
        other_share=f"{recipe['other_share']:.0%}",
        read_from=recipe["read_from"],
        balance=recipe["balance"],
        batch=recipe["batch"],
        training_facts=f"{training['facts']:,}",
        steps=f"{recipe['steps']:,}",
        rate=recipe["rate"],
        runs_note=runs["note"],
        run_rows=_run_rows(runs["runs"]),
        lessons=runs["lessons"],
        sources=sources_text(),
        hash_rows="\n".join(f"| {n} | {(DEMO / n).stat().st_size:,} | `{sha256(DEMO / n)}` |" for n in files),
    )


def read(name: str) -> dict:
    return json.loads((DEMO / name).read_text(encoding="utf-8"))


def write_card() -> None:
    CARD.write_text(card(read("figures.json"), read("training.json"), read("runs.json")), encoding="utf-8")


if __name__ == "__main__":
    write_card()
