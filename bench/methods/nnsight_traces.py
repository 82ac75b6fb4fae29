"""nnsight as its documentation patches: one trace per cell (its "canonical pattern"), and the positions of a layer as
invokes of one trace (its "layer × position map"). The clean outputs are saved once."""

from __future__ import annotations

import torch

from ..case import OBJECTS, SUBJECT, Case
from .method import HeatMap, Method


def _wrapped(case: Case):  # noqa: ANN202 - an nnsight model
    from nnsight import TransformersModel

    return TransformersModel(case.own_model(), task="text-generation", tokenizer=case.tokenizer)


def _clean(model, case: Case) -> list[torch.Tensor]:  # noqa: ANN001
    import nnsight

    with model.trace(case.ids, use_cache=False, logits_to_keep=1):
        outputs = nnsight.save([layer.mlp.output.clone() for layer in model.model.layers])
    return outputs


def _prepare_cells(case: Case) -> HeatMap:
    model = _wrapped(case)

    @torch.no_grad()
    def heat_map() -> torch.Tensor:
        clean = _clean(model, case)
        cells = []
        for noise in case.noise:
            for layer, y in enumerate(clean):
                for pos in case.positions:
                    with model.trace(case.ids, use_cache=False, logits_to_keep=1):
                        model.model.embed_tokens.output[:, SUBJECT] += noise
                        model.model.layers[layer].mlp.output[:, pos] = y[:, pos]
                        logits = model.output.logits[0, -1, OBJECTS].save()
                    cells.append(logits)
        return torch.stack(cells).view(case.draws, len(clean), len(case.positions), 2)

    return heat_map


def _prepare_invokes(case: Case) -> HeatMap:
    model = _wrapped(case)

    @torch.no_grad()
    def heat_map() -> torch.Tensor:
        import nnsight

        clean = _clean(model, case)
        cells = []
        for noise in case.noise:
            for layer, y in enumerate(clean):
                with model.trace(use_cache=False, logits_to_keep=1) as tracer:
                    row = nnsight.save([])
                    for pos in case.positions:
                        with tracer.invoke(case.ids):
                            model.model.embed_tokens.output[:, SUBJECT] += noise
                            model.model.layers[layer].mlp.output[:, pos] = y[:, pos]
                            row.append(model.output.logits[0, -1, OBJECTS])
                cells += row
        return torch.stack(cells).view(case.draws, len(clean), len(case.positions), 2)

    return heat_map


CELLS = Method(
    key="nnsight",
    name="nnsight",
    per_cell="one trace of the corrupt prompt that writes the block's output at the position",
    prepare=_prepare_cells,
    role="library",
    package="nnsight",
)
INVOKES = Method(
    key="nnsight_invokes",
    name="nnsight, a layer's cells as invokes",
    per_cell="one invoke: one trace per layer holds all its cells as one batched forward",
    prepare=_prepare_invokes,
    role="batched",
    package="nnsight",
)
