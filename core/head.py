"""From final hidden states to logits, through the model's own final norm, scaling and soft-capping.

The decoder layers are stubbed to hand the states over; the unembedding is stubbed to take its product in fp32
(protocol.md, "contrast": a bf16 logit of size 16-32 has steps of 0.125). All else is the model's own forward.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from accelerate.utils import align_module_device

from .by_rows import RowTable, rows_per_piece, table_of
from .hooks import stub
from .moe import MoeModel
from .room import Room

_ROWS = 2048


@torch.no_grad()
def object_logits(model: MoeModel, states: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Logits of `ids` [R, m] for states after the last layer [R, d]: [R, m], fp32, on the CPU."""
    with _unembedding(model) as (weight, bias):

        def some(at: slice) -> torch.Tensor:
            chosen = ids[at].to(weight.device)
            rows = weight[chosen].float()  # [r, m, d]
            shift = 0.0 if bias is None else bias[chosen].float()

            def product(hidden):  # noqa: ANN001, ANN202 - stands in for the unembedding
                return ((hidden.float().to(rows.device) * rows).sum(-1) + shift)[:, None]

            return _through_head(model, states[at], product)

        return _by_rows(states.shape[0], _ROWS, some, ids.shape[1])


@torch.no_grad()
def all_logits(model: MoeModel, states: torch.Tensor, *, normed: bool = False) -> torch.Tensor:
    """Logits of the whole vocabulary for states [R, d]: [R, V], fp32, on the CPU. For few rows.

    `normed`: the states are what the unembedding receives, the final norm behind them.
    """
    with _unembedding(model) as (weight, bias):

        def some(at: slice) -> torch.Tensor:
            def product(hidden):  # noqa: ANN001, ANN202
                hidden = (states[at, None] if normed else hidden).float().to(weight.device)
                logits = _products(weight, hidden)
                return logits if bias is None else logits + bias.float()

            return _through_head(model, states[at], product)

        return _by_rows(states.shape[0], _ROWS, some, weight.shape[0])


def head_graph(model: MoeModel, states: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As `object_logits`, to be differentiated: the logits [R, m] and, fp32, what the unembedding was given [R, 1, d].

    Both hang on `states` in autograd's graph.
    """
    seen: list[torch.Tensor] = []
    with _unembedding(model) as (weight, bias):
        chosen = ids.to(weight.device)
        rows = weight[chosen].float()
        shift = 0.0 if bias is None else bias[chosen].float()

        def product(hidden):  # noqa: ANN001, ANN202 - stands in for the unembedding
            seen.append(hidden.float())
            return ((seen[0].to(rows.device) * rows).sum(-1) + shift)[:, None]

        return _through_head(model, states, product), seen[0]


@torch.no_grad()
def given_to_unembedding(model: MoeModel, states: torch.Tensor) -> torch.Tensor:
    """What the unembedding receives for states after the last layer [R, d]: [R, D], fp32, on the CPU."""
    parts = []
    for some in states.split(_ROWS):
        ids = torch.zeros((some.shape[0], 1), dtype=torch.long)
        try:
            given = head_graph(model, some.float(), ids)[1]
        except RuntimeError:  # a norm that takes its own number format only
            given = head_graph(model, some, ids)[1]
        parts.append(given[:, -1].cpu())
    return torch.cat(parts)


@torch.no_grad()
def unembed(model: MoeModel, vectors: torch.Tensor, *, biased: bool = False) -> torch.Tensor:
    """The unembedding's matrix times vectors that it might receive [n, D], with or without its bias: [n, V], fp32, on
    the CPU."""
    with _unembedding(model) as (weight, bias):
        out = _products(weight, vectors.float().to(weight.device))
        return (out + bias.float() if biased and bias is not None else out).cpu()


def logit_slopes(model: MoeModel, raw: torch.Tensor) -> torch.Tensor:
    """Derivatives of the logits by what the unembedding puts out (a scale, a soft-cap), where it puts out `raw` [R, V]:
    [R, V], fp32, on the CPU. For few rows."""
    with _unembedding(model) as (weight, _), torch.enable_grad():
        leaf = raw[:, None].float().to(weight.device).detach().requires_grad_()
        states = torch.zeros((len(raw), model.hidden), device=model.device, dtype=model.dtype)  # nobody heeds them
        total = _through_head(model, states, lambda hidden: leaf).sum()
        return torch.autograd.grad(total, leaf)[0][:, 0].cpu()


def _products(weight: torch.Tensor | RowTable, hidden: torch.Tensor) -> torch.Tensor:
    """hidden [..., D] times the table [V, D], some of its rows at a time: [..., V]."""
    cuts = range(0, weight.shape[0], rows_per_piece(weight.shape[1]))
    return torch.cat([hidden @ weight[v : v + cuts.step].float().T for v in cuts], -1)


def _by_rows(n: int, most: int, some: Callable[[slice], torch.Tensor], width: int) -> torch.Tensor:
    """`some` of all n rows one after the other, [n, width]: at most `most` at a time, fewer where memory runs out."""
    room, out, at = Room(most), [torch.zeros(0, width)], 0

    def go_on() -> None:
        nonlocal at
        while at < n:
            out.append(some(slice(at, at + room.tokens)))
            at += room.tokens

    room.within(go_on)
    return torch.cat(out)


@contextlib.contextmanager
def _unembedding(model: MoeModel) -> Iterator[tuple[torch.Tensor | RowTable, torch.Tensor | None]]:
    """The unembedding's weight [V, d] and bias, fetched for a moment where accelerate keeps them elsewhere."""
    module, table = model.unembedding, table_of(model.unembedding)
    away = module.weight.device.type == "meta"
    with contextlib.ExitStack() as stack:
        stack.enter_context(model.lock)
        if not isinstance(table, RowTable):
            stack.enter_context(align_module_device(module, torch.device("cpu") if away else None))
            table = module.weight
        yield table, getattr(module, "bias", None)


def _through_head(model: MoeModel, states: torch.Tensor, product: Callable[..., torch.Tensor]) -> torch.Tensor:
    """Inside the model's lock: for a moment its layers and its unembedding do something else.

    Where the layers cannot be left out (`MoeModel.whole`), they run on a few tokens for nothing, and the states, which
    are what the unembedding receives, replace what it would receive."""
    ids = torch.zeros((states.shape[0], 1), dtype=torch.long, device=model.device)
    with contextlib.ExitStack() as stack:
        if model.whole:
            stack.enter_context(stub(model.unembedding, lambda hidden: product(states[:, None])))
            return model.model(input_ids=ids[:1].expand(1, 4), use_cache=False).logits[:, -1].float().cpu()
        for layer in model.layers:
            stack.enter_context(stub(layer, lambda hidden=None, *args, **kwargs: states[:, None]))
        stack.enter_context(stub(model.unembedding, product))
        logits = model.model(input_ids=ids, use_cache=False).logits
    return logits[:, -1].float().cpu()
