"""Before a model is traced: is the sweep right on it? If not, it is refused in plain words.

Two checks. On a tiny random copy of the model's configuration, cells and expert patches of the sweep against naive
forward hooks. On the real weights, Σ contributions + shared = block output (while probing the structure), a no-op
patch, and the sweep's clean and corrupt logits against a plain forward of both runs as a batch; the noise floor is
measured along the way. All of it while that forward goes through the layers, so that the weights are passed over once.
The verdict is stored per model and library versions, so that this runs once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from .base import Run
from .corruption import draw_noise, noised
from .errors import ExpertScopeError, ModelRefused, OutOfMemory
from .families import Block
from .head import all_logits
from .hooks import hooks
from .moe import MoeModel
from .noise_floor import NoiseFloor, Repeats
from .packing import packed_mode
from .patches import Nothing, Patch, Step, expert_patch, layer_patch
from .probing import probe_whole
from .progress import SILENT, Progress
from .requests import digest
from .room import ran_out
from .shrink import shrunken_model
from .structure import Probing, Structure
from .sweep import Pass, listed, sweep
from .weights import one_pass
from .whole import pass_for

_TOKENS, _SUBJECT = 8, (2, 3)
_SMALL_LIMIT = 2e-4  # on the copy, relative to how far the patches move the logits
_CHUNK = 8192
_VERSION = 7  # of the checks and of what they find out; a stored verdict of another version is not used


@dataclass(frozen=True)
class Check:
    """One comparison: the largest difference seen, and what is allowed."""

    name: str
    difference: float
    allowed: float

    @property
    def passed(self) -> bool:
        return self.difference <= self.allowed  # a NaN does not pass


def ensure_checked(model: MoeModel, store: Any = None, progress: Progress = SILENT) -> list[Check]:
    """Check the model unless the store says that it passed before; sets its structure. Raises `ModelRefused`."""
    key = digest("checks", _VERSION, model.identity)
    noted = None if store is None else store.get_verdict(key)
    if noted is not None:
        checks = [Check(**check) for check in noted["checks"]]
        _refuse_failures(checks)
        model.structure = Structure.from_dict(noted["structure"], model)
        _refuse_rereading(model, model.structure.whole)
        model.embedding_std = noted["embedding_std"]
        model.noise_floor = NoiseFloor(**noted["noise_floor"])
        return checks
    try:
        checks = _run_checks(model, progress)
    except ExpertScopeError:
        raise
    except Exception as error:  # noqa: BLE001 - a family can fail in any way; it is refused in words
        if ran_out(error):
            raise OutOfMemory() from error
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else ""
        raise ModelRefused(
            f"The load-time checks cannot run on this model ({type(error).__name__}: {reason}).",
            "Its family is not supported.",
        ) from error
    structure = model.structure
    if store is not None:
        noted = {
            "checks": [asdict(check) for check in checks], "structure": structure.to_dict(),
            "embedding_std": model.embedding_std, "noise_floor": model.noise_floor.to_dict(),
        }  # fmt: skip
        store.put_verdict(key, model.label, noted)
    _refuse_failures(checks)
    return checks


def _run_checks(model: MoeModel, progress: Progress) -> list[Check]:
    progress.update(0, 2, "checking the model")
    checks, whole = check_copy(model, progress)
    _refuse_rereading(model, whole)
    progress.update(1, 2, "checking the model")
    return checks + check_weights(model, whole=whole)


def _refuse_rereading(model: MoeModel, whole: bool) -> None:
    """Forward passes of the whole model, one for every few rows, would each read all layers from the disk."""
    if whole and model.weights is not None:
        raise ModelRefused(
            "This family is traced by forward passes of the whole model, which would each read it from the disk.",
            "It has to fit into memory: choose placement memory and a smaller dtype, or a machine with more memory.",
        )


def _refuse_failures(checks: list[Check]) -> None:
    for check in checks:
        if not check.passed:
            raise ModelRefused(
                f"The model failed a load-time check ({check.name}: difference {check.difference:.2g}, allowed "
                f"{check.allowed:.2g}).",
                "A trace of it would be wrong, so it is refused. Choose another model, or report its family.",
            )


# ---- the copy against naive hooks ----------------------------------------------------------------------------------


def check_copy(model: MoeModel, progress: Progress = SILENT) -> tuple[list[Check], bool]:
    """Every layer patch, and every expert patch at the last subject token and the last token, on a tiny copy.

    Also tells whether they are right only by forward passes of the whole model (see `core.whole`).
    """
    small = MoeModel(shrunken_model(model.config, attention=model.implementation()["attention"]))
    found = compare_with_hooks(small, progress=progress)
    if not small.whole and not all(check.passed for check in found):
        with contextlib.suppress(ModelRefused, RuntimeError, ValueError, AttributeError):  # if so, the first holds
            small.structure = probe_whole(small)
            slower = compare_with_hooks(small, progress=progress)
            if all(check.passed for check in slower):
                return slower, True
        return found, False
    return found, small.whole


def compare_with_hooks(model: MoeModel, *, progress: Progress = SILENT) -> list[Check]:
    """The sweep's patched logits on this (small) model against one hooked forward per patch."""
    runs, ids = _probe_runs(model)
    objects = [_objects(model)] * 2
    positions = (_SUBJECT[-1], _TOKENS - 1)
    seen: dict[str, list[torch.Tensor]] = {"cells": [], "experts": []}

    def plan(base: Any) -> list[Patch]:
        if base.layer not in model.blocks:
            return []
        patches = [layer_patch(clean=0, corrupt=1, layer=base.layer, pos=pos) for pos in range(_SUBJECT[0], _TOKENS)]
        for pos in positions:
            routed = sorted({*base.index[0][pos].tolist(), *base.index[1][pos].tolist()})
            patches += [
                expert_patch(clean=0, corrupt=1, layer=base.layer, pos=pos, expert=expert)
                for expert in routed
                if expert < model.n_experts
            ]
        return patches

    outcome = sweep(model, model.structure, runs, plan, objects=objects, chunk_tokens=_CHUNK, keep=False)
    naive = _Naive(model, ids, runs[1])
    for patch, got in zip(outcome.patches, outcome.patched, strict=True):
        progress.check()
        (step,) = patch.steps
        expert = getattr(step.source, "experts", (None,))[0]
        want = naive.patched(step.layer, step.positions[0], expert)[list(objects[0])]
        seen["cells" if expert is None else "experts"].append(torch.stack([got, want]))
    found = []
    for name, pairs in seen.items():
        values = torch.stack(pairs)  # [patches, (sweep, hooks), objects]
        reach = (values[:, 1].amax(0) - values[:, 1].amin(0)).max().item()
        worst = (values[:, 0] - values[:, 1]).abs().max().item()
        found.append(Check(f"{name} against hooks", worst, _SMALL_LIMIT * reach))
    return found


class _Naive:
    """Plain hooked forwards, one per patch: slow and obvious."""

    def __init__(self, model: MoeModel, ids: torch.Tensor, corrupt: Run) -> None:
        self._model, self._ids, self._corrupt = model, ids, corrupt
        self._runs = [self._record(None), self._record(corrupt)]

    def _forward(self, corrupt: Run | None) -> torch.Tensor:
        noise, subject = (corrupt.noise, corrupt.subject) if corrupt else (None, ())
        with torch.no_grad(), noised(self._model.embedding, [noise], [subject]):
            return self._model.model(input_ids=self._ids, use_cache=False).logits[0, -1].float().cpu()

    def _record(self, corrupt: Run | None) -> dict[int, _Recorded]:
        """By layer, what its MoE block did in one run."""
        out = {layer: _Recorded() for layer in self._model.moe_layers}
        handles = []
        for layer, block in self._model.blocks.items():
            handles += block.reading(lambda y, seen=out[layer]: setattr(seen, "y", _flat(y).clone()))
            for part in (block.module, block.beside):
                if part is not None:
                    handles.append(part.register_forward_pre_hook(out[layer].called, with_kwargs=True))
        with hooks(*handles):
            self._forward(corrupt)
        return out

    def _contribution(self, run: int, layer: int, pos: int, expert: int) -> torch.Tensor:
        """c[l, t, e]: the block with this expert alone, minus the block with none."""
        seen, block = self._runs[run][layer], self._model.blocks[layer]
        with torch.no_grad():
            return (seen.again(block, expert) - seen.again(block, None))[pos]

    def patched(self, layer: int, pos: int, expert: int | None) -> torch.Tensor:
        """Logits [V] of the corrupt run with one layer patch (`expert` None) or one expert patch."""
        clean, corrupt = (run[layer].y[pos] for run in self._runs)
        if expert is None:
            wanted = clean
        else:
            wanted = corrupt + self._contribution(0, layer, pos, expert) - self._contribution(1, layer, pos, expert)

        def change(y: torch.Tensor) -> torch.Tensor:
            flat = _flat(y).clone()
            flat[pos] = wanted
            return flat.view(y.shape)

        block = self._model.blocks[layer]
        with hooks(*block.changing(change), *block.silencing([pos])):
            return self._forward(self._corrupt)


class _Recorded:
    """One block in one run: its output `y` [T, d], and the calls of its parts, so that they can be made again."""

    y: torch.Tensor

    def __init__(self) -> None:
        self._calls: list[tuple[Any, tuple, dict]] = []

    def called(self, module: Any, args: tuple, kwargs: dict) -> None:
        """A forward-pre-hook."""
        self._calls.append((module, args, kwargs))

    def again(self, block: Block, expert: int | None) -> torch.Tensor:
        """y [T, d] when every router weight but that of `expert` (None: every one) is zero."""
        seen: list[torch.Tensor] = []
        with hooks(*block.pattern.muting(block, expert), *block.reading(seen.append)):
            for module, args, kwargs in self._calls:
                module(*args, **kwargs)
        return _flat(seen[0])


def _flat(hidden: torch.Tensor) -> torch.Tensor:
    return hidden.reshape(-1, hidden.shape[-1])


# ---- the real weights ----------------------------------------------------------------------------------------------


def check_weights(model: MoeModel, *, whole: bool = False) -> list[Check]:
    """Find out the model's structure and noise floor, and hold the sweep against a plain forward, on its own weights.

    Each layer's weights are visited once, except where everything runs by forward passes of the `whole` model. Raises
    `ModelRefused` where contributions do not add up to a block's output.
    """
    runs, ids = _probe_runs(model)
    patches = [
        Patch(run, (Step("moe", layer, (pos,), "add", Nothing()),))
        for run in (0, 1)
        for layer in (model.moe_layers[0], model.moe_layers[-1])
        for pos in (_SUBJECT[0], _TOKENS - 1)
    ]
    objects = [_objects(model)] * 2
    with model.lock, torch.no_grad():
        plain, swept, repeats = (_check_whole if whole else _check_by_layers)(model, runs, ids, patches)
        with model.structure.mode(model):
            outcome = swept.outcome(objects)
            model.noise_floor = repeats.finish()
    logits, ours = all_logits(model, plain, normed=True), all_logits(model, outcome.final)
    half = model.dtype != torch.float32
    # half precision: rounding differs with the shapes of the matrix products; a wrong sweep is off by whole spreads
    spread = logits.std(-1).max().item()
    allowed = 0.15 * spread if half else 1e-3 * max(1.0, spread)
    noop = max(
        (outcome.patched[i] - logits[patch.run, list(objects[0])]).abs().max().item()
        for i, patch in enumerate(outcome.patches)
    )
    return [
        Check("Σ contributions + shared = block output", model.structure.sum_error, 2.0**-7 if half else 5e-6),
        Check("clean logits against a plain forward", (ours[0] - logits[0]).abs().max().item(), allowed),
        Check("corrupt logits against a plain forward", (ours[1] - logits[1]).abs().max().item(), allowed),
        Check("a patch that changes nothing", noop, allowed),
    ]


_Underway = tuple[torch.Tensor, Any, Repeats]
"""What a plain forward comes to [runs, d], and two passes that every layer went through."""


def _check_by_layers(model: MoeModel, runs: list[Run], ids: torch.Tensor, patches: list[Patch]) -> _Underway:
    """Everything in step with one plain forward; sets the structure."""
    with packed_mode(model.model):
        probing = Probing(model)
        swept = Pass(model, probing.structure, runs, listed(patches), chunk_tokens=_CHUNK, keep=False)
        repeats = Repeats(model, probing.structure)

    def visit(layer: int) -> None:
        with packed_mode(model.model):
            probing.step(layer)
            swept.step(layer)
            repeats.step(layer)

    with swept, repeats, _visiting(model, visit):
        plain = _plain_finals(model, ids, runs)
    model.structure = probing.finish()
    return plain, swept, repeats


def _check_whole(model: MoeModel, runs: list[Run], ids: torch.Tensor, patches: list[Patch]) -> _Underway:
    """The same, one after the other."""
    model.structure = probe_whole(model)
    swept = pass_for(model, model.structure, runs, listed(patches), chunk_tokens=_CHUNK, keep=False)
    repeats = Repeats(model, model.structure)
    with swept, repeats:
        for layer in range(model.n_layers):
            swept.step(layer)
            repeats.step(layer)
    return torch.cat([_plain_finals(model, ids, [run]) for run in runs]), swept, repeats


@contextlib.contextmanager
def _visiting(model: MoeModel, visit: Callable[[int], None]) -> Iterator[None]:
    """While a plain forward runs inside: `visit(l)` as soon as layer l has run, and before layer l + 1 does.

    A layer's weights are fetched once for both.
    """
    coming = iter(range(model.n_layers))
    busy = False

    def behind(layer: int) -> Callable:
        def hook(module, args, output):  # noqa: ANN001, ANN202 - a torch hook
            nonlocal busy
            if busy:  # the visit itself calls the layer
                return
            if next(coming, None) != layer:
                raise ModelRefused("The model's layers do not run in their order.", "Its family is not supported.")
            busy = True
            try:
                visit(layer)
            finally:
                busy = False
                held.close()

        return hook

    def ahead(layer: int) -> Callable:
        def hook(module, args):  # noqa: ANN001, ANN202 - a torch hook
            if not busy:
                held.enter_context(hold(layer))

        return hook

    numbered = list(enumerate(model.layers))
    with one_pass(model.layers) as hold, contextlib.ExitStack() as held, hooks(
        *(module.register_forward_pre_hook(ahead(layer)) for layer, module in numbered),
        *(module.register_forward_hook(behind(layer)) for layer, module in numbered),
    ):
        yield


def _plain_finals(model: MoeModel, ids: torch.Tensor, runs: list[Run]) -> torch.Tensor:
    """What the unembedding receives at the last position in one plain forward of the runs as a batch, [runs, d]."""
    seen: list[torch.Tensor] = []
    handle = model.unembedding.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    noise = noised(model.embedding, [run.noise for run in runs], [run.subject for run in runs])
    with hooks(handle), noise:
        model.model(input_ids=ids.expand(len(runs), -1), use_cache=False)
    return seen[0][:, -1]


def _probe_runs(model: MoeModel) -> tuple[list[Run], torch.Tensor]:
    """A clean and a corrupt run over arbitrary tokens."""
    ids = (torch.arange(_TOKENS) * 7919 + 101).remainder(int(model.config.vocab_size))
    noise = draw_noise(
        seed=0, case_id=0, draws=1, n_subject=len(_SUBJECT), hidden=model.hidden, sigma=3 * model.embedding_std
    )  # fmt: skip
    tokens = tuple(ids.tolist())
    return [Run(tokens), Run(tokens, noise[0], _SUBJECT)], ids[None].to(model.device)


def _objects(model: MoeModel) -> tuple[int, int]:
    vocabulary = int(model.config.vocab_size)
    return vocabulary // 3, vocabulary // 2
