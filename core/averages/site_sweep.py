"""One site restored at every cell of many facts, on windows of layers.

Several facts share a sweep. Knows runs and patches; nothing of roles or averages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..budget import Budget
from ..cells.site_map import site_layers
from ..fact_runs import runs_of, with_best_foil
from ..missing import Question
from ..moe import MoeModel
from ..parts import sweep_in_parts
from ..patches import Patch, site_patch
from ..progress import SILENT, Progress
from ..prompts import PreparedFact
from ..sites import ATTENTION, LAYER, window_around


@dataclass(frozen=True)
class SiteCells:
    """Of one fact: contrasts in logits, the corrupt one and `rescue` [layers, positions] as means over the draws;
    `prepared` has the foil that was chosen, where it is automatic."""

    prepared: PreparedFact
    clean_contrast: float
    corrupt_contrast: float
    rescue: np.ndarray


def window_layers(layers: Sequence[int], window: int) -> dict[int, tuple[int, ...]]:
    """{layer: the layers restored together} for each of `layers`, those that have the site: a window around it (see
    `core.sites.window_around`), of these alone."""
    n = max(layers) + 1
    around = {layer: window_around(layer, window, n) for layer in layers}
    return {layer: tuple(other for other in layers if other in around[layer]) for layer in layers}


def first_position(model: MoeModel, fact: PreparedFact) -> int:
    """Left of it clean and corrupt run are the same, so that restoring changes nothing."""
    return fact.subject_positions[0] if model.structure.causal else 0


def patched_tokens(model: MoeModel, question: Question, site: str) -> int:
    """Tokens of all patched rows of a fact."""
    length = len(question.prepared.input_ids)
    live = length - first_position(model, question.prepared)
    return question.request.draws * len(site_layers(model, site)) * live * (live + 1) // 2


def site_cells(
    model: MoeModel,
    questions: Sequence[Question],
    *,
    site: str,
    window: int,
    budget: Budget,
    progress: Progress = SILENT,
) -> list[SiteCells]:
    """Every cell of all questions, in one sweep (in parts where the memory needs it)."""
    runs, ends = [], []
    for question in questions:
        its, _ = runs_of(model, question.request, question.prepared)
        ends.append((len(runs), range(len(runs) + 1, len(runs) + len(its))))
        runs += its
    windows = window_layers(site_layers(model, site), window)
    places: list[list[list[tuple[int, int, Patch]]]] = []  # fact, draw: (row, position, patch)
    for question, (clean, corrupts) in zip(questions, ends, strict=True):
        length, first = len(question.prepared.input_ids), first_position(model, question.prepared)
        places.append([
            [
                (row, pos, site_patch(site, layers, pos, clean=clean, corrupt=corrupt))
                for row, layers in enumerate(windows.values())
                for pos in range(first, length)
            ]
            for corrupt in corrupts
        ])  # fmt: skip
    prepared = [question.prepared for question in questions]

    def choose_objects(finals: torch.Tensor) -> list[tuple[int, int]]:
        objects: list[tuple[int, int]] = []
        for i, (clean, corrupts) in enumerate(ends):
            if prepared[i].foil_id is None:
                prepared[i] = with_best_foil(model, prepared[i], finals[clean][None])
            objects += [(prepared[i].true_id, int(prepared[i].foil_id))] * (1 + len(corrupts))  # type: ignore[arg-type]
        return objects

    patches = list(dict.fromkeys(patch for draws in places for cells in draws for _, _, patch in cells))
    outcome = sweep_in_parts(
        model, runs, patches, objects=choose_objects, chunk_tokens=budget.chunk_tokens, keep=False,
        with_attention=site in (ATTENTION, LAYER), progress=progress,
    )  # fmt: skip
    number = {patch: i for i, patch in enumerate(outcome.patches)}
    patched, unpatched = contrast_of(outcome.patched), contrast_of(outcome.runs)
    out = []
    for fact, draws, (clean, corrupts) in zip(prepared, places, ends, strict=True):
        rescue = np.zeros((len(corrupts), len(windows), len(fact.input_ids)))
        for draw, (cells, corrupt) in enumerate(zip(draws, corrupts, strict=True)):
            rows, positions, found = zip(*cells, strict=True)
            at = [number[patch] for patch in found]
            rescue[draw, list(rows), list(positions)] = patched[at] - unpatched[corrupt]
        corrupt_contrast = float(np.mean([unpatched[corrupt] for corrupt in corrupts]))
        out.append(SiteCells(fact, float(unpatched[clean]), corrupt_contrast, rescue.mean(axis=0)))
    return out


def contrast_of(logits: torch.Tensor) -> np.ndarray:
    """logit(true) − logit(foil) of rows [n, 2]: [n], fp64."""
    values = logits.double().numpy()
    return values[:, 0] - values[:, 1]
