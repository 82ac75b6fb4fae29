"""The one problem that every method solves: a random MoE model, a prompt, noise on its subject, two objects.

Weights are random, so nothing is downloaded, and scaled so that patches move the logits. Knows no method.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM

from core.corruption import draw_noise, embedding_std
from core.prompts import PreparedFact
from core.requests import Fact

LAYERS, HIDDEN, EXPERTS, TOP_K, INTERMEDIATE, VOCABULARY = 12, 512, 32, 4, 256, 4096
TOKENS, SUBJECT = 14, (3, 4, 5)
NOISE_LEVEL = 3.0
OBJECTS = (17, 33)  # token ids of the true object and the foil


@dataclass(frozen=True)
class Case:
    """`ids` [1, T]; `noise` [draws, n_subject, d]; `positions`: the positions whose cells are computed, the first
    subject token and everything right of it (left of it a cell equals the corrupt run, whatever the method)."""

    model: Qwen3MoeForCausalLM
    tokenizer: PreTrainedTokenizerFast
    ids: torch.Tensor
    noise: torch.Tensor

    @property
    def draws(self) -> int:
        return self.noise.shape[0]

    @property
    def positions(self) -> range:
        return range(SUBJECT[0], TOKENS)

    @property
    def prepared(self) -> PreparedFact:
        """The same problem as the engine's own entry point takes it."""
        pieces = tuple(f"t{i}" for i in self.ids[0].tolist())
        subject = " ".join(pieces[i] for i in SUBJECT)
        text = " ".join(pieces).replace(subject, "{}")
        fact = Fact(text, subject, f"t{OBJECTS[0]}", f"t{OBJECTS[1]}")
        return PreparedFact(
            fact=fact, input_ids=tuple(self.ids[0].tolist()), tokens=pieces, spans=((0, 0),) * TOKENS,
            subject_positions=SUBJECT, true_id=OBJECTS[0], foil_id=OBJECTS[1],
            true_token=fact.true, foil_token=str(fact.foil),
        )  # fmt: skip

    def corrupt_embeddings(self) -> torch.Tensor:
        """Input embeddings of every draw's corrupt run: [draws, T, d]."""
        with torch.no_grad():
            embedded = self.model.get_input_embeddings()(self.ids).repeat(self.draws, 1, 1)
            embedded[:, list(SUBJECT)] += self.noise
        return embedded

    def own_model(self) -> Qwen3MoeForCausalLM:
        """A copy of the model that a library may rebuild; the weights are shared."""
        memo = {id(p): p for p in (*self.model.parameters(), *self.model.buffers())}
        return copy.deepcopy(self.model, memo)


def build_model(seed: int = 0, *, layers: int = LAYERS, experts: int = EXPERTS) -> Qwen3MoeForCausalLM:
    """The random model, fp32, on the CPU."""
    torch.manual_seed(seed)
    config = Qwen3MoeConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=layers, num_attention_heads=8,
        num_key_value_heads=4, head_dim=64, num_experts=experts, num_experts_per_tok=TOP_K,
        moe_intermediate_size=INTERMEDIATE, norm_topk_prob=True, max_position_embeddings=256,
        tie_word_embeddings=False, decoder_sparse_step=1, mlp_only_layers=[],
        architectures=["Qwen3MoeForCausalLM"],
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = Qwen3MoeForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(3.0)
        model.lm_head.weight.mul_(4.0)
    return model


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One word per token id. Some libraries insist on a tokenizer; all methods are given token ids."""
    inner = Tokenizer(WordLevel({f"t{i}": i for i in range(VOCABULARY)}, unk_token="t0"))
    inner.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="t0", pad_token="t0", bos_token="t1", eos_token="t2"
    )


def build_case(model: Qwen3MoeForCausalLM, tokenizer: PreTrainedTokenizerFast, *, draws: int) -> Case:
    """The problem with so many noise draws; the noise is the engine's own rule with seed 0 and case_id 0.

    The prompt's seed is one at which no routing tie is so near that rounding decides it: with seed 1 one of 1,320 cells
    flips an expert between any two implementations whose matrix products have other shapes.
    """
    ids = torch.randint(3, VOCABULARY, (1, TOKENS), generator=torch.Generator().manual_seed(2))
    sigma = NOISE_LEVEL * embedding_std(model.get_input_embeddings())
    noise = draw_noise(seed=0, case_id=0, draws=draws, n_subject=len(SUBJECT), hidden=HIDDEN, sigma=sigma)
    return Case(model, tokenizer, ids, noise)
