"""nnterp's standardised model: one trace per cell through its accessors."""

from __future__ import annotations

import torch

from ..case import OBJECTS, SUBJECT, Case
from .method import HeatMap, Method


def _prepare(case: Case) -> HeatMap:
    import nnsight
    from nnterp import StandardizedTransformer

    model = StandardizedTransformer(case.own_model(), tokenizer=case.tokenizer, check_renaming=False)

    @torch.no_grad()
    def heat_map() -> torch.Tensor:
        with model.trace(case.ids, use_cache=False, logits_to_keep=1):
            clean = nnsight.save([model.mlps_output[layer].clone() for layer in range(model.num_layers)])
        cells = []
        for noise in case.noise:
            for layer, y in enumerate(clean):
                for pos in case.positions:
                    with model.trace(case.ids, use_cache=False, logits_to_keep=1):
                        model.token_embeddings[:, SUBJECT] += noise
                        model.mlps_output[layer][:, pos] = y[:, pos]
                        logits = model.logits[0, -1, OBJECTS].save()
                    cells.append(logits)
        return torch.stack(cells).view(case.draws, len(clean), len(case.positions), 2)

    return heat_map


CELLS = Method(
    key="nnterp",
    name="nnterp",
    per_cell="one trace of the corrupt prompt that sets `mlps_output[layer]` at the position",
    prepare=_prepare,
    role="library",
    package="nnterp",
    folder="nnterp",
)
