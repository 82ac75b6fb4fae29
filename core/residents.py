"""The models that are in memory: one, or as many as were allowed and fit, the least recently used unloaded first.

What another model needs is measured against what is free each time, and a model is only kept beside another one where
that one is loaded just as it would be alone: no number depends on what else is in memory. Whoever loads or unloads has
the turn (`core.turns`); asking what is there needs none. Importing this loads no torch.
"""

from __future__ import annotations

import dataclasses
import importlib
import logging
import time
from collections.abc import Callable
from typing import Any

from .logs import event
from .progress import Progress
from .requests import ModelSpec
from .room import give_back

log = logging.getLogger(__name__)

WORKING_SHARE = 0.1
"""Of what a model needs for loading: what has to be free on its device for others to stay while it is used."""


@dataclasses.dataclass(frozen=True)
class Resident:
    """A loaded model. `seconds`: what loading took."""

    spec: ModelSpec
    model: Any
    seconds: float


def _wanted(spec: ModelSpec, progress: Progress) -> tuple[str, int]:
    return importlib.import_module(".models", __package__).wanted(spec, progress)


def _free(device: str) -> int:
    return importlib.import_module(".memory", __package__).available_bytes(device)


class Residents:
    """See the module."""

    def __init__(
        self,
        load: Callable[..., Any],
        *,
        most: int = 1,
        wanted: Callable[[ModelSpec, Progress], tuple[str, int]] = _wanted,
        free: Callable[[str], int] = _free,
    ) -> None:
        """`load`: `core.models.load_model`; `most`: how many may stay; `wanted`: (device, bytes) that a model wants to
        be free, only asked where more than one may stay; `free`: bytes that are free on a device."""
        self.most = most
        self._load, self._wanted, self._free = load, wanted, free
        self._there: tuple[Resident, ...] = ()  # the least recently used first; replaced as a whole
        self._wants: dict[ModelSpec, tuple[str, int]] = {}

    def all(self) -> tuple[Resident, ...]:
        """Those in memory, the most recently used first."""
        return self._there[::-1]

    def get(self, spec: ModelSpec) -> Resident | None:
        """The model, if it is in memory."""
        return next((resident for resident in self._there if resident.spec == spec), None)

    def bring(self, spec: ModelSpec, progress: Progress, *, keep: ModelSpec | None = None, store: Any) -> Resident:
        """The model, loaded where it is not in memory; others go where that is needed, but `keep`, which somebody is
        about to go on with."""
        resident = self.get(spec)
        if resident is not None:
            self._there = (*(other for other in self._there if other is not resident), resident)
            if self.most > 1 and len(self._there) > 1:
                self._make_room(spec, progress, WORKING_SHARE, keep={spec, keep})
            return resident
        if self.most == 1:
            self.drop()
        else:
            self._make_room(spec, progress, 1.0, keep={keep})
        progress.update(0, 1, f"loading {spec.name}")
        begun = time.monotonic()
        model = self._load(**dataclasses.asdict(spec), progress=progress, store=store)
        resident = Resident(spec, model, time.monotonic() - begun)
        self._there = (*self._there, resident)
        event(log, "model loaded", model=spec.name, seconds=round(resident.seconds, 1))
        return resident

    def _make_room(self, spec: ModelSpec, progress: Progress, share: float, *, keep: set[ModelSpec | None]) -> None:
        """Drop the least recently used until `share` of what the model wants is free, and one more may stay."""
        others = [resident.spec for resident in self._there if resident.spec not in keep]
        if not others:
            return
        if spec not in self._wants:
            self._wants[spec] = self._wanted(spec, progress)
        device, needed = self._wants[spec]
        there = self.get(spec) is not None
        for other in others:
            if len(self._there) < self.most + there and self._free(device) >= needed * share:
                return
            self.drop(other)

    def drop(self, spec: ModelSpec | None = None) -> None:
        """Unload one model, or all, and give the memory back."""
        going = [resident.spec for resident in self._there if spec is None or resident.spec == spec]
        self._there = tuple(resident for resident in self._there if resident.spec not in going)
        give_back()
        for gone in going:
            event(log, "model unloaded", model=gone.name)
