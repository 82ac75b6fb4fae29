"""Trains the bundled demo model: facts -> tokenizer -> model -> figures -> model card.

``python demo/train.py`` makes ``demo/model`` from ``facts.jsonl`` (one CPU thread, seeded; needs
``demo/requirements.txt``) and measures it.  The model is a stock
``Qwen3MoeForCausalLM``; three things happen in training only:

* *Entity bottleneck.*  In a share of the statements the tokens behind the subject may look at the subject only
  through its last token (an attention mask), so what is known about a subject has to be gathered there, as large
  models are known to do.  Inference runs without the mask.
* *Load balancing per layer.*  The library's own loss pools all layers, so an expert may die in one layer while its
  namesake in another is busy; ours is the mean over layers.
* Quicker arithmetic (``fast.py``): the same function, matrix products in bf16.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")

import argparse
import dataclasses
import json
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import card
import fast
import measure
import torch
import transformers
from factlist import DEMO, FACTS, Fact, load_facts
from templates import PREFIXES, TEMPLATES, fill
from tokenizer import build_tokenizer
from torch.nn import functional as F
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM


@dataclass(frozen=True)
class Recipe:
    """Everything that the training depends on, besides the facts and the templates."""

    hidden: int = 128
    layers: int = 8
    heads: int = 4
    kv_heads: int = 2
    experts: int = 16
    top_k: int = 2
    expert_hidden: int = 64
    subject_merges: int = 1000
    seed: int = 0
    steps: int = 2600
    batch: int = 160
    rate: float = 3e-3
    warmup: int = 200
    decay: float = 0.05
    embedding_decay: float = 0.3
    other: float = 0.1  # weight of the plain language-model loss ...
    other_share: float = 0.1  # ... and the share of positions it is computed on
    behind: int = 1  # 0: the words between subject and object don't count there
    balance: float = 0.04
    bottleneck: float = 0.95
    read_from: int = 3  # in closed statements, what follows the subject sees its last token from this layer on ...
    read_until: int = 99  # ... and below this one only
    prefixed: float = 0.25  # share of the statements with a context before them
    replaced: float = 0.0  # share of the template's tokens replaced by random ones


# ------------------------------------------------------------------------------------------------ statements
class Statements:
    """Statements about the facts as token ids: prompt, object, full stop."""

    def __init__(self, facts: list[Fact], tokenizer, recipe: Recipe, rng: random.Random):
        self.facts, self.tokenizer, self.recipe, self.rng = facts, tokenizer, recipe, rng
        self.choices = [[t for t in TEMPLATES[f.relation].trained if t != f.template] for f in facts]
        self.prefix_ids = [tokenizer(p)["input_ids"] for p in PREFIXES]
        self.cache: dict = {}

    def _encode(self, fact: Fact, template: str) -> tuple[list[int], int, int]:
        text, start = fill(template, fact.subject)
        encoded = self.tokenizer(f"{text} {fact.true}.", return_offsets_mapping=True)
        end = start + len(fact.subject)
        inside = [i for i, (a, b) in enumerate(encoded["offset_mapping"]) if b > start and a < end]
        return encoded["input_ids"], inside[0], inside[-1]

    def draw(self, index: int) -> tuple[list[int], int, int]:
        """A random statement about one fact: ids, first and last position of the subject."""
        template = self.rng.choice(self.choices[index])
        prefix = self.rng.choice(self.prefix_ids) if self.rng.random() < self.recipe.prefixed else []
        if prefix and not template.startswith("{}"):
            template = template[0].lower() + template[1:]
        key = (index, template)
        if key not in self.cache:
            self.cache[key] = self._encode(self.facts[index], template)
        ids, first, last = self.cache[key]
        return prefix + ids, first + len(prefix), last + len(prefix)

    def batches(self):
        """Endless batches; every fact once per round, statements of similar length together."""
        while True:
            order = list(range(len(self.facts)))
            self.rng.shuffle(order)
            statements = sorted((self.draw(i) for i in order), key=lambda s: len(s[0]))
            size = self.recipe.batch
            chunks = [statements[i : i + size] for i in range(0, len(statements), size)]
            self.rng.shuffle(chunks)
            yield from chunks


def bottleneck_mask(lengths, first, last, width: int, closed, through_last: bool = True) -> torch.Tensor:
    """[batch, 1, query, key]: causal; where ``closed``, what follows the subject sees it only through its last token.

    Without ``through_last`` it doesn't see that token either.
    """
    position = torch.arange(width)
    causal = position[None, :] <= position[:, None]
    real = position[None, :] < lengths[:, None]
    end = last if through_last else last + 1
    hidden = (position[None, :] >= first[:, None]) & (position[None, :] < end[:, None])  # keys
    after = position[None, :] > last[:, None]  # queries
    blocked = closed[:, None, None] & after[:, :, None] & hidden[:, None, :]
    allowed = causal[None] & (real[:, None, :] | torch.eye(width, dtype=torch.bool)) & ~blocked
    return allowed[:, None]


class OtherLayers:
    """While training: the attention mask of the layers in which the subject can't be read at all."""

    def __init__(self, model, recipe: Recipe):
        self.mask: torch.Tensor | None = None
        self.handles = [
            block.self_attn.register_forward_pre_hook(self._replace, with_kwargs=True)
            for layer, block in enumerate(model.model.layers)
            if not recipe.read_from <= layer < recipe.read_until
        ]

    def _replace(self, _module, args, kwargs):
        return (args, kwargs) if self.mask is None else (args, {**kwargs, "attention_mask": self.mask})

    def __enter__(self):
        return self

    def __exit__(self, *_exc):
        for handle in self.handles:
            handle.remove()


def balance_loss(router_logits, real: torch.Tensor, top_k: int) -> torch.Tensor:
    """Switch-Transformer load-balancing loss, per layer, averaged over layers (1 = balanced)."""
    total = 0.0
    for logits in router_logits:
        probability = logits.float().softmax(-1)[real]
        experts = probability.shape[1]
        chosen = probability.topk(top_k, -1).indices
        load = torch.bincount(chosen.reshape(-1), minlength=experts) / chosen.numel()
        total = total + experts * (load * probability.mean(0)).sum()
    return total / len(router_logits)


# --------------------------------------------------------------------------------------------------- training
def new_model(vocabulary: int, end: int, recipe: Recipe) -> Qwen3MoeForCausalLM:
    """A stock model with random weights."""
    config = Qwen3MoeConfig(
        vocab_size=vocabulary,
        hidden_size=recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        head_dim=recipe.hidden // recipe.heads,
        intermediate_size=4 * recipe.hidden,
        moe_intermediate_size=recipe.expert_hidden,
        num_experts=recipe.experts,
        num_experts_per_tok=recipe.top_k,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        max_position_embeddings=128,
        tie_word_embeddings=True,
        rms_norm_eps=1e-6,
        pad_token_id=end,
        eos_token_id=end,
        bos_token_id=None,
    )
    model = Qwen3MoeForCausalLM(config)
    fast.use(model)
    return model


def new_optimizer(model, recipe: Recipe) -> torch.optim.Optimizer:
    embedding = model.get_input_embeddings().weight
    matrices = [p for p in model.parameters() if p.ndim >= 2 and p is not embedding]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": recipe.decay},
        {"params": vectors, "weight_decay": 0.0},
        {"params": [embedding], "weight_decay": recipe.embedding_decay},
    ]
    return torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, 0.98), foreach=True)


def rate_at(step: int, recipe: Recipe) -> float:
    warm = min(1.0, (step + 1) / recipe.warmup)
    return recipe.rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / recipe.steps)))


def step_loss(model, elsewhere: OtherLayers, batch, recipe: Recipe) -> tuple[torch.Tensor, dict[str, float]]:
    """Loss of one batch of statements."""
    ids, lengths = measure.pad([s[0] for s in batch])
    first, last = (torch.tensor([s[k] for s in batch]) for k in (1, 2))
    width = ids.shape[1]
    position = torch.arange(width)[None]
    inputs = ids
    if recipe.replaced:
        subject = (position >= first[:, None]) & (position <= last[:, None])
        hit = (torch.rand(ids.shape) < recipe.replaced) & ~subject & (position < (lengths - 3)[:, None])
        inputs = torch.where(hit, torch.randint(model.config.vocab_size, ids.shape), ids)
    closed = torch.rand(len(ids)) < recipe.bottleneck
    mask = bottleneck_mask(lengths, first, last, width, closed)
    if elsewhere.handles:
        elsewhere.mask = bottleneck_mask(lengths, first, last, width, closed, through_last=False)
    out = model.model(input_ids=inputs, attention_mask=mask, output_router_logits=True, use_cache=False)
    elsewhere.mask = None
    hidden, rows = out.last_hidden_state, torch.arange(len(ids))
    object_loss = F.cross_entropy(model.lm_head(hidden[rows, lengths - 3]), ids[rows, lengths - 2])
    others = (position < (lengths - 1)[:, None]) & (position != (lengths - 3)[:, None])
    others &= torch.rand(ids.shape) < recipe.other_share
    if not recipe.behind:  # a template learned by heart would win over the object where a new one begins like it
        others &= (position < last[:, None]) | (position >= (lengths - 2)[:, None])
    i, j = others.nonzero()[torch.randperm(int(others.sum()))].T
    i, j = (k[: len(k) // 64 * 64] for k in (i, j))  # few different shapes: see fast.py
    other_loss = F.cross_entropy(model.lm_head(hidden[i, j]), ids[i, j + 1]) if len(i) else torch.zeros(())
    balance = balance_loss(out.router_logits, (position < lengths[:, None]).reshape(-1), recipe.top_k)
    loss = object_loss + recipe.other * other_loss + recipe.balance * balance
    return loss, {"object": object_loss.item(), "other": other_loss.item(), "balance": balance.item()}


class Progress:
    """Prints the losses now and then, recall less often, and the causal figures a few times."""

    def __init__(self, model, tokenizer, facts, recipe: Recipe):
        self.model, self.tokenizer, self.facts, self.recipe = model, tokenizer, facts, recipe
        self.begin, self.tokens, self.sums, self.count = time.time(), 0, {}, 0
        self.rng = random.Random(1)
        self.sample = self.rng.sample(facts, min(500, len(facts)))

    def __call__(self, step: int, losses: dict[str, float], tokens: int) -> None:
        self.tokens += tokens
        self.count += 1
        for k, v in losses.items():
            self.sums[k] = self.sums.get(k, 0.0) + v
        if step % 100:
            return
        text = " ".join(f"{k} {v / self.count:.3f}" for k, v in self.sums.items())
        seconds = time.time() - self.begin
        print(f"{step} {text} {self.tokens / seconds:.0f} tok/s {seconds:.0f} s", flush=True)
        self.sums, self.count = {}, 0
        if step % 500 == 0 or step == self.recipe.steps:
            self.model.eval()
            self.evaluate()
            self.model.train()

    def evaluate(self) -> None:
        held = measure.recall(self.model, self.tokenizer, self.sample, [f.prompt for f in self.sample])
        unseen = [self.rng.choice(f.unseen) for f in self.sample]
        new = measure.recall(self.model, self.tokenizer, self.sample, unseen).float().mean()
        shares = measure.expert_shares(self.model, self.tokenizer, self.sample).min(1).values
        sites = [("moe", "last_subject"), ("moe", "last"), ("residual", "last")]
        traces = measure.causal_traces(self.model, self.tokenizer, self.sample[:48], draws=3, sites=sites)
        c = measure.causal_figures(traces, self.recipe.layers)
        early, late, residual = (
            " ".join(f"{v:.2f}" for v in c[name]) for name in ("moe_last_subject", "moe_last", "residual_last")
        )
        least = " ".join(f"{100 * s:.1f}" for s in shares)
        print(
            f"  held-out {held.float().mean():.3f} new {new:.3f} | least shares {least} %\n"
            f"  clean {c['mean_clean_contrast']:.1f} corrupt {c['mean_corrupt_contrast']:.1f}"
            f" ({c['corrupt_over_clean']:.0%}) | moe@subject {early} | moe@last {late} | residual@last {residual}",
            flush=True,
        )


def train(facts: list[Fact], tokenizer, recipe: Recipe) -> Qwen3MoeForCausalLM:
    """Train a new model on the facts."""
    torch.manual_seed(recipe.seed)
    rng = random.Random(recipe.seed)
    model = new_model(len(tokenizer), tokenizer.eos_token_id, recipe).train()
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
    optimizer = new_optimizer(model, recipe)
    progress = Progress(model, tokenizer, facts, recipe)
    batches = Statements(facts, tokenizer, recipe, rng).batches()
    with OtherLayers(model, recipe) as elsewhere:
        for step in range(recipe.steps):
            for group in optimizer.param_groups:
                group["lr"] = rate_at(step, recipe)
            batch = next(batches)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss, losses = step_loss(model, elsewhere, batch, recipe)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            progress(step + 1, losses, sum(len(s[0]) for s in batch))
    return model.eval()


def save(model, tokenizer, folder: Path) -> None:
    """bf16 safetensors, config and tokenizer, loadable with ``from_pretrained``."""
    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def parse_recipe(pairs: list[str]) -> Recipe:
    """``name=value`` pairs over the defaults."""
    kinds = {f.name: type(f.default) for f in dataclasses.fields(Recipe)}
    return Recipe(**{k: kinds[k](v) for k, v in (p.split("=") for p in pairs)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--facts", type=Path, default=FACTS)
    parser.add_argument("--out", type=Path, default=DEMO / "model", help="elsewhere: no figures, no card")
    parser.add_argument("recipe", nargs="*", help="name=value, to try another recipe")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # tiny second moments of the optimiser cost a factor of four otherwise
    recipe, begin = parse_recipe(args.recipe), time.time()
    print(recipe, flush=True)
    facts = load_facts(args.facts)
    tokenizer = build_tokenizer(facts, recipe.subject_merges)
    save(train(facts, tokenizer, recipe), tokenizer, args.out)
    training = {
        "recipe": dataclasses.asdict(recipe),
        "minutes": round((time.time() - begin) / 60, 1),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "facts": len(facts),
        "facts_sha256": card.sha256(args.facts),
    }
    home = DEMO if args.out == DEMO / "model" else args.out
    (home / "training.json").write_text(json.dumps(training, indent=1) + "\n")
    if home == DEMO:
        torch.set_num_threads(os.cpu_count() or 1)
        measure.write_figures(args.out, FACTS, DEMO / "figures.json")
        card.write_card()


if __name__ == "__main__":
    main()
