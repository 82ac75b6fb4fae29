"""Every setting of a study, with its presets: values that can be checked, stored with the results and read back.

Knows no model, no facts and no table; what the settings mean is protocol.md, "The study".
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import InputError
from ..requests import MAX_DRAWS, OBJECT_TOKENS, SPECIAL_TOKENS, ModelSpec
from .cases import CASE_SETS, SCAN

BUNDLED = "bundled"
"""Names the list of facts that comes with the demo model."""
MAX_SEED = 2**62


@dataclass(frozen=True)
class StudySettings:
    """All settings of a study; the defaults are the paper's. Numbers in logits unless said otherwise.

    What is measured on what: `model`; `facts`: `bundled`, or the name of the file they were read from; `cases`: `scan`
    the facts in the order `random.Random(scan_seed)` gives until `n` are kept that pass `min_clean_contrast` and
    `min_drop`, or a case set of the paper (`core.study.cases`), which brings its own facts, order and split.

    Corruption: `noise` level (× embedding std), `draws` per fact, `seed` (+ case id seeds a fact's generator);
    `fresh_seed`: of the fresh draw (None: `seed` + 1,000,000, or the largest case id + 1 where that is more);
    `noise_levels`: of the noise sensitivity. `special_tokens` and `object_tokens`: see `core.prompts.prepare`.

    Selection: `split_seed`, `by_subject` (all facts of a subject go to one half, and the bootstrap resamples
    subjects), `recurrence` (share of the discovery facts in which a candidate must be clean-active), `controls` per
    fact, `coalition_share` of the layer patch that the minimal coalition has to reach, `random_coalitions` per fact,
    `grid_seeds` × `grid_recurrence` of the stability grid, `folds` of the relation-held-out selection.

    Statistics: bootstrap `resamples` at `confidence`, sign-flip samples `flips`, their `stats_seed`.

    `fresh_draw`, `joint_search`: whether that part is measured (without the joint search experts are patched at the
    selected layer only). `preset`: the name of the preset that the settings began as.
    """

    preset: str = "paper"
    model: ModelSpec = field(default_factory=ModelSpec)
    facts: str = BUNDLED
    cases: str = SCAN
    n: int = 256
    scan_seed: int = 0
    min_clean_contrast: float = 1.0
    min_drop: float = 0.5
    noise: float = 3.0
    draws: int = 1
    seed: int = 0
    fresh_seed: int | None = None
    special_tokens: str = "off"
    object_tokens: str = "paper"
    split_seed: int = 0
    by_subject: bool = False
    recurrence: float = 0.5
    controls: int = 3
    coalition_share: float = 0.8
    random_coalitions: int = 3
    noise_levels: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0)
    grid_seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    grid_recurrence: tuple[float, ...] = (0.25, 0.375, 0.5, 0.625, 0.75)
    folds: int = 5
    fresh_draw: bool = True
    joint_search: bool = True
    resamples: int = 5000
    flips: int = 10000
    confidence: float = 0.95
    stats_seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.model, ModelSpec):
            raise InputError("The study's model is not a model's name.", "Name a model.", field="model")
        _one_of("preset", self.preset, tuple(PRESETS))
        _one_of("cases", self.cases, (SCAN, *CASE_SETS))
        _one_of("special_tokens", self.special_tokens, SPECIAL_TOKENS)
        _one_of("object_tokens", self.object_tokens, OBJECT_TOKENS)
        if not isinstance(self.facts, str) or not self.facts.strip():
            raise InputError("No facts were named.", "Give a file of facts, or `bundled`.", field="facts")
        for name, low, high in _WHOLE:
            self._set(name, _whole(name, getattr(self, name), low, high))
        for name, low, high in _NUMBERS:
            self._set(name, _number(name, getattr(self, name), low, high))
        if self.fresh_seed is not None:
            self._set("fresh_seed", _whole("fresh_seed", self.fresh_seed, 0, MAX_SEED))
        self._set("grid_seeds", _several("grid_seeds", self.grid_seeds, lambda v: _whole("grid_seeds", v, 0, MAX_SEED)))
        for name, low, high in (("grid_recurrence", *_SHARE), ("noise_levels", *_NOISE)):
            self._set(name, _several(name, getattr(self, name), lambda v, n=name, a=low, b=high: _number(n, v, a, b)))
        for name in ("by_subject", "fresh_draw", "joint_search"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} is {getattr(self, name)!r}.", "Give true or false.", field=name)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def replace(self, **changes: Any) -> StudySettings:
        """A copy with some settings changed."""
        unknown = sorted(set(changes) - _NAMES)
        if unknown:
            raise InputError(
                f"There is no setting {unknown[0]!r}.",
                f"The settings are: {', '.join(sorted(_NAMES))}.",
                field=unknown[0],
            )
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` reads them back."""
        values = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StudySettings:
        """The inverse of `to_dict`. Raises `InputError` naming the setting that is wrong or does not exist."""
        values = dict(data)
        spec = values.pop("model", {})
        if not isinstance(spec, Mapping) or set(spec) - {f.name for f in dataclasses.fields(ModelSpec)}:
            raise InputError("The study's model is not described as a model is.", "Name a model.", field="model")
        for name, value in spec.items():
            if not (isinstance(value, str) or (name == "revision" and value is None)):
                raise InputError(f"The model's {name} is {value!r}.", "Give a text.", field="model")
        return cls().replace(model=ModelSpec(**spec), **values)

    def fresh_seed_for(self, largest_case_id: int) -> int:
        """The seed of the fresh draw: further from `seed` than the largest case id, unless it was chosen."""
        return self.seed + max(1_000_000, largest_case_id + 1) if self.fresh_seed is None else self.fresh_seed


_SHARE = (0.0, 1.0)
_NOISE = (1e-6, 100.0)
_WHOLE = (
    ("n", 4, 1_000_000), ("scan_seed", 0, MAX_SEED), ("draws", 1, MAX_DRAWS), ("seed", 0, MAX_SEED),
    ("split_seed", 0, MAX_SEED), ("controls", 1, 1000), ("random_coalitions", 1, 1000), ("folds", 2, 1000),
    ("resamples", 1, 10_000_000), ("flips", 1, 10_000_000), ("stats_seed", 0, MAX_SEED),
)  # fmt: skip
_NUMBERS = (
    ("min_clean_contrast", -1000.0, 1000.0), ("min_drop", -1000.0, 1000.0), ("noise", *_NOISE),
    ("recurrence", *_SHARE), ("coalition_share", *_SHARE), ("confidence", 0.5, 0.999999),
)  # fmt: skip

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "relaxed": {"n": 512, "min_clean_contrast": 0.5, "min_drop": 0.25},
    "rome": {"draws": 10},
    "demo": {"recurrence": 0.25, "by_subject": True},
}
"""What each preset changes of the defaults, which are the paper's: its relaxed filters with more facts; ROME's ten
noise draws; what suits the demo model's facts, which are fewer and share subjects."""

_NAMES = {f.name for f in dataclasses.fields(StudySettings)}


def preset(name: str, **changes: Any) -> StudySettings:
    """The settings of a preset, some of them changed."""
    _one_of("preset", name, tuple(PRESETS))
    return StudySettings().replace(**{**PRESETS[name], "preset": name, **changes})


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{name} is {value!r}.", f"Choose one of: {', '.join(allowed)}.", field=name)


def _is_number(value: Any) -> bool:
    # a whole number may be too large for a float, and is out of every range then
    return isinstance(value, int) and not isinstance(value, bool) or isinstance(value, float) and math.isfinite(value)


def _whole(name: str, value: Any, low: int, high: int) -> int:
    good = _is_number(value)
    if not good or int(value) != value or not low <= value <= high:
        raise InputError(f"{name} is {value!r}.", f"Give a whole number from {low} to {high}.", field=name)
    return int(value)


def _number(name: str, value: Any, low: float, high: float) -> float:
    good = _is_number(value)
    if not good or not low <= value <= high:
        raise InputError(f"{name} is {value!r}.", f"Give a number from {low:g} to {high:g}.", field=name)
    return float(value)


def _several(name: str, values: Any, one: Any) -> tuple[Any, ...]:
    if isinstance(values, (str, bytes)) or not hasattr(values, "__iter__"):
        raise InputError(f"{name} is {values!r}.", "Give a list of numbers.", field=name)
    return tuple(dict.fromkeys(one(value) for value in values))
