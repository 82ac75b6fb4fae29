"""The Expert page: the dossier of one expert of one model over a set of facts.

Routing and rescue come first; what takes longer is asked for when its section is opened.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import streamlit as st

from core import catalog, expert_link
from core.deployment import allowed, is_allowed
from core.derived import DerivedResult
from core.expert_link import SECTIONS, ExpertView
from core.requests import Fact, corrupt_runs
from core.results import expert_name

from . import address, base, display, expert_sidebar, expert_state, frame, in_line, listing, present, text
from .answers import answer
from .expert_state import look

TITLES = {
    "routing": "When it is routed",
    "rescue": "Rescue",
    "knockout": "Knockout",
    "writes": "What it writes",
    "size": "Size",
    "neurons": "Neurons",
    "steering": "Steering box",
}
EXPLAINED = {
    "routing": "Where the router sends tokens to this expert, in the clean runs of the chosen facts.",
    "rescue": "What its update alone brings back when it is added in the corrupt run, at the last position.",
    "knockout": "What the clean runs lose without it: on its own facts, and on those of other relations.",
    "writes": "Which tokens its output makes more and less probable, through the final norm and the unembedding.",
    "size": "How large its output is, and how far it turns the block output, beside the other experts of its layer.",
    "neurons": "The neurons of a gated expert: when each is active, what it reads and writes.",
    "steering": "Scale what it contributes, and watch the next token and a short continuation change.",
}
CORRUPTED = ("rescue", "writes")
"""Sections with numbers of corrupt runs."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """What has to be known of a model to name its experts."""

    moe_layers: list[int]
    n_layers: int
    n_experts: int

    @classmethod
    def of(cls, result: DerivedResult) -> Shape:
        where = result.provenance
        return cls(list(where["moe_layers"]), where["n_layers"], where["n_experts"])


@in_line.drawn
def draw() -> None:
    """The whole page."""
    base.start_page("Expert")
    view = expert_state.HERE.begin()
    expert_sidebar.draw(view)
    expert_state.HERE.write()
    top = st.container()
    frame.problems(view.problems)
    facts = base.facts_of(view.facts)
    if facts:
        _dossier(view, facts, top)
    else:
        _title(view, None, top)
        st.info("There is no fact in this set. Choose others in the sidebar.")
    frame.foot()


def _dossier(view: ExpertView, facts: Sequence[Fact], top: Any) -> None:
    rescue, fresh = answer(expert_link.rescue_request(view, facts), "expert rescue")
    if rescue is None:
        _title(view, None, top)
        return
    shape = Shape.of(rescue)
    view, problems = expert_link.check(view, **dataclasses.asdict(shape))
    for problem in problems:
        st.warning(text.plain(problem))
    _title(view, shape, top, rescue, fresh)
    _left_out(rescue)
    # charts take most of a second to import: the head is there by then
    from . import expert_pieces, expert_rescue, expert_routing, expert_sections

    if rescue.tables["facts"].empty:
        st.info("The model can take none of these facts, so nothing was measured. Choose others in the sidebar.")
        return
    if not view.chosen:
        expert_rescue.everyone(rescue)
        return
    found, routing = expert_rescue.found_of(view, rescue), expert_routing.result_of(view, facts)
    tokens = None if routing is None else expert_routing.counted(routing, view)
    shown = expert_pieces.Shown(view, tuple(facts), rescue, found, routing, tokens)
    present.say(expert_sections.cards(shown))
    present.uses(rescue, *([routing] if routing is not None else []))
    _switch(view)
    runs = f" Corrupt runs: {corrupt_runs(view.trace(facts[0]))}." if view.section in CORRUPTED else ""
    present.intro(EXPLAINED[view.section] + runs)
    expert_sections.SECTIONS[view.section](shown)


def _title(
    view: ExpertView, shape: Shape | None, place: Any, rescue: DerivedResult | None = None, fresh: bool = False
) -> None:
    """The expert's name, the way to the ones beside it, report and link."""
    with place, st.container(horizontal=True, vertical_alignment="bottom", horizontal_alignment="distribute"):
        with st.container(horizontal=True, vertical_alignment="bottom", width="content"):
            st.subheader(f"Expert {view.name}" if view.chosen else "Experts", anchor=False, width="content")
            _pickers(view, shape)
            if rescue is not None:
                frame.came_from(str(rescue.provenance["created"]), fresh)
        with st.container(horizontal=True, vertical_alignment="bottom", width="content"):
            section = f"Expert {view.name}: {TITLES[view.section].lower()}"
            title = section if view.chosen else "Experts"
            present.place("expert", title, script=functools.partial(present.of_set, fact_set=view.facts))
            with st.popover("Link", icon=":material/link:"):
                st.caption("Opens exactly this: model, expert, facts, settings, section.")
                st.code(expert_state.address(), language=None, wrap_lines=True)


def _pickers(view: ExpertView, shape: Shape | None) -> None:
    """Layer and expert, previous and next; before the model's shape is known, the name alone."""
    if shape is None:
        _by_name(view)
        return
    if view.chosen:
        for step, icon, word in ((-1, ":material/chevron_left:", "previous"), (1, ":material/chevron_right:", "next")):
            there = expert_link.beside(view, step, moe_layers=shape.moe_layers, n_experts=shape.n_experts)
            st.button(
                "", icon=icon, key=address.key(f"expert {word} {view.name}"), help=f"The {word} expert: {there.name}",
                on_click=look, kwargs={"layer": there.layer, "expert": there.expert},
            )  # fmt: skip
    layer = view.layer if view.chosen else None
    options = list(range(shape.n_experts))
    key = address.key(f"expert layer {view.name}")
    st.selectbox(
        "Layer", shape.moe_layers, index=None if layer is None else shape.moe_layers.index(layer), key=key,
        width=display.pixels(130), format_func="layer {}".format, label_visibility="collapsed", placeholder="layer",
        on_change=_choose(key, lambda chosen: {"layer": chosen, "expert": view.expert if view.chosen else 0}),
    )  # fmt: skip
    if layer is None:
        return
    key = address.key(f"expert number {view.name}")
    st.selectbox(
        "Expert", options, index=view.expert, key=key, width=display.pixels(125), label_visibility="collapsed",
        format_func=lambda e: expert_name(layer, e),
        on_change=_choose(key, lambda chosen: {"layer": layer, "expert": chosen}),
    )  # fmt: skip
    st.button("All experts", key=address.key("expert all"), on_click=look, kwargs={"layer": None, "expert": None})


def _by_name(view: ExpertView) -> None:
    key = address.key("expert name")
    model = view.model
    may = is_allowed(model.name, allowed(), revision=model.revision)
    known = catalog.entry(model.name, revision=model.revision).shape if may else "?"
    st.text_input(
        "Expert", view.name, key=key, width=110, label_visibility="collapsed", placeholder="L6E005", max_chars=14,
        help=f"Layer and expert, as L6E005; layers × experts of this model: {known}.",
        on_change=_choose(key, _parsed),
    )  # fmt: skip


def _parsed(name: str) -> dict[str, int | None]:
    found = expert_link.parse(name)
    return {} if found is None else {"layer": found[0], "expert": found[1]}


def _choose(widget: str, changes: Callable[[object], dict]) -> Callable[[], None]:
    def change() -> None:
        value = st.session_state.get(widget)
        if value is not None and (changed := changes(value)):
            look(**changed)

    return address.callback(widget, change)


def _switch(view: ExpertView) -> None:
    key = address.key("expert section")

    def change() -> None:
        look(section=st.session_state[key] or SECTIONS[0])

    st.segmented_control(
        "Section", SECTIONS, default=view.section, key=key, wrap=True, required=True, format_func=TITLES.__getitem__,
        on_change=address.callback(key, change), label_visibility="collapsed",
    )  # fmt: skip


def _left_out(result: DerivedResult) -> None:
    """The facts that the model cannot take, counted and listed."""
    left_out = result.values["left_out"]
    if not left_out:
        return
    n = len(left_out)
    with st.expander(f"{n} of {n + len(result.tables['facts'])} facts left out: the model cannot take them"):
        listing.left_out(left_out, alt="Facts left out and why")
