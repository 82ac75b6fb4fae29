"""The noise floor of a model in its number format: how far a rescue moves when the same patch is run another way.

Some patches of a few facts are run twice, layer by layer in step: all together; and in reversed order, a few rows at a
time, every decoder layer's output rounded once more,

    h ← round(h · (1 + u·ξ)),  ξ uniform in [−1, 1],  u = half the spacing of the dtype's numbers at 1,

each time freshly drawn, by as much as another kernel, batch or attention backend may round differently. (Batches alone
would not do: on a CPU, half-precision kernels often give the same bits whatever the batch, and are as far off as ever.)
Both runs are the same in exact arithmetic. With rescue_i and rescue′_i of patch i in the two runs, in logits,

    noise floor = 95th percentile over i of |rescue_i − rescue′_i|,

and the largest of them is kept too: where a router's choice is nearly a tie, rounding flips it and moves more.
Knows sweeps, not checks or pages.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from .base import BaseLayer, Run
from .corruption import draw_noise
from .errors import ExpertScopeError
from .hooks import hooks, retuple, untuple
from .moe import MoeModel
from .patches import Patch, expert_patch, layer_patch
from .prompts import prepare
from .requests import Fact
from .structure import Structure
from .weights import one_pass
from .whole import pass_for

PERCENTILE = 0.95
_FACTS = (
    Fact("The capital of {} is", "France", "Paris", "Rome", case_id=1),
    Fact("{} was born in the city of", "Albert Einstein", "Ulm", "London", case_id=2),
    Fact("The official language of {} is", "Brazil", "Portuguese", "German", case_id=3),
    Fact("{} is a city in", "Kyoto", "Japan", "Italy", case_id=4),
)
_TOKENS, _SUBJECT = 8, (2, 3)  # of arbitrary tokens, for a model without a tokenizer
_LAYERS = 6
_NOISE_LEVEL = 3.0
_TOGETHER = 8192


@dataclass(frozen=True)
class NoiseFloor:
    """Differences of rescue in logits: `rescue` is the 95th percentile, `largest` the largest of `patches` of them."""

    rescue: float
    largest: float
    patches: int

    def to_dict(self) -> dict[str, Any]:
        """JSON values; `NoiseFloor(**...)` reads them back."""
        return asdict(self)


@dataclass(frozen=True)
class _Probe:
    """A fact as token ids: its clean run, its corrupt run, the positions that are patched, its objects."""

    clean: Run
    corrupt: Run
    positions: tuple[int, int]  # last subject token, last token
    objects: tuple[int, int]


def measure(model: MoeModel) -> NoiseFloor:
    """The noise floor, in one pass of its own over the weights. Inside no lock of yours."""
    with model.lock, torch.no_grad(), model.structure.mode(model):
        with Repeats(model, model.structure) as repeats, one_pass(model.layers) as hold:
            for layer in range(model.n_layers):
                with hold(layer):
                    repeats.step(layer)
        return repeats.finish()


class Repeats:
    """Both runs under way. Inside the model's lock and `Structure.mode`: enter it, call `step(l)` for l = 0, 1, ... in
    turn, leave it, ask for the result. Of `structure` only what concerns the layers so far has to be known."""

    def __init__(self, model: MoeModel, structure: Structure) -> None:
        self._model, self._probes = model, _probes(model)
        step = max(1, (len(model.moe_layers) - 1) // (_LAYERS - 1))
        self._patched = set(model.moe_layers[::-step][:_LAYERS])
        self._patches: dict[int, list[Patch]] = {}
        self._whole = structure.whole
        runs = [run for probe in self._probes for run in (probe.clean, probe.corrupt)]
        apart = 3 * max(run.length for run in runs)
        self._together = pass_for(model, structure, runs, self._choose, chunk_tokens=_TOGETHER, keep=False)
        self._apart = pass_for(model, structure, runs[::-1], self._again, chunk_tokens=apart, keep=False)
        self._objects = [probe.objects for probe in self._probes for _ in range(2)]
        self._generator = torch.Generator("cpu").manual_seed(0)

    def __enter__(self) -> Repeats:
        return self

    def __exit__(self, *exc: object) -> None:
        for each in (self._together, self._apart):
            each.__exit__(*exc)

    def step(self, layer: int) -> None:
        """Take both through one layer."""
        self._together.step(layer)
        moving = self._model.layers if self._whole else [self._model.layers[layer]]
        with contextlib.ExitStack() as stack:
            for each in moving:
                stack.enter_context(_nudged(each, self._generator, self._model.dtype))
            self._apart.step(layer)

    def finish(self) -> NoiseFloor:
        """The result, once every layer had its step."""
        first, second = self._together.outcome(self._objects), self._apart.outcome(self._objects[::-1])
        number = {patch: i for i, patch in enumerate(second.patches)}
        again = [number[_mirrored(patch, len(self._objects))] for patch in first.patches]
        owners = torch.tensor([patch.run for patch in first.patches])
        rescues = _contrast(first.patched) - _contrast(first.runs)[owners]
        repeated = _contrast(second.patched)[again] - _contrast(second.runs).flip(0)[owners]
        moved = (rescues - repeated).abs()
        return NoiseFloor(moved.quantile(PERCENTILE).item(), moved.max().item(), len(moved))

    def _choose(self, base: BaseLayer) -> list[Patch]:
        """At some MoE layers, at the last subject token and at the last token: the layer patch, and the expert patch
        of the largest router weight."""
        found = []
        for i, probe in enumerate(self._probes if base.layer in self._patched else ()):
            ends = {"clean": 2 * i, "corrupt": 2 * i + 1, "layer": base.layer}
            for pos in dict.fromkeys(probe.positions):
                expert = int(base.index[2 * i][pos][base.weight[2 * i][pos].float().argmax()])
                found += [layer_patch(**ends, pos=pos), expert_patch(**ends, pos=pos, expert=expert)]
        self._patches[base.layer] = found
        return found

    def _again(self, base: BaseLayer) -> list[Patch]:
        return [_mirrored(patch, len(self._objects)) for patch in self._patches[base.layer][::-1]]


def _contrast(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, 0].double() - logits[:, 1].double()


def _mirrored(patch: Patch, n_runs: int) -> Patch:
    """The same patch where the runs stand in reversed order."""
    (step,) = patch.steps
    options = {"clean": n_runs - patch.run, "corrupt": n_runs - 1 - patch.run}
    options |= {"layer": step.layer, "pos": step.positions[0]}
    if step.mode == "restore":
        return layer_patch(**options)
    return expert_patch(**options, expert=step.source.experts[0])  # type: ignore[union-attr]


@contextlib.contextmanager
def _nudged(layer: nn.Module, generator: torch.Generator, dtype: torch.dtype) -> Iterator[None]:
    """Every output of `layer` is rounded once more, as numbers of `dtype` are (see the module's text): a family may
    keep its stream in fp32 while its sublayers compute in half precision."""

    def nudge(module, args, output):  # noqa: ANN001, ANN202 - a torch hook
        hidden = untuple(output)
        unit = max(torch.finfo(hidden.dtype).eps, torch.finfo(dtype).eps) / 2
        drawn = torch.rand(hidden.shape, generator=generator, dtype=torch.float64).to(hidden.device)
        return retuple(output, (hidden.double() * (1 + unit * (2 * drawn - 1))).to(hidden.dtype))

    with hooks(layer.register_forward_hook(nudge)):
        yield


def _probes(model: MoeModel) -> list[_Probe]:
    found = []
    for fact in _FACTS:
        ids, subject, objects = _tokens(model, fact)
        sigma = _NOISE_LEVEL * model.embedding_std
        options = {"draws": 1, "n_subject": len(subject), "hidden": model.hidden, "sigma": sigma}
        (noise,) = draw_noise(seed=0, case_id=fact.case_id, **options)
        found.append(_Probe(Run(ids), Run(ids, noise, subject), (subject[-1], len(ids) - 1), objects))
    return found


def _tokens(model: MoeModel, fact: Fact) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, int]]:
    """(token ids, subject positions, object ids) of the fact, or arbitrary ones where it cannot be tokenised."""
    if model.tokenizer is not None:
        with contextlib.suppress(ExpertScopeError):
            prepared = prepare(model.tokenizer, fact, first_token=True)
            ids, objects = tuple(prepared.input_ids), (prepared.true_id, int(prepared.foil_id or 0))
            if max(*ids, *objects) < model.vocabulary:
                return ids, tuple(prepared.subject_positions), objects
    size = min(model.vocabulary, int(model.config.vocab_size))
    ids = tuple(((torch.arange(_TOKENS) * 7919 + 101 * fact.case_id) % size).tolist())
    return ids, _SUBJECT, (size // 3, size // 2)
