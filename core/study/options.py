"""How the rows of a study are turned into results: the settings of selection and statistics, with the paper's values.

They are a part of the study's settings (a plain dict, stored with the results) under the names used here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Options:
    """`recurrence`: share of the discovery facts in which a candidate has to be clean-active. `by_subject`: all facts
    of a subject go to the same half, and the bootstrap and the sign-flip test take the subject as their unit.

    `split_seed` shuffles the split; `stats_seed` the bootstrap (`resamples`, at `confidence`) and the sign-flip test
    (`flips`). `coalition_share`: the share of the layer patch that the minimal coalition has to reach;
    `random_coalitions`: how many are drawn per fact. `grid_seeds` × `grid_recurrence`: the stability grid; `folds`:
    of the relation-held-out selection. `noise_levels`: of the noise sensitivity. `fresh_draw`, `joint_search`: whether
    that part is measured.
    """

    recurrence: float = 0.5
    split_seed: int = 0
    by_subject: bool = False
    controls: int = 3
    coalition_share: float = 0.8
    random_coalitions: int = 3
    grid_seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    grid_recurrence: tuple[float, ...] = (0.25, 0.375, 0.5, 0.625, 0.75)
    folds: int = 5
    noise_levels: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0)
    fresh_draw: bool = True
    joint_search: bool = True
    resamples: int = 5000
    flips: int = 10000
    confidence: float = 0.95
    stats_seed: int = 0

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Options:
        """The options among a study's settings; whatever is not there has the paper's value."""
        known = {f.name for f in dataclasses.fields(cls)}
        chosen = {name: value for name, value in settings.items() if name in known}
        return cls(**{name: tuple(v) if isinstance(v, list) else v for name, v in chosen.items()})
