"""Interventions on families that keep their parts elsewhere, or take a slower path, against plain hooked forwards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from core.base import Run
from core.moe import MoeModel
from core.patches import SHARED, Masked, Own, Patch, Step, Updates, Value
from core.sweep import listed, sweep
from tests.families import build
from tests.matrix import FACT, LENGTH, SUBJECT, fact_for, scaled
from tests.naive import Change, Naive
from tests.oracle import first, like

LAST = LENGTH - 1
ALL = tuple(range(LENGTH))
CLEAN, CORRUPT = 0, 1
LIMIT = 1e-4
ATTENTION = {
    "axk1": "self_attn", "beam": "self_attn", "dbrx": "norm_attn_norm.attn", "deepseek_v32": "self_attn",
    "gemma4_text": "self_attn", "granitemoeshared": "self_attn", "jetmoe": "self_attention",
    "llama4_text": "self_attn", "zaya": "self_attn",
}  # fmt: skip
"""Each with something of its own: a norm on y, a transformation after the experts, another place of the attention,
attention by an index, bare experts, a shared expert beside the block, sorted slots, scores on the experts' input,
forward passes of the whole model."""

WITHOUT_SHARED = {"beam", "dbrx", "gemma4_text", "jetmoe", "zaya"}


class Case:
    """One family's tiny model, its two runs, and the naive way."""

    def __init__(self, kind: str) -> None:
        self.kind, self.module = kind, scaled(build(kind))
        self.naive = Naive(self.module, fact_for(self.module))
        self.model = MoeModel(self.module)
        noise = self.naive.fact.noise
        self.runs = [Run(FACT.input_ids), Run(FACT.input_ids, noise, SUBJECT)]
        self.noise = [None, noise]
        self.moe = sorted(self.naive.blocks)

    def sweep(self, *patches: Patch) -> torch.Tensor:
        """Logits of the objects, [patches, 2]; rows in small chunks."""
        objects = (FACT.true_id, FACT.foil_id)
        attention = any(step.site == "attention" for patch in patches for step in patch.steps)
        outcome = sweep(
            self.model, self.model.structure, self.runs, listed(patches), objects=[objects] * 2, chunk_tokens=40,
            with_attention=attention,
        )  # fmt: skip
        return outcome.patched[[outcome.patches.index(patch) for patch in patches]]

    def forward(self, run: int, *changes: Change) -> torch.Tensor:
        return torch.tensor(self.naive.forward(self.noise[run], list(changes)))

    def routed(self, run: int, layer: int, pos: int) -> list[int]:
        n = self.model.n_experts
        return sorted(e for e in self.naive.routed[run][layer][pos].tolist() if e < n)

    def update(self, layer: int, pos: int, expert: int) -> torch.Tensor:
        parts = [self.naive.contribution(run, layer, pos, expert) for run in (CLEAN, CORRUPT)]
        return parts[0] - parts[1]

    def output(self, run: int, module: nn.Module) -> torch.Tensor:
        """What a module puts out in a run, [T, ...]."""
        seen: list[torch.Tensor] = []
        self.forward(run, (module, lambda m, a, k, out: seen.append(first(out)[0].clone()), False))
        return seen[0]

    def restored(self, module: nn.Module, positions: tuple[int, ...]) -> Change:
        """The module's clean output at some positions."""
        clean = self.output(CLEAN, module)

        def write(m: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            hidden = first(output).clone()
            hidden[0, list(positions)] = clean[list(positions)]
            return like(output, hidden)

        return module, write, False


@pytest.fixture(scope="module", params=sorted(ATTENTION))
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    yield Case(request.param)


def agrees(got: torch.Tensor, want: torch.Tensor) -> None:
    assert (got - want).abs().max().item() <= LIMIT


def _restore(site: str, layer: int, *positions: int) -> Step:
    return Step(site, layer, positions, "restore", Value(CLEAN))  # type: ignore[arg-type]


@pytest.mark.parametrize("site", ["attention", "residual"])
def test_restoring_attention_and_the_stream(case: Case, site: str) -> None:
    moved = 0.0
    for layer in (0, case.model.n_layers - 2, case.model.n_layers - 1):
        module = case.model.layers[layer]
        module = module.get_submodule(ATTENTION[case.kind]) if site == "attention" else module
        (got,) = case.sweep(Patch(CORRUPT, (_restore(site, layer, SUBJECT[1], LAST),)))
        want = case.forward(CORRUPT, case.restored(module, (SUBJECT[1], LAST)))
        agrees(got, want)
        moved = max(moved, (want - case.forward(CORRUPT)).abs().max().item())
    assert moved > 0.01


def test_a_window_that_replaces_what_the_run_computes(case: Case) -> None:
    layers = case.moe[-2:]
    (got,) = case.sweep(Patch(CORRUPT, tuple(_restore("moe", layer, LAST) for layer in layers)))
    writes = [case.naive.blocks[layer].writing(LAST, case.naive.y[CLEAN][layer][LAST]) for layer in layers]
    agrees(got, case.forward(CORRUPT, *(change for write in writes for change in write)))


def test_experts_added_to_what_a_patched_run_computes(case: Case) -> None:
    """Two experts in one layer, another one and the shared expert in a later one, and the attention between."""
    low, high = case.moe[0], case.moe[-1]
    pair = case.routed(CLEAN, low, SUBJECT[1])[:2]
    (late,) = case.routed(CLEAN, high, LAST)[:1]
    shared = (SHARED,) if case.model.structure.has_shared else ()
    patch = Patch(CORRUPT, (
        Step("moe", low, (SUBJECT[1],), "add", Updates(tuple(pair), CLEAN, CORRUPT)),
        _restore("attention", high, LAST),
        Step("moe", high, (LAST,), "add", Updates((late, *shared), CLEAN, CORRUPT)),
    ))  # fmt: skip
    (got,) = case.sweep(patch)
    attention = case.restored(case.model.layers[high].get_submodule(ATTENTION[case.kind]), (LAST,))
    early = case.naive.y[CORRUPT][low][SUBJECT[1]] + sum(case.update(low, SUBJECT[1], e) for e in pair)
    before = (attention, *case.naive.blocks[low].writing(SUBJECT[1], early))
    seen: list[torch.Tensor] = []
    case.forward(CORRUPT, *before, *case.naive.blocks[high].reading(lambda y: seen.append(y.clone())))
    delta = case.update(high, LAST, late)
    if shared:
        delta = delta + (case.naive.output(CLEAN, high, None) - case.naive.output(CORRUPT, high, None))[LAST]
    agrees(got, case.forward(CORRUPT, *before, *case.naive.blocks[high].writing(LAST, seen[0][LAST] + delta)))


def test_zero_knockout(case: Case) -> None:
    """An expert taken out of the clean run at one position, in every MoE layer; and twice over, in two layers."""
    patches, wanted = [], []
    for layer in case.moe:
        (expert,) = case.routed(CLEAN, layer, LAST)[:1]
        patches.append(Patch(CLEAN, (Step("moe", layer, (LAST,), "add", Own((expert,))),)))
        y = case.naive.y[CLEAN][layer][LAST] - case.naive.contribution(CLEAN, layer, LAST, expert)
        wanted.append(case.forward(CLEAN, *case.naive.blocks[layer].writing(LAST, y)))
    agrees(case.sweep(*patches), torch.stack(wanted))
    assert max((want - case.forward(CLEAN)).abs().max() for want in wanted) > 0.01


def test_zero_knockout_at_all_positions(case: Case) -> None:
    layer = case.moe[0]
    (expert,) = case.routed(CLEAN, layer, LAST)[:1]
    (got,) = case.sweep(Patch(CLEAN, (Step("moe", layer, ALL, "add", Own((expert,))),)))
    changes: list[Change] = []
    y = case.naive.y[CLEAN][layer] - (
        case.naive.output(CLEAN, layer, expert) - case.naive.output(CLEAN, layer, None)
    )  # fmt: skip
    for pos in ALL:
        changes += case.naive.blocks[layer].writing(pos, y[pos])
    agrees(got, case.forward(CLEAN, *changes))


def test_zero_knockout_of_the_shared_expert(case: Case) -> None:
    """Alone at one position, and with a routed one at all of them."""
    layer = case.moe[-1]
    (expert,) = case.routed(CLEAN, layer, LAST)[:1]
    block, y, shared = case.naive.blocks[layer], case.naive.y[CLEAN][layer], case.naive.output(CLEAN, layer, None)
    if not case.model.structure.has_shared:
        assert case.kind in WITHOUT_SHARED
        return
    both = y - case.naive.output(CLEAN, layer, expert)  # what all but the two put out
    wanted = [
        case.forward(CLEAN, *block.writing(LAST, y[LAST] - shared[LAST])),
        case.forward(CLEAN, *(change for pos in ALL for change in block.writing(pos, both[pos]))),
    ]
    patches = [
        Patch(CLEAN, (Step("moe", layer, (LAST,), "add", Own((SHARED,))),)),
        Patch(CLEAN, (Step("moe", layer, ALL, "add", Own((expert, SHARED))),)),
    ]
    agrees(case.sweep(*patches), torch.stack(wanted))
    assert (wanted[0] - case.forward(CLEAN)).abs().max() > 0.01


def test_knockouts_beside_patches_that_change_the_same_block(case: Case) -> None:
    """To take out a contribution the block may be run once more; neither that run nor the others' rows are changed by
    what other rows of the call do to the block: here they write its output, and mask its router."""
    layer = case.moe[-1]
    (expert,) = case.routed(CLEAN, layer, LAST)[:1]
    shared = (SHARED,) if case.model.structure.has_shared else ()
    own = Step("moe", layer, (LAST,), "add", Own((expert, *shared)))
    early = Step("attention", 0, (1,), "restore", Value(CLEAN))  # changes nothing; all rows run through all layers
    noised = Step("moe", layer, ALL[2:], "restore", Value(CORRUPT))
    patches = [Patch(CLEAN, (early, own)), Patch(CLEAN, (early, noised))]
    if case.model.structure.reroutable:
        patches += [Patch(CLEAN, (early, Step("router", layer, ALL[2:], "mask", Masked((expert,)))))]
    together = case.sweep(*patches)
    agrees(together, torch.cat([case.sweep(patch) for patch in patches]))
    y, kept = case.naive.y[CLEAN][layer][LAST], case.naive.output(CLEAN, layer, expert)[LAST]
    rest = case.naive.output(CLEAN, layer, None)[LAST] if not shared else 0 * kept
    agrees(together[0], case.forward(CLEAN, *case.naive.blocks[layer].writing(LAST, y - kept + rest)))


def test_knocking_out_where_another_layer_is_patched_takes_out_what_is_computed_there(case: Case) -> None:
    low, high = case.moe[0], case.moe[-1]
    (expert,) = case.routed(CLEAN, high, LAST)[:1]
    corrupt = Step("moe", low, (SUBJECT[1],), "restore", Value(CORRUPT))
    (got,) = case.sweep(Patch(CLEAN, (corrupt, Step("moe", high, (LAST,), "add", Own((expert,))))))
    before = case.naive.blocks[low].writing(SUBJECT[1], case.naive.y[CORRUPT][low][SUBJECT[1]])
    block, parts = case.naive.blocks[high], []
    for muting in ([], block.muting(expert), block.muting(None)):
        seen: list[torch.Tensor] = []
        case.forward(CLEAN, *before, *muting, *block.reading(lambda y, seen=seen: seen.append(y.clone())))
        parts.append(seen[0][LAST])
    agrees(got, case.forward(CLEAN, *before, *block.writing(LAST, parts[0] - (parts[1] - parts[2]))))


# ---- reroute: the router's own scores without the expert -------------------------------------------------------------


def test_reroute_masks_the_experts_router_and_no_other() -> None:
    """jetmoe takes the softmax of the selected scores only, so that masking scores is masking in top-k. Its attention
    has a router of the same width, which must be left alone."""
    case = Case("jetmoe")
    assert case.model.structure.reroutable
    for layer in (case.moe[0], case.moe[-1]):
        (expert,) = case.routed(CLEAN, layer, LAST)[:1]
        (got,) = case.sweep(Patch(CLEAN, (Step("router", layer, ALL, "mask", Masked((expert,))),)))

        def without(module: nn.Module, args: Any, kwargs: Any, output: torch.Tensor, expert: int = expert) -> Any:
            scores = output.clone()
            scores[..., expert] = -torch.inf
            return scores

        want = case.forward(CLEAN, (case.model.layers[layer].mlp.router.layer, without, False))
        agrees(got, want)
        assert (want - case.forward(CLEAN)).abs().max() > 0.001


def test_reroute_of_gemma4_renormalises_and_keeps_the_experts_scale() -> None:
    case = Case("gemma4_text")
    assert case.model.structure.reroutable
    layer = case.moe[-1]
    (expert,) = case.routed(CLEAN, layer, LAST)[:1]
    (got,) = case.sweep(Patch(CLEAN, (Step("router", layer, (LAST,), "mask", Masked((expert,))),)))
    router = case.model.layers[layer].router

    def reroute(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        probabilities, weights, index = (each.clone() for each in output)
        best = [e for e in probabilities[LAST].argsort(descending=True).tolist() if e != expert][: index.shape[1]]
        chosen = probabilities[LAST, best]
        index[LAST] = torch.tensor(best)
        weights[LAST] = chosen / chosen.sum() * router.per_expert_scale[best]
        return probabilities, weights, index

    agrees(got, case.forward(CLEAN, (router, reroute, False)))


@pytest.mark.parametrize("kind", ["axk1", "deepseek_v4", "doge", "laguna"])
def test_what_can_be_rerouted(kind: str) -> None:
    """Groups (axk1), token ids (deepseek_v4) or two keys (doge) choose the experts; laguna's top-k is plain."""
    assert MoeModel(build(kind)).structure.reroutable == (kind == "laguna")
