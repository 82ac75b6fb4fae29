"""Where a viewer is: a page, and what is looked at there, as the app's own links describe it.

A place says which address it has to have and which answers it needs, so that it is known beforehand whether they are in
the store. Knows no browser and no numbers.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from core import expert_link, fact_sets, links, routing_link
from core.averages import link as averages_link
from core.averages.link import AveragesView
from core.compare import link as compare_link
from core.compare.link import SIDES, Pair
from core.expert_link import ExpertView
from core.links import Link
from core.requests import Fact, TraceRequest
from core.routing_link import RoutingView

TRACE, ROUTING, EXPERT, AVERAGES, COMPARE = "", "Routing", "Expert", "Averages", "Compare"
LIBRARY, METHOD, HEALTH, STUDY = "Library", "Method", "Health", "Study"
PLAIN = (LIBRARY, METHOD, HEALTH, STUDY)
"""Pages that a viewer comes to without asking for anything."""


@dataclass(frozen=True)
class Place:
    """`page`: as it stands in the address (the Trace page: nothing); `at`: a `Link`, `RoutingView`, `ExpertView`,
    `AveragesView`, `Pair`, or None."""

    page: str
    at: Any = None

    @property
    def name(self) -> str:
        return self.page or "Trace"

    @property
    def query(self) -> dict[str, str]:
        """The address's parameters."""
        at = self.at
        if isinstance(at, Link):
            return links.to_query(at.request, at.view, bundled=at.bundled)
        if isinstance(at, RoutingView):
            return routing_link.to_query(at)
        if isinstance(at, ExpertView):
            return expert_link.to_query(at)
        if isinstance(at, AveragesView):
            return averages_link.to_query(at)
        if isinstance(at, Pair):
            return compare_link.to_query(at)
        return {}

    def needs(self, last: dict[Fact, int]) -> set[Hashable]:
        """What has to be in the store for this place to be drawn at once. `last`: each fact's last position."""
        at = self.at
        if isinstance(at, Link):
            return _trace_needs(at, last)
        if isinstance(at, RoutingView):
            return {("routing", at.a.facts)}
        if isinstance(at, ExpertView):
            return {("rescue", at.facts)} | ({("routing", at.facts)} if at.chosen else set())
        if isinstance(at, AveragesView):
            return {("averages", at.facts), ("experts over facts", at.facts, at.role)}
        if isinstance(at, Pair):
            return set().union(*(_trace_needs(at.side(side), last) for side in SIDES))
        return set()


def _trace_needs(at: Link, last: dict[Fact, int]) -> set[Hashable]:
    needed: set[Hashable] = {("trace", at.request)}
    if at.view.pos not in (None, last[at.request.fact]):
        needed.add(("experts", at.request, at.view.pos))
    return needed


def requests_of(place: Place, known: tuple[Fact, ...]) -> list[TraceRequest]:
    """The single traces that a place about several facts speaks of; `known`: the bundled facts."""
    at = place.at
    facts = fact_sets.choose(at.a.facts if isinstance(at, RoutingView) else at.facts, known)
    if isinstance(at, AveragesView):
        return [at.asked.replace(fact=fact) for fact in facts]
    return [at.trace(fact) for fact in facts]
