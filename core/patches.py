"""What is patched where: values only, no model.

One primitive covers every intervention of protocol.md: (site, layer, positions, mode, source). A `Patch` is a list
of such steps in one run; the sweep runs a list of patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .sites import LAYER

SHARED = "shared"
"""Stands for the shared expert in `Updates.experts`."""
CLEAN_TOP_K, ROUTING_UNION = "clean_top_k", "routing_union"
"""Stand in `Updates.experts` for all clean-active experts, and for those active in the clean or in the corrupt run, at
each position (protocol.md, "coalition patch"); the shared expert is in neither."""


@dataclass(frozen=True)
class Value:
    """What run `run` (an index into the sweep's runs) has at the step's own site, layer and position."""

    run: int


@dataclass(frozen=True)
class Updates:
    """Σ over `experts` of c[run `clean`] − c[run `corrupt`] at the step's layer and position (expert updates δ).

    `equal_norm_with`: where the sum of the updates of these experts is shorter, the vector is scaled down to its norm
    (protocol.md, "equal-norm pair": each of the two names the other).
    """

    experts: tuple[int | str, ...]
    clean: int
    corrupt: int
    equal_norm_with: tuple[int | str, ...] = ()


@dataclass(frozen=True)
class Nothing:
    """The zero vector. A patch that adds it must change nothing: the load-time check uses it."""


@dataclass(frozen=True)
class Own:
    """`scale` × Σ over `experts` of what they contribute in the patched run itself. Scale −1 takes them out without
    renormalisation (zero knockout), scale s − 1 multiplies their contribution by s. `SHARED` may be among them."""

    experts: tuple[int | str, ...]
    scale: float = -1.0


@dataclass(frozen=True)
class Masked:
    """`experts` are masked in the tensor that the router's top-k selects from; the scores stay, and the family's own
    renormalisation follows (reroute knockout). Only at the site `router`."""

    experts: tuple[int, ...]


Source = Value | Updates | Nothing | Own | Masked


@dataclass(frozen=True)
class Step:
    """One change in a run. `site`: `attention` (output of the attention sublayer), `moe` (block output), `residual`
    (the stream after the layer), or `router`.

    `mode`: `restore` writes the source's value, `add` adds it to what the patched run computes there, `mask` belongs
    to the router.
    """

    site: Literal["attention", "moe", "residual", "router"]
    layer: int
    positions: tuple[int, ...]
    mode: Literal["restore", "add", "mask"]
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


def site_patch(site: str, layers: Sequence[int], pos: int, *, clean: int, corrupt: int) -> Patch:
    """The clean run's values at `pos` in each of `layers`, in the corrupt run (protocol.md, "window patch"). `site`:
    one of `core.sites.SITES`; `layer` is both sublayers."""
    names = ("attention", "moe") if site == LAYER else (site,)
    steps = (Step(name, layer, (pos,), "restore", Value(clean)) for layer in layers for name in names)  # type: ignore[arg-type]
    return Patch(corrupt, tuple(steps))


def expert_patch(*, clean: int, corrupt: int, layer: int, pos: int, expert: int | str) -> Patch:
    """y[l,t] := y_corrupt[l,t] + δ[l,t,e] (protocol.md, "expert patch"); `expert` may be `SHARED`."""
    return Patch(corrupt, (Step("moe", layer, (pos,), "add", Updates((expert,), clean, corrupt)),))
