"""Whether a screen shows what was asked: address, prompt and numbers against `answers`, page by page.

Every function gives sentences about what is wrong, none where all is right. Knows no network.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from urllib.parse import parse_qsl

import numpy as np
import pandas as pd

from core.averages.tables import DEFAULT_DROP
from core.compare.link import SIDES
from core.requests import Fact, TraceRequest
from core.roles import ROLES

from .answers import Answers, Traced
from .places import AVERAGES, COMPARE, EXPERT, HEALTH, LIBRARY, METHOD, ROUTING, STUDY, TRACE, Place, requests_of
from .screen import Screen

CLOSE = 1e-4
"""Logits by which two fp32 answers may differ."""
ROUNDED = 1.1e-3
"""The same for a number that is shown with three decimals."""


def wrong(place: Place, screen: Screen, answers: Answers, known: tuple[Fact, ...]) -> list[str]:
    """What on the screen is not what belongs to the place; `known`: the bundled facts."""
    found = list(screen.problems)
    # the Study page's address is its viewer's affair, the Method page chooses its example itself
    address = dict(parse_qsl(screen.query, keep_blank_values=True))
    if place.page not in (STUDY, METHOD) and address != place.query:
        found.append(f"the address is {address}, not {place.query}")
    if found:
        return found
    return list(_PAGES[place.page](place, screen, answers, known))


def _title(name: str, screen: Screen) -> Iterable[str]:
    if name not in screen.text:
        yield f"the page does not say {name}"


def _trace(place: Place, screen: Screen, answers: Answers, _: tuple[Fact, ...]) -> Iterable[str]:
    request, view = place.at.request, place.at.view
    one = answers[request]
    yield from _prompt(request.fact, screen)
    yield from _sidebar(request, screen)
    shown = screen.metrics
    contrasts = {"clean contrast": one.clean, "corrupt contrast": one.corrupt, "drop": one.drop}
    expected = {name: f"{value:+.3f}".replace("-", "−") for name, value in contrasts.items()}
    expected["P(true)"] = "{:.2f} → {:.2f}".format(*one.p_true)
    if any(not _same_number(shown.get(name, ""), value) for name, value in expected.items()):
        yield f"the head says {shown}, not {expected}"
    pos = one.last if view.pos is None else view.pos
    yield from _grid(screen, "es_cells_", ["layer", "pos"], one.shown(one.rescue, view.measure), one)
    yield from _grid(screen, "es_experts_", ["layer", "expert"], one.shown(one.experts[:, pos], view.measure), one)
    title = re.search(r"Experts of layer (\d+) at “.*\((\d+)\)”", screen.text)
    if title is None or int(title[2]) != pos or view.layer not in (None, int(title[1])):
        yield f"the cell is {title and title[0]}, not layer {view.layer}, position {pos}"
        return
    layer = int(title[1])
    if view.layer is None and one.rescue[layer, pos] < one.rescue[:, pos].max() - CLOSE:
        yield f"layer {layer} is shown, which does not restore most"
    yield from _sentence(screen, "The whole layer patch here", one.rescue[layer, pos], one)
    if view.expert is not None and one.routed[layer, pos, view.expert]:
        yield from _sentence(screen, f"L{layer}E{view.expert:03d} alone", one.experts[layer, pos, view.expert], one)
    yield from _active(screen, one, layer, pos)
    strip = screen.chart("es_strip_")
    table = None if strip is None else strip.table("pos", "expert")
    routed = {(int(p), int(e)) for p, e in np.argwhere(one.routed[layer])}
    if table is None or set(zip(table.pos, table.expert, strict=True)) != routed:
        yield f"the routing of layer {layer} is not the one that was computed"


def _active(screen: Screen, one: Traced, layer: int, pos: int) -> Iterable[str]:
    table = screen.table("name", "rescue", "status")
    expected = {f"L{layer}E{e:03d}": one.experts[layer, pos, e] for e in np.flatnonzero(one.routed[layer, pos])}
    if table is None or set(table.name) != set(expected):
        yield f"the table lists {None if table is None else sorted(table.name)}, not {sorted(expected)}"
    elif max(abs(row.rescue - expected[row.name]) for row in table.set_index("name", drop=False).itertuples()) > CLOSE:
        yield f"the table of layer {layer}, position {pos} has other rescues than were computed"


def _routing(place: Place, screen: Screen, answers: Answers, known: tuple[Fact, ...]) -> Iterable[str]:
    yield from _title("Routing", screen)
    expected = answers.frequency(requests_of(place, known))
    yield from _grid(screen, "es_routing-frequency_", ["layer", "expert"], expected)


def _expert(place: Place, screen: Screen, answers: Answers, known: tuple[Fact, ...]) -> Iterable[str]:
    view = place.at
    expected = answers.expert_rescue(requests_of(place, known))
    if not view.chosen:
        yield from _title("Experts", screen)
        yield from _grid(screen, "es_expert_map_", ["layer", "expert"], expected)
        return
    yield from _title(f"Expert {view.name}", screen)
    value = expected[view.layer, view.expert]
    value = 0.0 if np.isnan(value) else value
    cards = re.findall(r">rescue, all facts</div><div[^>]*>([+−]?[0-9.]+)<", _html(screen))
    cards = cards or re.findall(r">rescue[^<]*</div><div[^>]*>([+−]?[0-9.]+)<", _html(screen))
    if not cards or abs(_number(cards[0]) - value) > ROUNDED:
        yield f"the rescue of {view.name} is {cards[:1]}, not {value:+.3f}"
    if view.section == "rescue":
        table = screen.table("quantity", "mean")
        if table is None or abs(table.set_index("quantity").loc["expert_rescue", "mean"] - value) > CLOSE:
            yield f"the table of {view.name} has another rescue than {value:+.4f}"


def _averages(place: Place, screen: Screen, answers: Answers, known: tuple[Fact, ...]) -> Iterable[str]:
    yield from _title("Averages", screen)
    chart = screen.chart("es_averages_cells_")
    table = None if chart is None else chart.table("layer", "role", "value", "defined")
    if table is None:
        yield "there is no map of roles"
        return
    requests = requests_of(place, known)
    for role in ("last token", "last subject", "first subject"):
        expected = answers.by_role(requests, role, min_drop=DEFAULT_DROP, measure=place.at.measure)
        mine = table[table.label.str.startswith(role)].sort_values("layer")
        got = mine.value.where(mine.defined).to_numpy(dtype=float)
        got = got if len(got) else np.full_like(expected, np.nan)
        if not np.allclose(got, expected, atol=CLOSE, equal_nan=True):
            yield f"the averages of the role {role} ({ROLES.index(role)}) are {got}, not {expected}"


def _compare(place: Place, screen: Screen, answers: Answers, _: tuple[Fact, ...]) -> Iterable[str]:
    yield from _title("Compare", screen)
    pair = place.at
    found = {side: answers[pair.side(side).request] for side in SIDES}
    yield from _sidebar(pair.side(pair.edited).request, screen)
    measure = pair.a.view.measure
    for side, one in found.items():
        yield from _prompt(pair.side(side).request.fact, screen)
        yield from _grid(screen, f"es_compare_{side}_", ["layer", "pos"], one.shown(one.rescue, measure), one)
    if pair.a.request.fact == pair.b.request.fact:
        a, b = (one.shown(one.rescue, measure) for one in found.values())
        chart = screen.chart("es_compare_difference_")
        table = None if chart is None else chart.table("layer", "column", "value", "defined")
        if table is None or not _agrees(table, ["layer", "column"], b - a, min(one.drop for one in found.values())):
            yield "the difference is not b − a"


def _plain(name: str) -> Callable[[Place, Screen, Answers, tuple[Fact, ...]], Iterable[str]]:
    def check(place: Place, screen: Screen, answers: Answers, known: tuple[Fact, ...]) -> Iterable[str]:
        return _title(name, screen)

    return check


_PAGES: dict[str, Callable[[Place, Screen, Answers, tuple[Fact, ...]], Iterable[str]]] = {
    TRACE: _trace, ROUTING: _routing, EXPERT: _expert, AVERAGES: _averages, COMPARE: _compare,
    LIBRARY: _plain("Library"), METHOD: _plain("Method"), HEALTH: _plain("Health"), STUDY: _plain("ExpertScope"),
}  # fmt: skip


def _sidebar(request: TraceRequest, screen: Screen) -> Iterable[str]:
    """The fields at the left say what is asked."""
    fact = request.fact
    for kind, label, expected in (
        ("number_input", "Noise level", request.noise), ("number_input", "Draws", request.draws),
        ("number_input", "Seed", request.seed), ("selectbox", "Fact", f"{fact.subject} → {fact.true} "),
    ):  # fmt: skip
        node = screen.widget(kind, label=label)
        shown = None if node is None else screen.value(node)
        if shown is None or not (shown.startswith(expected) if isinstance(expected, str) else shown == expected):
            yield f"the field {label} shows {shown}, not {expected}"


def _prompt(fact: Fact, screen: Screen) -> Iterable[str]:
    said = f"{fact.text} → {fact.true} against {fact.foil}"
    if said not in screen.text:
        yield f"the page does not say “{said}”"


def _grid(screen: Screen, key: str, names: list[str], expected: np.ndarray, one: Traced | None = None) -> Iterable[str]:
    """A chart's column `value` against an array over two other columns; NaN: not there, or not defined."""
    chart = screen.chart(key)
    table = None if chart is None else chart.table(*names, "value", "defined")
    if table is None:
        yield f"the chart {key.strip('_')} is not there"
    elif not _agrees(table, names, expected, 1.0 if one is None else one.drop):
        yield f"the chart {key.strip('_')} has other numbers than were computed"


def _agrees(table: pd.DataFrame, names: list[str], expected: np.ndarray, drop: float) -> bool:
    got = np.full(expected.shape, np.nan)
    defined = table[table.defined]
    got[defined[names[0]].to_numpy(int), defined[names[1]].to_numpy(int)] = defined.value.to_numpy(float)
    return np.allclose(got, expected, rtol=0.0, atol=CLOSE * (1 + 1 / max(abs(drop), 0.05)), equal_nan=True)


def _sentence(screen: Screen, start: str, rescue: float, one: Traced) -> Iterable[str]:
    numbers = r"[^\n]*?: rescue ([+−-]?[0-9.]+) logits, restoration ([−-]?[0-9.]*[0-9]|missing)"
    found = re.search(re.escape(start) + numbers, screen.text)
    restored = one.shown(np.array([rescue]), "restoration")[0]
    if found is None:
        yield f"there is no sentence “{start} …”"
    elif abs(_number(found[1]) - rescue) > ROUNDED or not _same_restoration(found[2], restored):
        yield f"“{start}” says rescue {found[1]}, restoration {found[2]}, not {rescue:+.4f} and {restored:.4f}"


def _same_restoration(said: str, value: float) -> bool:
    return np.isnan(value) if said == "missing" else abs(_number(said) - value) <= ROUNDED * max(1.0, abs(value))


def _same_number(said: str, expected: str) -> bool:
    """Equal, or apart by one in the last place, where rounding may decide."""
    one, other = (re.findall(r"[+-]?[0-9.]+", text.replace("−", "-")) for text in (said, expected))
    return bool(one) and len(one) == len(other) and all(
        abs(float(a) - float(b)) < 0.0101 for a, b in zip(one, other, strict=True)
    )


def _number(text: str) -> float:
    return float(text.replace("−", "-"))


def _html(screen: Screen) -> str:
    return "".join(proto.body for proto in screen.elements("html"))
