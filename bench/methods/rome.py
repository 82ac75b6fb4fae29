"""The pattern of ROME's causal tracing (Meng et al. 2022, `causal_trace.py`): clean and noised rows in one batch.

Row 0 is the clean prompt, the other rows are the same prompt with one noise draw each. A hook on the layer copies row
0's value at the position into the noised rows, so that no clean run has to be stored.
"""

from __future__ import annotations

import torch

from ..case import OBJECTS, SUBJECT, Case
from .hooks import hooked
from .method import HeatMap, Method


def _prepare(case: Case) -> HeatMap:
    model = case.model

    @torch.no_grad()
    def heat_map() -> torch.Tensor:
        rows = case.ids.repeat(1 + case.draws, 1)

        def corrupt(module, args, output):  # noqa: ANN001, ANN202
            output[1:, list(SUBJECT)] += case.noise
            return output

        cells = []
        with hooked(model.get_input_embeddings(), corrupt):
            for layer in model.model.layers:
                for pos in case.positions:

                    def restore(module, args, output, pos=pos):  # noqa: ANN001, ANN202
                        output[1:, pos] = output[0, pos]
                        return output

                    with hooked(layer.mlp, restore):
                        logits = model(input_ids=rows, use_cache=False, logits_to_keep=1).logits
                    cells.append(logits[1:, -1, list(OBJECTS)])
        return torch.stack(cells, 1).view(case.draws, len(model.model.layers), len(case.positions), 2)

    return heat_map


CELLS = Method(
    key="rome",
    name="ROME's pattern",
    per_cell="one forward of a batch: one clean row and one row per noise draw",
    prepare=_prepare,
    role="baseline",
)
