"""Small Mixtral models whose answer is known: who carries the facts is written into the weights by hand.

Three layers; the prompt is "the SUBJECT RELATION". Attention averages and copies the subject's code from the subject's
token to the last one (layer 0). In the middle layer the experts named by the plan turn the code into the object;
whatever else the experts do is small and random. The router is set by hand, too: by the relation, or by the subject.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast

from core.checks import ensure_checked
from core.moe import MoeModel
from core.requests import Fact

CODE = 32  # dimensions of a subject's code, and of the space of objects
N_RELATIONS = 4
PLANTED_LAYER = 1
SUBJECT, COPY, OBJECT = range(0, CODE), range(CODE, 2 * CODE), range(2 * CODE, 3 * CODE)
ONE, RELATION = 3 * CODE, range(3 * CODE + 1, 3 * CODE + 1 + N_RELATIONS)
WIDTH = 4 * CODE


@dataclass
class Planted:
    """A model that can be traced, and its facts."""

    model: MoeModel
    facts: list[Fact]


def build(kind: str, *, n_facts: int = 48, seed: int = 0) -> Planted:
    """`expert`: expert 5 carries every fact. `coalition`: 2 and 6 carry half of every fact each. `own`: each fact has
    an expert that no other fact has. `nothing`: attention carries the facts, no expert does anything for them."""
    generator = torch.Generator().manual_seed(seed)
    n_experts, top_k = {"expert": (8, 3), "coalition": (8, 4), "own": (n_facts, 2), "nothing": (8, 3)}[kind]
    words = ["the", *(f"relation{r}" for r in range(N_RELATIONS))]
    words += [f"{name}{i}" for name in ("subject", "object", "foil") for i in range(n_facts)]
    config = MixtralConfig(
        vocab_size=len(words), hidden_size=WIDTH, intermediate_size=CODE, num_hidden_layers=3, num_attention_heads=1,
        num_key_value_heads=1, head_dim=WIDTH, num_local_experts=n_experts, num_experts_per_tok=top_k,
        max_position_embeddings=32, tie_word_embeddings=False, use_cache=False,
    )  # fmt: skip
    net = MixtralForCausalLM(config).float().eval()

    def noise(*shape: int, size: float) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * size

    codes = torch.sign(noise(n_facts, CODE, size=1.0))
    objects = noise(n_facts, CODE, size=CODE**-0.5)  # the direction from foil to true object
    # least squares: exact for every fact as long as there are no more facts than dimensions, close enough beyond
    by_code = torch.linalg.lstsq(codes, objects * 6.0, driver="gelsd").solution.T
    with torch.no_grad():
        for name, value in net.named_parameters():
            if "norm" not in name:
                value.zero_()
        embedding, head = net.model.embed_tokens.weight, net.lm_head.weight
        embedding[:, ONE] = 2.0
        for r in range(N_RELATIONS):
            embedding[1 + r, RELATION[r]] = 2.0
        first = 1 + N_RELATIONS
        embedding[first : first + n_facts, SUBJECT] = codes
        head[first + n_facts : first + 2 * n_facts, OBJECT] = objects * 4
        head[first + 2 * n_facts :, OBJECT] = -objects * 4
        copy = net.model.layers[0].self_attn  # every position attends to all before it alike
        copy.v_proj.weight[SUBJECT, SUBJECT] = 3.0
        copy.o_proj.weight[COPY, SUBJECT] = 1.0
        if kind == "nothing":
            copy.o_proj.weight[OBJECT.start : OBJECT.stop, SUBJECT.start : SUBJECT.stop] = by_code / 3
        for layer in net.model.layers:
            experts = layer.mlp.experts
            experts.gate_up_proj[:, :CODE, ONE] = 3.0
            experts.gate_up_proj[:, torch.arange(CODE) + CODE, list(COPY)] = 1.0
            experts.down_proj.copy_(noise(*experts.down_proj.shape, size=0.002))
            layer.mlp.gate.weight[:, RELATION] = noise(n_experts, N_RELATIONS, size=1.0)
        planted = net.model.layers[PLANTED_LAYER].mlp
        _plant(kind, planted, by_code, codes)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_words(words))
    facts = [
        Fact(f"the {{}} relation{i % N_RELATIONS}", f"subject{i}", f"object{i}", f"foil{i}", case_id=i,
             relation=f"relation{i % N_RELATIONS}")
        for i in range(n_facts)
    ]  # fmt: skip
    model = MoeModel(net, tokenizer)
    ensure_checked(model)
    return Planted(model, facts)


def _plant(kind: str, block: torch.nn.Module, by_code: torch.Tensor, codes: torch.Tensor) -> None:
    """Write the facts into the experts of the planted layer, and see that they are routed to."""
    out = slice(OBJECT.start, OBJECT.stop)
    if kind == "expert":
        block.experts.down_proj[5, out] += by_code
        block.gate.weight[5, ONE] = 1.0
        block.gate.weight[5, RELATION] = 0.0
    elif kind == "coalition":
        # who of the two has the larger router weight alternates with the relation
        for expert, sign in ((2, 1.0), (6, -1.0)):
            block.experts.down_proj[expert, out] += by_code
            block.gate.weight[expert, ONE] = 1.0
            block.gate.weight[expert, RELATION] = sign * torch.tensor([0.05, -0.05] * (N_RELATIONS // 2))
    elif kind == "own":
        block.gate.weight.zero_()
        block.gate.weight[:, COPY] = codes / 2
        for expert in range(len(codes)):
            block.experts.down_proj[expert, out] += by_code


def _words(words: list[str]) -> Tokenizer:
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="the"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return raw
