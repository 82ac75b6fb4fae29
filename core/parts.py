"""A sweep over a list of patches in as many parts as the memory needs: all at once where that goes, else in halves.

A sweep that runs out of memory already goes on with fewer tokens at a time (`core.room`); here it is the rows that it
keeps which are too many. Knows sweeps and patches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from .base import Run
from .errors import OutOfMemory
from .moe import MoeModel
from .patches import Patch
from .progress import SILENT, Progress, Share
from .room import give_back, ran_out
from .sweep import Outcome, listed, sweep


def sweep_in_parts(
    model: MoeModel, runs: Sequence[Run], patches: Sequence[Patch], *, progress: Progress = SILENT, **options: Any
) -> Outcome:
    """`sweep` with these patches (`options` as there), in one or more sweeps; `runs` are computed in each of them.

    Raises `OutOfMemory` where not even one patch fits.
    """
    try:
        return sweep(model, model.structure, runs, listed(patches), progress=progress, **options)
    except (MemoryError, RuntimeError, OutOfMemory) as error:
        if not ran_out(error):
            raise
        if len(patches) < 2:
            raise OutOfMemory() from error
    give_back()  # out here the exception is gone, and the tensors that its frames held
    half, n = len(patches) // 2, len(patches)
    first, second = (
        sweep_in_parts(model, runs, some, progress=Share(progress, before, len(some), n), **options)
        for some, before in ((patches[:half], 0), (patches[half:], half))
    )
    finals = (first.patched_final, second.patched_final)
    return dataclasses.replace(
        first,
        patches=first.patches + second.patches,
        patched=torch.cat([first.patched, second.patched]),
        patched_final=None if finals[0] is None or finals[1] is None else torch.cat(finals),
    )
