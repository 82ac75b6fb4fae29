"""The share link of the Averages page: which facts of which model, the site, and what is looked at; query parameters
and back.

Reading trusts nothing: whatever a link says that cannot be is replaced by a default and named in a sentence. Other
pages link here with `to_query`. Knows no browser and no numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from .. import links
from ..fact_sets import FactSet
from ..links import MEASURES, SHARED, Link, Reader, View
from ..requests import Fact, TraceRequest
from ..roles import LAST
from ..sites import MOE, SITES
from ..trace_view import MAX_WINDOW
from .questions import NOBODY, SHOWN_ROLES
from .tables import DEFAULT_DROP

ALL = "all"
"""Stands in `min_drop` for no threshold."""
_OF_TRACE = (
    "model", "revision", "dtype", "device", "quantisation", "placement", "noise", "draws", "seed", "special_tokens",
    "object_tokens", "first_token", "corruption", "replacement",
)  # fmt: skip


@dataclass(frozen=True)
class AveragesView:
    """What the page shows. `asked`: model and settings of every fact's trace (its fact counts for nothing); `site`,
    `window`: what is restored; `min_drop`: facts with a smaller drop are left out (None: none is); `measure` colours
    the maps; `role`: whose experts are shown; `layer`: with it the chosen cell; `expert`: of that layer (`shared` for
    the shared one). `problems`: sentences about what in the link cannot be."""

    asked: TraceRequest = field(default_factory=lambda: TraceRequest(NOBODY))
    facts: FactSet = field(default_factory=FactSet)
    site: str = MOE
    window: int = 1
    min_drop: float | None = DEFAULT_DROP
    measure: str = MEASURES[0]
    role: str = LAST
    layer: int | None = None
    expert: int | str | None = None
    problems: tuple[str, ...] = ()


def to_query(view: AveragesView) -> dict[str, str]:
    """The parameters of the link, in a fixed order; a choice that equals its default is left out."""
    out = links.to_query(replace(view.asked, fact=NOBODY), View(measure=view.measure), bundled=True)
    del out["fact"]
    out |= view.facts.to_query()
    if view.site != MOE:
        out["site"] = view.site
    if view.window != 1:
        out["window"] = str(view.window)
    if view.min_drop != DEFAULT_DROP:
        out["min_drop"] = ALL if view.min_drop is None else f"{view.min_drop!r}".removesuffix(".0")
    if view.role != LAST:
        out["role"] = view.role.replace(" ", "_")
    for name in ("layer", "expert"):
        if getattr(view, name) is not None:
            out[name] = str(getattr(view, name))
    return out


def from_query(params: Mapping[str, str]) -> AveragesView:
    """Read a link's parameters. Never raises for what stands in them; unknown names are ignored."""
    asked = links.from_query(
        {name: params[name] for name in _OF_TRACE if name in params}, bundled=lambda _: NOBODY, default=NOBODY
    )
    read = Reader(params)
    roles = {role.replace(" ", "_"): role for role in SHOWN_ROLES}
    view = AveragesView(
        asked=asked.request,
        facts=FactSet.from_query(read),
        site=read.choice("site", SITES, MOE),
        window=read.whole("window", 1, low=1, high=MAX_WINDOW) or 1,
        min_drop=_min_drop(read, params),
        measure=read.choice("show", MEASURES, MEASURES[0]),
        role=roles[read.choice("role", tuple(roles), LAST.replace(" ", "_"))],
        layer=read.whole("layer", None, low=0),
        expert=SHARED if params.get("expert") == SHARED else read.whole("expert", None, low=0),
    )
    if view.expert is not None and view.layer is None:
        read.problems.append("The link names an expert but no layer, so no expert is marked.")
        view = replace(view, expert=None)
    return replace(view, problems=(*asked.problems, *read.problems))


def check(
    view: AveragesView, *, layers: list[int], moe_layers: list[int], n_layers: int, n_experts: int, shared: bool
) -> tuple[AveragesView, list[str]]:
    """The view with everything dropped that this answer does not have, and a sentence about each. `layers`: those
    that have the site."""
    problems = []
    if view.layer is not None and view.layer not in {*layers, *moe_layers}:
        why = f"the model has {n_layers} (0 to {n_layers - 1})" if view.layer >= n_layers else "it lacks the site"
        problems.append(f"Layer {view.layer} has nothing to show: {why}.")
        view = replace(view, layer=None, expert=None)
    if view.expert == SHARED and not shared:
        problems.append("This model has no shared expert.")
        view = replace(view, expert=None)
    if isinstance(view.expert, int) and view.expert >= n_experts:
        problems.append(f"There is no expert {view.expert}: each layer has {n_experts} (0 to {n_experts - 1}).")
        view = replace(view, expert=None)
    if view.expert is not None and view.layer not in moe_layers:
        problems.append(f"Layer {view.layer} has no experts: it is dense.")
        view = replace(view, expert=None)
    return view, problems


def trace_link(
    view: AveragesView, fact: Fact, *, bundled: bool, layer: int, pos: int, expert: int | str | None = None
) -> Link:
    """The Trace page of one fact with this page's settings, at a cell of its site; an expert's is in the trace's own
    maps."""
    there = View(view.measure, pos, layer, expert)
    if expert is None:
        there = replace(there, site=view.site, window=view.window)
    return Link(replace(view.asked, fact=fact), there, bundled, listed=view.facts.stored)


def _min_drop(read: Reader, params: Mapping[str, str]) -> float | None:
    if params.get("min_drop") == ALL:
        return None
    text = params.get("min_drop")
    if text in ("0", "0.0"):
        return 0.0
    return DEFAULT_DROP if text is None else read.number("min_drop", DEFAULT_DROP)
