"""Models whose tokenizer has a word for every token id, facts made of such words, and what plain hooks say of both."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from core.catalog import DEMO_FOLDER
from core.facts import bundled
from core.moe import MoeModel
from core.prompts import PreparedFact, prepare
from core.requests import Fact
from tests import oracle, tiny_models

NOISE, SEED, DRAWS = 3.0, 7, 2
FAMILIES = ["demo", "qwen3_moe", "gpt_oss", "granitemoeshared", "deepseek_v3"]


def words(n: int) -> PreTrainedTokenizerFast:
    """Token i is the word wi."""
    raw = Tokenizer(models.WordLevel({f"w{i}": i for i in range(n)}, unk_token="w0"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw)


def word_fact(case_id: int, ids: list[int], subject: range, true: int, foil: int) -> Fact:
    """A fact of these token ids."""
    text = [f"w{i}" for i in ids]
    template = " ".join([*text[: subject.start], "{}", *text[subject.stop :]])
    chosen = " ".join(text[subject.start : subject.stop])
    return Fact(template, chosen, f"w{true}", f"w{foil}", case_id=case_id, relation=f"relation {case_id % 2}")


def random_facts(n: int, seed: int = 0) -> list[Fact]:
    """Facts of random words, of 5 to 8 tokens."""
    generator = torch.Generator().manual_seed(seed)
    facts = []
    for case_id in range(n):
        length = 5 + case_id % 4
        ids = (torch.randperm(250, generator=generator) + 3)[: length + 2].tolist()
        facts.append(word_fact(case_id, ids[:length], range(1, 2 + case_id % 3), *ids[length:]))
    return facts


@dataclass
class World:
    """A model, facts, and each fact's tokens."""

    family: str
    model: MoeModel
    facts: list[Fact]

    @functools.cached_property
    def prepared(self) -> list[PreparedFact]:
        return [prepare(self.model.tokenizer, fact) for fact in self.facts]

    @functools.cached_property
    def oracles(self) -> list[oracle.Oracle]:
        """The recorded clean and corrupt runs of every fact."""
        return [oracle.Oracle(self.model.model, case) for case in self.cases]

    @functools.cached_property
    def cases(self) -> list[oracle.Case]:
        return [
            oracle.Case(
                torch.tensor(fact.input_ids), fact.subject_positions, fact.true_id, fact.foil_id,
                oracle.make_noise(
                    self.model.model, draws=DRAWS, n_subject=len(fact.subject_positions), seed=SEED,
                    case_id=fact.fact.case_id, level=NOISE,
                ),
            )
            for fact in self.prepared
        ]  # fmt: skip

    @functools.cached_property
    def busiest(self) -> tuple[int, int]:
        """(layer, expert) that is routed at the last position of most facts, in the last MoE layer but one."""
        layer = self.model.moe_layers[-2]
        active = [e for o in self.oracles for e in o.clean_run[layer].active(len(o.case.input_ids) - 1)]
        return layer, max(sorted(set(active)), key=active.count)

    def final_state(self, case: oracle.Case, noise: torch.Tensor | None) -> torch.Tensor:
        """What the final norm receives at the last position, [d]."""
        seen: list[torch.Tensor] = []
        norm = self.model.model.model.norm
        handle = norm.register_forward_pre_hook(lambda module, args: seen.append(args[0][0, -1].detach().clone()))
        oracle.contrast(self.model.model, case.input_ids, case.true_id, case.foil_id, noise, case.subject_positions)
        handle.remove()
        return seen[0]

    def effects(self, state: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
        """What a vector added to a block's output does to every logit when the RMSNorm's scale stays that of `state`:
        [V], by the formula of the family's head."""
        inner, config = self.model.model, self.model.config
        norm = inner.model.norm
        eps = getattr(norm, "variance_epsilon", None) or norm.eps
        scale = state.pow(2).mean().add(eps).sqrt()
        through = norm.weight.detach() * vector * getattr(config, "residual_multiplier", 1.0) / scale
        return inner.lm_head.weight.detach() @ through / getattr(config, "logits_scaling", 1.0)


@functools.cache
def world(family: str) -> World:
    """One of `FAMILIES`; do not change it."""
    if family == "demo":
        module = AutoModelForCausalLM.from_pretrained(DEMO_FOLDER, dtype=torch.float32).eval()
        facts = list(bundled())
        some = facts[:: len(facts) // 7][:8]
        return World(family, MoeModel(module, AutoTokenizer.from_pretrained(DEMO_FOLDER)), some)
    model = MoeModel(tiny_models.build(family), words(tiny_models.VOCABULARY))
    return World(family, model, random_facts(8))
