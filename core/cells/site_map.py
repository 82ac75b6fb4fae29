"""The layer × token map at another site, or of windows of layers: one restoring patch per cell and draw.

Restored values replace what the patched run computes there, in every layer of the window (protocol.md, "window
patch"). Knows sweeps; nothing of how a map is drawn.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from ..derived import DerivedRequest
from ..errors import InputError
from ..moe import MoeModel
from ..parts import sweep_in_parts
from ..patches import Patch, site_patch
from ..progress import SILENT, Progress, Share
from ..sites import ATTENTION, LAYER, MOE, SITES, window_around
from .asking import question
from .measure import CLEAN, Case, Measured, scored


def answer(
    model: MoeModel, request: DerivedRequest, *, store: Any = None, progress: Progress = SILENT
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """The derived kind `site_map`: settings `site` and `window`; table `cells`: kind, draw, layer, pos, logits."""
    asked, settings = question(request), request.get()
    site, window = settings["site"], settings["window"]
    found = site_map(model, Case.of(model, asked), site, window, progress=progress)
    values = found.values() | {"site": site, "window": window, "layers": site_layers(model, site)}
    ends = [
        {"kind": "clean", "true_logit": found.clean[0], "foil_logit": found.clean[1]},
        *({"kind": "corrupt", "draw": j, "true_logit": t, "foil_logit": f} for j, (t, f) in enumerate(found.corrupt)),
    ]
    cells = pd.concat([pd.DataFrame(ends), found.rows.assign(kind="layer")], ignore_index=True)
    cells = cells[["kind", "draw", "layer", "pos", "true_logit", "foil_logit"]]
    return {"cells": cells.astype({"draw": "Int64", "layer": "Int64", "pos": "Int64"})}, values


def site_layers(model: MoeModel, site: str) -> list[int]:
    """The layers that have this site."""
    if site not in SITES:
        raise InputError(f"There is no site {site!r}.", f"Choose one of: {', '.join(SITES)}.", field="site")
    layers = range(model.n_layers)
    if site in (MOE, LAYER):
        layers = [layer for layer in layers if layer in model.blocks]
    if site in (ATTENTION, LAYER):
        layers = [layer for layer in layers if model.structure.attention[layer]]
    return list(layers)


def site_map(model: MoeModel, case: Case, site: str, window: int, *, progress: Progress = SILENT) -> Measured:
    """All cells of all draws. A cell that nothing can change has the corrupt run's own logits and is not run."""
    layers, length = site_layers(model, site), len(case.fact.input_ids)
    if window < 1:
        raise InputError(f"The window is {window} layers.", "Give a whole number from 1.", field="window")
    inside = {layer: [other for other in window_around(layer, window, model.n_layers) if other in layers]
              for layer in layers}  # fmt: skip
    subject = case.fact.subject_positions[0]
    places = [(layer, pos, draw) for draw in range(case.draws) for layer in layers for pos in range(length)]
    patches: dict[tuple[int, int, int], Patch] = {}
    for layer, pos, draw in places:
        if pos >= model.structure.first_to_matter(inside[layer][0], subject, length):
            patches[layer, pos, draw] = site_patch(site, inside[layer], pos, clean=CLEAN, corrupt=draw + 1)
    wanted = list(dict.fromkeys(patches.values()))
    sizes = [(length - patch.start) * model.hidden * model.dtype.itemsize for patch in wanted]
    batches = list(case.budget.batches(sizes)) or [[]]
    logits: dict[Patch, np.ndarray] = {}
    for i, batch in enumerate(batches):
        if i:
            progress.pause()
        outcome = sweep_in_parts(
            model, case.runs, [wanted[b] for b in batch], objects=case.objects,
            chunk_tokens=case.budget.chunk_tokens, keep=False, with_attention=site in (ATTENTION, LAYER),
            progress=Share(progress, i, 1, len(batches)),
        )  # fmt: skip
        logits |= dict(zip(outcome.patches, outcome.patched.double().numpy(), strict=True))
    table = pd.DataFrame(places, columns=["layer", "pos", "draw"]).astype({"draw": "Int64"})
    own = outcome.runs.double().numpy()
    both = [logits[patches[place]] if place in patches else own[place[2] + 1] for place in places]
    return scored(case, table, np.array(both).reshape(-1, 2), outcome.runs)

