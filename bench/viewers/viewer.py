"""A viewer: knows where it is, clicks on something at random, and says where that has to lead.

Each click is a change of the app's own links (`places.Place`) beside a real click in a tab; what the tab shows then is
checked against the place. Knows nothing of how the server is.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import parse_qsl

import numpy as np

from core.averages.link import AveragesView
from core.compare.link import Pair
from core.expert_link import ExpertView
from core.fact_sets import FactSet
from core.links import Link, View
from core.requests import Fact, TraceRequest
from core.roles import ROLES
from core.routing_link import PromptSet, RoutingView

from .answers import Answers
from .checks import wrong
from .places import AVERAGES, COMPARE, EXPERT, HEALTH, LIBRARY, METHOD, PLAIN, ROUTING, TRACE, Place
from .screen import Screen
from .tab import Stuck, Tab

OTHER_NOISE = 2.5
"""Side b of the Compare page is asked with this noise level."""


@dataclass(frozen=True)
class World:
    """What may be looked at: facts of the bundled list, sets of few facts, seeds that nobody has asked for yet."""

    facts: tuple[Fact, ...]
    sets: tuple[FactSet, ...]
    seeds: tuple[int, ...]
    known: tuple[Fact, ...]

    def requests(self) -> list[TraceRequest]:
        """Every trace that a viewer may come to."""
        from core.fact_sets import choose

        out = [TraceRequest(fact, noise=noise) for fact in self.facts for noise in (3.0, OTHER_NOISE)]
        out += [TraceRequest(fact, seed=seed) for fact, seed in self.fresh()]
        return out + [TraceRequest(fact) for chosen in self.sets for fact in choose(chosen, self.known)]

    def fresh(self) -> list[tuple[Fact, int]]:
        """A fact and a seed each, for traces with new settings."""
        return [(self.facts[i % len(self.facts)], seed) for i, seed in enumerate(self.seeds)]


@dataclass
class Shared:
    """What all viewers have in common. `done`: what the store has by now; `fresh`: new settings nobody took yet;
    `last`: each fact's last position."""

    world: World
    answers: Answers
    done: set[Hashable] = field(default_factory=set)
    fresh: dict[Fact, list[int]] = field(default_factory=dict)
    last: dict[Fact, int] = field(default_factory=dict)

    @classmethod
    def of(cls, world: World, answers: Answers) -> Shared:
        fresh: dict[Fact, list[int]] = {}
        for fact, seed in world.fresh():
            fresh.setdefault(fact, []).append(seed)
        last = {fact: answers[TraceRequest(fact)].last for fact in world.facts}
        return cls(world, answers, fresh=fresh, last=last)


@dataclass(frozen=True)
class Look:
    """One look at a page. `seconds` from the click until it was drawn; `cached`: everything was in the store before;
    `at`: when it was drawn (`time.monotonic`)."""

    viewer: int
    page: str
    click: str
    seconds: float
    cached: bool
    wrong: tuple[str, ...]
    at: float


Step = Callable[[], Awaitable[float]]


class Viewer:
    """See the module. `url`: the server's; `choose`: decides everything that is left to chance."""

    def __init__(self, number: int, url: str, shared: Shared, choose: random.Random) -> None:
        self.number, self._url, self._shared, self._random = number, url, shared, choose
        self._tab = Tab(url)
        self.place = Place(TRACE)
        self._back: list[tuple[Place, str, str]] = []  # with the page's hash and the address's parameters
        self._visited: dict[str, Place] = {}

    @property
    def screen(self) -> Screen:
        return self._tab.screen

    async def arrive(self) -> Look:
        """Open the first page by a link."""
        return await self._look("link", self._by_link(self._some_place(TRACE)))

    async def click(self) -> Look:
        """Click on something that can be clicked here."""
        options = self._options()
        weights = [weight for weight, _, _ in options]
        _, name, make = self._random.choices(options, weights)[0]
        try:
            step = make()
        except Exception as error:  # what should be clicked on is not there: that is for the table, too
            told = f"viewer {self.number}, {name} on {self.place.name} is not possible: {type(error).__name__}: {error}"
            await self._tab.close()
            self._tab, self._back, self._visited, self.place = Tab(self._url), [], {}, Place(TRACE)
            looked = await self.arrive()
            return replace(looked, wrong=(told, *looked.wrong))
        return await self._look(name, step)

    async def leave(self) -> None:
        """Close the tab."""
        await self._tab.close()

    async def _look(self, name: str, step: tuple[Place, Step]) -> Look:
        place, act = step
        came = f"{place.name} by {name} from {self.place.name}"
        needs = place.needs(self._shared.last)
        cached = needs <= self._shared.done
        begun = time.perf_counter()
        try:
            seconds = await act()
            problems = wrong(place, self.screen, self._shared.answers, self._shared.world.known)
        except Stuck as error:
            seconds, problems = time.perf_counter() - begun, [*self.screen.problems, str(error)]
        self._shared.done |= needs
        self.place = self._visited[place.page] = place
        if problems:  # go on from a place that is known
            await self._tab.close()
            self._tab, self._back, self._visited = Tab(self._url), [], {}
            try:
                await self._tab.open(place.page, place.query)
            except Stuck as error:
                problems.append(f"and the link does not open: {error}")
        told = tuple(f"viewer {self.number}, {came}: {problem}" for problem in problems)
        return Look(self.number, place.name, name, seconds, cached, told, time.monotonic())

    # -- what can be done --------------------------------------------------------------------------------------------

    def _options(self) -> list[tuple[float, str, Callable[[], tuple[Place, Step]]]]:
        """(how often, name, what makes the step)."""
        here = {
            TRACE: self._on_trace, ROUTING: self._on_routing, EXPERT: self._on_expert, AVERAGES: self._on_averages,
            COMPARE: self._on_compare,
        }.get(self.place.page, lambda: [])()  # fmt: skip
        there = [(1.0, "page", self._page), (0.5, "new tab", lambda: self._by_link(self._some_place()))]
        if self._back:
            there.append((1.0, "back", self._go_back))
        return here + there

    def _on_trace(self) -> list[tuple[float, str, Callable[[], tuple[Place, Step]]]]:
        options = [(3.0, "cell", self._cell), (2.0, "expert", self._expert), (1.0, "colours", self._colours)]
        request = self.place.at.request
        if request.seed or request.noise != 3.0:
            return [*options, (3.0, "usual settings", self._usual)]
        options.append((3.0, "fact", self._fact))
        if self._shared.fresh.get(request.fact):
            options.append((0.4, "new settings", self._new_seed))
        return [*options, (0.7, "compare", self._compare)]

    def _cell(self) -> tuple[Place, Step]:
        at = self.place.at
        one = self._shared.answers[at.request]
        now = self._shown_cell()
        layer, pos = now
        while (layer, pos) == now:
            layer, pos = self._random.randrange(one.rescue.shape[0]), self._random.randrange(one.rescue.shape[1])
        return self._traced(at, at.view.at(layer, pos)), lambda: self._mark("es_cells_", "cell", layer=layer, pos=pos)

    def _expert(self) -> tuple[Place, Step]:
        at = self.place.at
        one = self._shared.answers[at.request]
        pos = one.last if at.view.pos is None else at.view.pos
        marked = at.view.layer, at.view.expert
        layer, expert = self._random.choice([x for x in map(tuple, np.argwhere(one.routed[:, pos])) if x != marked])
        place = self._traced(at, at.view.at(int(layer), pos, int(expert)))
        return place, lambda: self._mark("es_experts_", "expert", layer=int(layer), expert=int(expert))

    def _colours(self) -> tuple[Place, Step]:
        at = self.place.at
        measure = {"restoration": "rescue", "rescue": "restoration"}[at.view.measure]
        label = {"rescue": "rescue in logits", "restoration": "restoration"}[measure]
        node = self.screen.widget("button_group", label="What the colours show")
        return self._traced(at, replace(at.view, measure=measure)), lambda: self._tab.change(
            node, string_array_value=[label]
        )

    def _fact(self) -> tuple[Place, Step]:
        at = self.place.at
        node = self.screen.widget("selectbox", label="Fact")
        fact = self._random.choice([f for f in self._shared.world.facts if f != at.request.fact])
        named = f"{fact.subject} → {fact.true}"
        option = next(o for o in node.proto.options if o.startswith(f"{named} "))
        place = Place(TRACE, Link(at.request.replace(fact=fact), at.view.elsewhere(), True))
        return place, lambda: self._tab.change(node, string_value=option)

    def _new_seed(self) -> tuple[Place, Step]:
        return self._seed(self._shared.fresh[self.place.at.request.fact].pop())

    def _usual(self) -> tuple[Place, Step]:
        at = self.place.at
        if at.request.noise == 3.0:
            return self._seed(0)
        node = self.screen.widget("number_input", label="Noise level")
        return self._traced(at, at.view, noise=3.0), lambda: self._tab.change(node, double_value=3.0)

    def _seed(self, seed: int) -> tuple[Place, Step]:
        node = self.screen.widget("number_input", label="Seed")
        return self._traced(self.place.at, self.place.at.view, seed=seed), lambda: self._tab.change(
            node, double_value=float(seed)
        )

    def _compare(self) -> tuple[Place, Step]:
        link = self.screen.widget("page_link", label="Compare with …").proto
        at = self.place.at
        one = Link(at.request, replace(at.view.maps(), expert=None, strip=None), at.bundled)
        return self._followed(Place(COMPARE, Pair(one, one)), link)

    def _on_compare(self) -> list[tuple[float, str, Callable[[], tuple[Place, Step]]]]:
        pair = self.place.at
        if pair.b.request.noise == OTHER_NOISE:
            return [(1.0, "swap", self._swap)] if pair.a.request.noise != OTHER_NOISE else []
        return [(4.0, "side b", self._other_noise)]

    def _other_noise(self) -> tuple[Place, Step]:
        pair = self.place.at
        node = self.screen.widget("number_input", label="Noise level")
        changed = replace(pair.b, request=pair.b.request.replace(noise=OTHER_NOISE))
        return Place(COMPARE, pair.with_side("b", changed)), lambda: self._tab.change(node, double_value=OTHER_NOISE)

    def _swap(self) -> tuple[Place, Step]:
        node = self.screen.widget("button", label="Swap")
        return Place(COMPARE, self.place.at.swapped()), lambda: self._tab.press(node)

    def _on_routing(self) -> list[tuple[float, str, Callable[[], tuple[Place, Step]]]]:
        key = "es_routing-frequency_"
        return [(3.0, "expert", lambda: self._some_expert(key, fact=None))] if self.screen.chart(key) else []

    def _on_expert(self) -> list[tuple[float, str, Callable[[], tuple[Place, Step]]]]:
        if not self.place.at.chosen:
            key = "es_expert_map_"
            return [(3.0, "expert", lambda: self._some_expert(key))] if self.screen.chart(key) else []
        return [(2.0, "section", self._section), (1.0, "all experts", self._all_experts)]

    def _some_expert(self, key: str, **also: None) -> tuple[Place, Step]:
        table = self.screen.chart(key).table("layer", "expert", "value")
        at, marked = self.place.at, (self.place.at.layer, self.place.at.expert)
        cells = [(int(la), int(e)) for la, e in zip(table.layer, table.expert, strict=True)]
        layer, expert = self._random.choice([cell for cell in cells if cell != marked])
        place = Place(self.place.page, replace(at, layer=layer, expert=expert, **also))
        return place, lambda: self._mark(key, "expert", layer=layer, expert=expert)

    def _section(self) -> tuple[Place, Step]:
        at = self.place.at
        section, label = {"routing": ("rescue", "Rescue")}.get(at.section, ("routing", "When it is routed"))
        node = self.screen.widget("button_group", label="Section")
        return Place(EXPERT, replace(at, section=section)), lambda: self._tab.change(node, string_array_value=[label])

    def _all_experts(self) -> tuple[Place, Step]:
        node = self.screen.widget("button", label="All experts")
        return Place(EXPERT, replace(self.place.at, layer=None, expert=None, fact=None, neuron=None)), lambda: (
            self._tab.press(node)
        )

    def _on_averages(self) -> list[tuple[float, str, Callable[[], tuple[Place, Step]]]]:
        return [(3.0, "cell", self._role)] if self.screen.chart("es_averages_cells_") else []

    def _role(self) -> tuple[Place, Step]:
        table = self.screen.chart("es_averages_cells_").table("layer", "role", "value")
        at, now = self.place.at, (self.place.at.layer, ROLES.index(self.place.at.role))
        cells = [(int(la), int(r)) for la, r in zip(table.layer, table.role, strict=True)]
        layer, role = self._random.choice([cell for cell in cells if cell != now])
        place = Place(AVERAGES, replace(at, layer=layer, role=ROLES[role], expert=None))
        return place, lambda: self._mark("es_averages_cells_", "cell", layer=layer, role=role)

    # -- from page to page -------------------------------------------------------------------------------------------

    def _page(self) -> tuple[Place, Step]:
        """A page of the sidebar: one that was visited comes back as it was left, one that needs few facts by link."""
        pages = (TRACE, ROUTING, EXPERT, AVERAGES, COMPARE, LIBRARY, METHOD, HEALTH)
        page = self._random.choice([page for page in pages if page != self.place.page])
        if page in PLAIN or page in self._visited:
            place = self._visited.get(page, Place(page))
            link = self.screen.widget("page_link", label=place.name)
            if link is not None:
                return self._followed(place, link.proto)
        return self._by_link(self._some_place(page))

    def _some_place(self, page: str | None = None) -> Place:
        """A place that somebody's link might lead to."""
        world = self._shared.world
        page = self._random.choice((TRACE, TRACE, ROUTING, EXPERT, AVERAGES, COMPARE)) if page is None else page
        chosen, fact = self._random.choice(world.sets), self._random.choice(world.facts)
        link = Link(TraceRequest(fact), View(), True)
        return {
            TRACE: Place(TRACE, link),
            ROUTING: Place(ROUTING, RoutingView(a=PromptSet(facts=chosen))),
            EXPERT: Place(EXPERT, ExpertView(facts=chosen)),
            AVERAGES: Place(AVERAGES, AveragesView(facts=chosen)),
            COMPARE: Place(COMPARE, Pair(link, link)),
        }.get(page, Place(page))

    def _by_link(self, place: Place) -> tuple[Place, Step]:
        async def act() -> float:
            await self._tab.close()
            self._tab, self._back, self._visited = Tab(self._url), [], {}
            return await self._tab.open(place.page, place.query)

        return place, act

    def _followed(self, place: Place, link) -> tuple[Place, Step]:  # noqa: ANN001 - Streamlit's PageLink
        self._remember()
        said = dict(parse_qsl(link.query_string, keep_blank_values=True))

        async def act() -> float:
            if said != place.query:
                self.screen.broken.append(f"the link to {place.name} says {said}, not {place.query}")
            return await self._tab.follow(link.page_script_hash, place.page, link.query_string)

        return place, act

    def _go_back(self) -> tuple[Place, Step]:
        place, page, query = self._back.pop()
        return place, lambda: self._tab.follow(page, place.page, query, back=True)

    def _remember(self) -> None:
        self._back = [*self._back, (self.place, self.screen.page, self.screen.query)][-10:]

    # -- small things ------------------------------------------------------------------------------------------------

    def _traced(self, at: Link, view: View, **settings: object) -> Place:
        self._remember()
        return Place(TRACE, replace(at, request=at.request.replace(**settings), view=view))

    def _shown_cell(self) -> tuple[int, int]:
        found = re.search(r"Experts of layer (\d+) at “.*\((\d+)\)”", self.screen.text)
        return (int(found[1]), int(found[2])) if found else (-1, -1)

    async def _mark(self, key: str, selection: str, **mark: int) -> float:
        node = next(
            node for node in self.screen.nodes.values()
            if node.kind == "vega_lite_chart" and re.search(rf"-{re.escape(key)}", node.proto.id)
        )  # fmt: skip
        return await self._tab.select(node, selection, mark)


def some_world(facts: Sequence[Fact], *, n: int, per_set: int, sets: int, seeds: int) -> World:
    """The first `n` facts, that many sets of few facts of one relation each, that many new seeds."""
    relations = list(dict.fromkeys(fact.relation for fact in facts))[:sets]
    chosen = tuple(FactSet(relations=(str(name),), n=per_set) for name in relations)
    return World(tuple(facts[:n]), chosen, tuple(range(1000, 1000 + seeds)), tuple(facts))
