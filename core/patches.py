"""What is patched where: values only, no model.

One primitive covers every intervention of protocol.md: (site, layer, positions, mode, source). A `Patch` is a list
of such steps in one run; the sweep runs a list of patches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SHARED = "shared"
"""Stands for the shared expert in `Updates.experts`."""


@dataclass(frozen=True)
class Value:
    """What run `run` (an index into the sweep's runs) has at the step's own site, layer and position."""

    run: int


@dataclass(frozen=True)
class Updates:
    """Σ over `experts` of c[run `clean`] − c[run `corrupt`] at the step's layer and position (expert updates δ)."""

    experts: tuple[int | str, ...]
    clean: int
    corrupt: int


@dataclass(frozen=True)
class Nothing:
    """The zero vector. A patch that adds it must change nothing: the load-time check uses it."""


Source = Value | Updates | Nothing


@dataclass(frozen=True)
class Step:
    """One change in a run. `site`: `moe` (block output) or `residual` (the stream after the layer).

    `mode`: `restore` writes the source's value, `add` adds it to what the patched run computes there.
    """

    site: Literal["moe", "residual"]
    layer: int
    positions: tuple[int, ...]
    mode: Literal["restore", "add"]
    source: Source


@dataclass(frozen=True)
class Patch:
    """Steps in a copy of run `run` (an index into the sweep's runs), first layer first."""

    run: int
    steps: tuple[Step, ...]

    @property
    def start(self) -> int:
        """First position that can differ from the run's own."""
        return min(min(step.positions) for step in self.steps)

    @property
    def layer(self) -> int:
        """First layer that can differ."""
        return min(step.layer for step in self.steps)


def layer_patch(*, clean: int, corrupt: int, layer: int, pos: int) -> Patch:
    """y[l,t] := y_clean[l,t] in the corrupt run (protocol.md, "layer patch")."""
    return Patch(corrupt, (Step("moe", layer, (pos,), "restore", Value(clean)),))


def expert_patch(*, clean: int, corrupt: int, layer: int, pos: int, expert: int | str) -> Patch:
    """y[l,t] := y_corrupt[l,t] + δ[l,t,e] (protocol.md, "expert patch"); `expert` may be `SHARED`."""
    return Patch(corrupt, (Step("moe", layer, (pos,), "add", Updates((expert,), clean, corrupt)),))
