"""Finding out how a model may be run: layer by layer if that is right, by forward passes of the whole model if not."""

from __future__ import annotations

import contextlib
import functools

import torch

from .errors import ModelRefused, OutOfMemory
from .hooks import hooks, outputs_of
from .memory import bytes_per_token
from .moe import MoeModel, Watch
from .packing import packed_mode
from .room import ran_out
from .structure import PROBE_TOKENS, Probing, Structure, children_called, mixer, note_routing, probe_ids
from .weights import one_pass
from .whole import given_to

_OFF, _OFF_HALF = 1e-3, 0.05  # relative: above any rounding, below what a layer does


def probe(model: MoeModel) -> Structure:
    """The structure of a model, in one or two passes over the weights. Inside no lock of yours.

    Raises `ModelRefused` where the experts' contributions do not add up to the block's output.
    """
    try:
        return _by_layers(model) or probe_whole(model)
    except (ModelRefused, OutOfMemory):
        raise
    except Exception as error:  # noqa: BLE001 - layers that cannot be called alone fail in any way
        if ran_out(error):
            raise
        return probe_whole(model)


@torch.no_grad()
def _by_layers(model: MoeModel) -> Structure | None:
    """None where the layers, run one at a time, do not come to what a forward pass comes to."""
    with model.lock:
        with packed_mode(model.model), one_pass(model.layers) as hold:
            probing = Probing(model)
            for layer in range(model.n_layers):
                with hold(layer):
                    probing.step(layer)
            structure = probing.finish()
        with outputs_of(model.layers[-1]) as plain:  # one row alone: those of a batch should not meet
            model.model(input_ids=probe_ids(model)[:1], use_cache=False)
    ours = probing.hidden[:1]
    if plain[0].shape != ours.shape:
        return None
    error = (plain[0].float() - ours.float()).norm() / plain[0].float().norm()
    return structure if error <= (_OFF if model.dtype == torch.float32 else _OFF_HALF) else None


@torch.no_grad()
def probe_whole(model: MoeModel) -> Structure:
    """The structure of a model whose layers are not run one at a time. Raises `ModelRefused` (see `probe`)."""
    n = model.n_layers
    structure = Structure(
        packed=[False] * n, additive=dict.fromkeys(model.moe_layers, False),
        branch=dict.fromkeys(model.moe_layers), stream=[None] * n, local={}, tail={}, has_shared=False,
        sum_error=0.0, reroutable=True, top_k=0, bytes_per_token=1.0, prefix_cost=1.0, attention=[],
        ids_inside=False, arguments=None,
    )  # fmt: skip
    ids = probe_ids(model)
    with model.lock:
        calls: list[tuple] = []

        def layer_called(module, args, kwargs):  # noqa: ANN001, ANN202 - a torch hook
            calls.append((args, kwargs))

        with contextlib.ExitStack() as stack:
            watches = {
                layer: stack.enter_context(Watch(block, model.n_experts)) for layer, block in model.blocks.items()
            }
            called = [stack.enter_context(children_called(layer)) for layer in model.layers]
            handles = [layer.register_forward_pre_hook(layer_called, with_kwargs=True) for layer in model.layers]
            stack.enter_context(hooks(*handles))
            rows = _finals(model, ids)
        if len(calls) != n:
            raise ModelRefused(
                f"The model's {n} layers are called {len(calls)} times in a forward pass.",
                "Its family is not supported.",
            )
        for layer, watch in watches.items():
            note_routing(model, structure, layer, watch)
        shape = torch.Size((*ids.shape, model.hidden))
        for at, (layer, before) in enumerate(zip(model.layers, called, strict=True)):
            again = functools.partial(_call_changed, layer, *calls[at])
            structure.attention.append(mixer(layer, model.blocks.get(at), before, again, shape))
        structure.rows_together = _same(rows[:1], _finals(model, ids[:1])) and _same(rows[1:], _finals(model, ids[1:]))
        structure.causal = _is_causal(model, ids[:1])
        structure.ids_inside = not _same(_finals(model, ids[:1], rows), _finals(model, ids[1:], rows))
        structure.bytes_per_token = bytes_per_token(
            lambda tokens: _finals(model, ids[:1].expand(max(1, tokens // PROBE_TOKENS), -1)),
            small=4 * PROBE_TOKENS, large=12 * PROBE_TOKENS,
        )  # fmt: skip
    return structure


def _call_changed(layer: torch.nn.Module, args: tuple, kwargs: dict) -> None:
    """Call a layer as it was called, with other hidden states at all positions but the last."""
    hidden = given_to(args, kwargs)
    others = hidden.roll(1, -1)
    others[:, -1] = hidden[:, -1]
    if args:
        layer(others, *args[1:], **kwargs)
    else:
        layer(**{**kwargs, "hidden_states": others})


def _finals(model: MoeModel, ids: torch.Tensor, embedded: torch.Tensor | None = None) -> torch.Tensor:
    """What the unembedding receives at every position, [n, T, d]. `embedded`: any values, which the embeddings are
    replaced by (cyclically, as many as it takes)."""
    seen: list[torch.Tensor] = []

    def replaced(module, args, output):  # noqa: ANN001, ANN202 - a torch hook
        assert embedded is not None
        return embedded[:1].to(output.dtype).expand(output.shape)

    handles = [model.unembedding.register_forward_pre_hook(lambda module, args: seen.append(args[0]))]
    if embedded is not None:
        handles.append(model.embedding.register_forward_hook(replaced))
    with hooks(*handles):
        model.model(input_ids=ids, use_cache=False)
    return seen[0]


def _is_causal(model: MoeModel, ids: torch.Tensor) -> bool:
    other = ids.clone()
    other[:, -1] = ids[:, 0]
    return _same(_finals(model, ids)[:, :-1], _finals(model, other)[:, :-1])


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a.float() - b.float()).norm() <= 1e-3 * a.float().norm())
