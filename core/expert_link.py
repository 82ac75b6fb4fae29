"""The share link of the Expert page: which expert of which model, over which facts; query parameters and back.

Other pages link to an expert with `to_query`. Reading trusts nothing: whatever a link says that cannot be is replaced
by a default and named in a sentence. Knows no browser and no numbers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from . import links
from .derived import DerivedRequest
from .expert_questions import ALL, LEAST_FACTOR, MOST_FACTOR
from .expert_questions import PLACES as STEERED
from .fact_sets import FactSet
from .links import Reader, View
from .requests import Fact, ModelSpec, TraceRequest
from .results import expert_name

SECTIONS = ("routing", "rescue", "knockout", "writes", "size", "neurons", "steering")
"""What the page shows below its head, one at a time; the first is the default."""

ZERO, REROUTE = MODES = ("zero", "reroute")
"""How an expert is knocked out (protocol.md, "knockout")."""
EVERYWHERE, LAST = PLACES = ("all", "last")
"""Where: at every position that is routed to it, or at the last one only."""

WRITTEN = ("contribution_all", "contribution_last_subject", "contribution_last", "update_last_subject", "update_last")
"""Whose tokens are shown of what it writes: the mean of its contribution or of its update, over which positions."""
MEASURES = ("output_norm", "contribution_norm", "magnitude_ratio", "angle", "cosine", "router_weight")
"""By which its size is compared (see `core.expert_size`)."""

NOBODY = Fact("", "", "")
"""Stands where a question needs a fact and no fact is meant."""
RESCUE_KIND, KNOCKOUT_KIND = "expert_rescue", "expert_knockout"
_NAME = re.compile(r"[Ll]([0-9]{1,6})[Ee]([0-9]{1,6})")
_ASKED = (
    "noise", "draws", "seed", "special_tokens", "object_tokens", "first_token", "corruption", "replacement",
)  # fmt: skip
"""Fields of a `TraceRequest` that the page keeps: with them a fact has the same numbers on the Trace page."""
_OF_TRACE = (
    "model", "revision", "dtype", "device", "quantisation", "placement", "noise", "draws", "seed", "special_tokens",
    "object_tokens", "first_token", "corruption", "replacement",
)  # fmt: skip


@dataclass(frozen=True)
class ExpertView:
    """What the page shows. `layer`, `expert`: None where none is chosen yet (the page lists them all); `facts`: the
    set that everything is measured on; `relation`: whose facts are listed; `fact`: case_id of the ticked one; `place`:
    where it is knocked out; `written`, `measure`, `neuron`: what of its writes, sizes and neurons is looked at;
    `factor`, `where`: of the steering box. `problems`: sentences about what in the link cannot be."""

    model: ModelSpec = field(default_factory=ModelSpec)
    layer: int | None = None
    expert: int | None = None
    facts: FactSet = field(default_factory=FactSet)
    noise: float = 3.0
    draws: int = 1
    seed: int = 0
    special_tokens: str = "auto"
    object_tokens: str = "space"
    first_token: bool = False
    corruption: str = "noise"
    replacement: tuple[str, ...] = ()
    section: str = SECTIONS[0]
    relation: str | None = None
    fact: int | None = None
    place: str = EVERYWHERE
    written: str = WRITTEN[2]
    measure: str = MEASURES[0]
    neuron: int | None = None
    factor: float = 2.0
    where: str = ALL
    problems: tuple[str, ...] = ()

    @property
    def chosen(self) -> bool:
        """Whether an expert is named."""
        return self.layer is not None and self.expert is not None

    @property
    def name(self) -> str:
        """L6E005; empty where none is chosen."""
        return expert_name(self.layer, self.expert) if self.chosen else ""  # type: ignore[arg-type]

    def trace(self, fact: Fact) -> TraceRequest:
        """The question to the Trace page that gives a fact's numbers of this page."""
        return TraceRequest(fact=fact, model=self.model, **self.settings)

    @property
    def settings(self) -> dict[str, Any]:
        """What of a trace, besides model and fact, can change a number."""
        return {name: getattr(self, name) for name in _ASKED}


def of_trace(request: TraceRequest, *, layer: int, expert: int, facts: FactSet = FactSet()) -> ExpertView:
    """The page of an expert that was met in a trace, with the trace's model and settings."""
    return ExpertView(
        model=request.model, layer=layer, expert=expert, facts=facts,
        **{name: getattr(request, name) for name in _ASKED},
    )  # fmt: skip


def rescue_request(view: ExpertView, facts: Iterable[Fact]) -> DerivedRequest:
    """The rescue of every expert over `facts` (see `core.expert_rescue`): the same question for all experts."""
    settings = view.settings
    del settings["noise" if view.corruption == "replace" else "replacement"]  # no number depends on it
    return DerivedRequest.of(RESCUE_KIND, view.model, facts=tuple(facts), **settings)


def knockout_request(view: ExpertView, facts: Iterable[Fact]) -> DerivedRequest:
    """What the clean runs of `facts` lose without the view's expert (see `core.expert_knockout`).

    Nothing is corrupted there, so neither noise nor seed is part of the question.
    """
    clean = {name: getattr(view, name) for name in ("special_tokens", "object_tokens", "first_token")}
    return DerivedRequest.of(
        KNOCKOUT_KIND, view.model, facts=tuple(facts), layer=view.layer, expert=view.expert, **clean
    )


def parse(name: str) -> tuple[int, int] | None:
    """(layer, expert) of a name such as L6E005, None where it is none."""
    found = _NAME.fullmatch(name.strip())
    return None if found is None else (int(found[1]), int(found[2]))


def to_query(view: ExpertView) -> dict[str, str]:
    """The parameters of the link, in a fixed order; a choice that equals its default is left out."""
    out = links.to_query(view.trace(NOBODY), View(), bundled=True)
    del out["fact"]
    if view.chosen:
        out["expert"] = view.name
    out |= view.facts.to_query()
    if view.section != SECTIONS[0]:
        out["show"] = view.section
    default = ExpertView()
    for name in ("relation", "fact", "place", "written", "measure", "neuron", "factor", "where"):
        value = getattr(view, name)
        if value != getattr(default, name):
            out[name] = f"{value:g}" if isinstance(value, float) else str(value)
    return out


def from_query(params: Mapping[str, str]) -> ExpertView:
    """Read a link's parameters. Never raises for what stands in them; unknown names are ignored."""
    asked = links.from_query(
        {name: params[name] for name in _OF_TRACE if name in params}, bundled=lambda _: NOBODY, default=NOBODY
    )
    read = Reader(params)
    view = ExpertView(
        model=asked.request.model,
        facts=FactSet.from_query(read),
        section=read.choice("show", SECTIONS, SECTIONS[0]),
        relation=read.text("relation", "") or None,
        fact=read.whole("fact", None, low=0),
        place=read.choice("place", PLACES, EVERYWHERE),
        written=read.choice("written", WRITTEN, WRITTEN[2]),
        measure=read.choice("measure", MEASURES, MEASURES[0]),
        neuron=read.whole("neuron", None, low=0),
        factor=_factor(read, params),
        where=read.choice("where", STEERED, ALL),
        **{name: getattr(asked.request, name) for name in _ASKED},
    )
    if "expert" in params:
        named = parse(read.text("expert", ""))
        if named is None:
            read.problems.append(
                f"The link says expert={read.text('expert', '')[:40]}, which is no expert's name (such as L6E005)."
            )
        else:
            view = replace(view, layer=named[0], expert=named[1])
    return replace(view, problems=(*asked.problems, *read.problems))


def _factor(read: Reader, params: Mapping[str, str]) -> float:
    """The factor of a link, within the slider's ends."""
    default = ExpertView().factor
    try:
        value = float(params.get("factor", default))
    except ValueError:
        value = math.nan
    if LEAST_FACTOR <= value <= MOST_FACTOR:
        return round(value, 2)
    allowed = f"a number from {LEAST_FACTOR:g} to {MOST_FACTOR:g}"
    shown = params["factor"][:40]
    read.problems.append(f"The link says factor={shown}, but factor must be {allowed}; {default:g} is used instead.")
    return default


def check(view: ExpertView, *, moe_layers: list[int], n_layers: int, n_experts: int) -> tuple[ExpertView, list[str]]:
    """The view without an expert that the model does not have, and a sentence about it."""
    if not view.chosen:
        return view, []
    if view.layer not in moe_layers:
        why = f"the model has {n_layers} (0 to {n_layers - 1})" if view.layer >= n_layers else "it is dense"  # type: ignore[operator]
        said = f"There is no expert {view.name}: layer {view.layer} has no experts, {why}."
    elif view.expert >= n_experts:  # type: ignore[operator]
        said = f"There is no expert {view.name}: each layer has {n_experts} (0 to {n_experts - 1})."
    else:
        return view, []
    return replace(view, layer=None, expert=None), [said]


def beside(view: ExpertView, step: int, *, moe_layers: list[int], n_experts: int) -> ExpertView:
    """The view of the next (`step` 1) or previous (−1) expert; past the end of a layer it goes on in the next one."""
    at = moe_layers.index(view.layer) * n_experts + view.expert + step  # type: ignore[arg-type, operator]
    row, expert = divmod(at % (len(moe_layers) * n_experts), n_experts)
    return replace(view, layer=moe_layers[row], expert=expert, fact=None, problems=())
