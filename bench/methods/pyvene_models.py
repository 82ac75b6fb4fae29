"""pyvene: one intervenable model per layer, one call of it per cell, with the clean value given (not run again)."""

from __future__ import annotations

import torch

from ..case import OBJECTS, Case
from .hooks import clean_outputs
from .method import HeatMap, Method


def _prepare(case: Case) -> HeatMap:
    import pyvene

    model = case.own_model()
    layers = range(len(model.model.layers))
    intervenables = [
        pyvene.IntervenableModel(
            pyvene.IntervenableConfig([
                pyvene.RepresentationConfig(
                    component=f"model.layers[{layer}].mlp.output", unit="pos",
                    intervention=pyvene.VanillaIntervention(embed_dim=model.config.hidden_size),
                )
            ]),
            model=model,
        )
        for layer in layers
    ]  # fmt: skip

    @torch.no_grad()
    def heat_map() -> torch.Tensor:
        clean = clean_outputs(case)
        cells = []
        for embedded in case.corrupt_embeddings():
            base = {"inputs_embeds": embedded[None], "logits_to_keep": 1}
            for layer in layers:
                (key,) = intervenables[layer].interventions
                for pos in case.positions:
                    _, patched = intervenables[layer](
                        base,
                        unit_locations={"sources->base": (None, [[[pos]]])},
                        source_representations={key: clean[layer][:, pos : pos + 1]},
                        use_cache=False,
                    )
                    cells.append(patched.logits[0, -1, list(OBJECTS)])
        return torch.stack(cells).view(case.draws, len(layers), len(case.positions), 2)

    return heat_map


CELLS = Method(
    key="pyvene",
    name="pyvene",
    per_cell="one call of an intervenable model with a vanilla intervention on `mlp.output` at the position",
    prepare=_prepare,
    role="library",
    package="pyvene",
)
