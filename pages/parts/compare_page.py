"""The Compare page: two questions side by side, their maps on shared axes, what changed from the one to the other."""

from __future__ import annotations

import functools
from collections.abc import Callable

import streamlit as st

from core import sites
from core.cells.asking import ask_map
from core.compare import words
from core.compare.asked import asked
from core.compare.link import SIDES, Pair
from core.compare.tables import Compared
from core.derived import DerivedResult
from core.errors import InputError
from core.links import Link, View
from core.prompts import subject_span
from core.results import TraceResult

from . import (
    address,
    base,
    compare_state,
    facts_panel,
    frame,
    in_line,
    map_switches,
    model_panel,
    navigation,
    present,
    settings_panel,
    study_state,
    text,
)
from .answers import answer

HELP_EDIT = "Whose settings stand below. What you change there is what the two sides differ in."
HELP_MAP = "Of this side alone, to compare two sites of one run. The switch above the maps is for both sides."
SAME = "Both sides ask the same question. Change a setting of b in the sidebar: the fact, the noise level, the model …"
VERSIONS = "Two versions of one model"
HELP_VERSIONS = (
    "The two models have different names but the same shape. If one is a version of the other (quantised, fine-tuned), "
    "expert 5 of a layer is the same expert in both, and experts and routing can be compared."
)


@in_line.drawn
def draw() -> None:
    """The whole page."""
    base.start_page("Compare")
    pair = compare_state.HERE.begin()
    _sidebar(pair)
    compare_state.HERE.write()
    _head(pair)
    frame.problems(pair.problems)
    results: dict[str, TraceResult | None] = {}
    with st.grid(2, min_column_width=380, gap="medium"):
        for side in SIDES:
            with st.container(border=True):
                _side(side, pair)
                results[side] = answer(pair.side(side).request, f"compare {side}")[0]
    a, b = results["a"], results["b"]
    if a is not None and b is not None:
        from . import compare_maps  # charts take most of a second to import: the head is on the screen by then

        above = st.container()
        compare_maps.switches(pair, max(a.provenance.n_layers, b.provenance.n_layers))
        maps = {side: _map(side, pair.side(side), result) for side, result in (("a", a), ("b", b))}
        ready = all(maps[side] is not None or pair.side(side).view.is_base for side in SIDES)
        at = (maps["a"], maps["b"]) if ready else (None, None)
        compared = compare_state.together(a, b, pair.same_model, *at)
        present.say(words.sentences(compared, maps=ready))
        with above:
            _changed(compared, pair, maps=ready)
        compare_maps.draw(compared, pair, maps=ready)
    elif a is not None or b is not None:
        from . import compare_alone, compare_maps

        side, result = ("a", a) if a is not None else ("b", b)
        above = st.container()
        compare_maps.switches(pair, result.provenance.n_layers)
        at = _map(side, pair.side(side), result)
        ready = at is not None or pair.side(side).view.is_base
        with above:
            compare_alone.say(side, result, at, maps=ready)
        if ready:
            compare_alone.draw(pair, side, result, at)
    frame.foot()


def _sidebar(pair: Pair) -> None:
    with st.sidebar:
        navigation.draw()
        key = address.key("edit")
        st.segmented_control(
            "Settings of", SIDES, default=pair.edited, key=key, required=True, width="stretch", help=HELP_EDIT,
            format_func="side {}".format,
            on_change=address.callback(key, lambda: compare_state.change(edited=st.session_state[key] or "b")),
        )  # fmt: skip
        side = pair.side(pair.edited)
        asker = compare_state.asker(pair.edited)
        model_panel.draw(
            side.request.model, place=asker.place, changed=lambda spec: asker.ask(asker.now().replace(model=spec))
        )
        facts_panel.draw(side, asker, functools.partial(compare_state.browse, pair.edited))
        settings_panel.corruption(side.request, asker)
        settings_panel.tokens(side.request, asker)
        _map_of(pair.edited, side.view)


def _map_of(side: str, view: View) -> None:
    """What the layer × token map of one side alone patches."""
    with st.expander("Map" + ("" if view.is_base else f" · {sites.map_name(view.site, view.window)}")):
        key = address.key(f"map of {side} {view.site}")
        st.selectbox(
            "Layer × token patches", sites.SITES, index=sites.SITES.index(view.site), key=key, help=HELP_MAP,
            format_func=sites.NAMES.__getitem__,
            on_change=address.callback(key, lambda: compare_state.show(side, site=st.session_state[key])),
        )  # fmt: skip

        def window(key: str) -> Callable[[], None]:
            return address.callback(key, lambda: compare_state.show(side, window=st.session_state[key] or 1))

        map_switches.window(
            view.window, n_layers=None, key=address.key(f"window of {side} {view.window}"), callback=window
        )


def _head(pair: Pair) -> None:
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.subheader("Compare", anchor=False, width="content")
        with st.container(horizontal=True, vertical_alignment="center", width="content"):
            texts = [side.request.fact.text.strip() for side in (pair.a, pair.b)]
            present.place("compare", " beside ".join(dict.fromkeys(texts)))
            st.button(
                "Swap", icon=":material/swap_horiz:", help="a becomes b and b becomes a.", key="es_swap",
                on_click=compare_state.swap,
            )  # fmt: skip
            with st.popover("Link", icon=":material/link:"):
                st.caption("Opens exactly this: both questions, the chosen cell.")
                st.code(compare_state.address(), language=None, wrap_lines=True)


def _side(side: str, pair: Pair) -> None:
    """A side's question, with what the other asks differently standing out, and the way to the Trace page with it."""
    link, other = pair.side(side), pair.side("b" if side == "a" else "a")
    fact = link.request.fact
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.markdown(f"#### {side}", width="content")
        study_state.trace_link(link)
    try:
        span = subject_span(fact)
    except InputError:
        span = None
    prompt = text.marked_prompt(fact.text, span)
    st.html(text.head(prompt, fact.true, fact.foil or "(automatic)", link.request.first_token))
    told = [(text.plain(said), differs) for said, differs in asked(link.request, other.request)]
    st.caption(" · ".join(f"**{one}**" if differs else one for one, differs in told))


def _map(side: str, link: Link, result: TraceResult) -> DerivedResult | None:
    """What a side's layer × token map shows, where it is not the trace itself; None also as long as it is not there."""
    view, n_layers = link.view, result.provenance.n_layers
    if view.is_base:
        return None
    if view.window > n_layers:
        st.warning(f"{side}: a window of {view.window} layers is more than the model has; {n_layers} are used.")
    return answer(ask_map(link.request, view.site, view.window, n_layers), f"compare map {side}", place=side)[0]


def _changed(compared: Compared, pair: Pair, *, maps: bool) -> None:
    """The sentences, the numbers, and whether two names are one model. `maps`: whether the maps are there."""
    if words.changed(compared) == words.SAME:
        st.info(SAME)
    st.html(text.findings(words.sentences(compared, maps=maps)))
    headings, rows, titles = words.numbers(compared)
    st.html(text.table(headings, rows, titles))
    if compared.could_be_versions:
        key = address.key("versions")
        st.toggle(
            VERSIONS, pair.same_model, key=key, help=HELP_VERSIONS,
            on_change=address.callback(key, lambda: compare_state.change(same_model=bool(st.session_state[key]))),
        )  # fmt: skip
