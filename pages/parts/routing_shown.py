"""What the Routing page's sections are drawn from and have in common: controls, headers, the chosen expert."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
import streamlit as st

from core.derived import DerivedResult
from core.picture import Picture
from core.results import expert_name
from core.roles import CLASSES, LAST
from core.routing_link import CHANGE, CLEAN, CORRUPT, RoutingView

from . import address, downloads, pictures, text
from .routing_state import look, setting

CLASS_NAMES = {
    "first subject": "First subject", "last subject": "Last subject", "last token": "Last token", "others": "Others",
    "all": "All",
}  # fmt: skip
CLASS_WORDS = {
    "first subject": "first subject token", "last subject": "last subject token", "last token": "last token",
    "others": "other positions", "all": "all positions",
}  # fmt: skip
"""The same in a sentence or a title."""
HELP_CLASS = (
    "Which positions are counted. A subject of one token is a last subject token. Others: before the subject, its "
    "middle tokens, after it; all: every position, BOS included."
)
HELP_RUN = "The prompts as they are, with a corrupted subject (all draws), or what the corruption changes."


@dataclass(frozen=True)
class Shown:
    """What a section is drawn from: a view without gaps, and the answer. `which`: the set that it is of, where two are
    compared."""

    view: RoutingView
    result: DerivedResult
    which: str = ""

    @classmethod
    def of(cls, view: RoutingView, result: DerivedResult) -> Shown:
        """With what the answer does not have replaced by what it has."""
        there = result.tables["load"]
        runs = list(dict.fromkeys(there.run))
        classes = set(there.position_class)
        if view.position_class not in classes:
            view = dataclasses.replace(view, position_class=LAST)
        if (view.run == CHANGE and CORRUPT not in runs) or (view.run == CORRUPT and CORRUPT not in runs):
            view = dataclasses.replace(view, run=CLEAN)
        if view.section != "frequency" and view.run == CHANGE:
            view = dataclasses.replace(view, run=CLEAN)
        if view.layer is None:
            view = dataclasses.replace(view, layer=_telling_layer(result, view.position_class))
        return cls(view, result)

    @property
    def layer(self) -> int:
        assert self.view.layer is not None
        return self.view.layer

    @property
    def n_experts(self) -> int:
        return self.result.values["n_experts"]

    @property
    def n_layers(self) -> int:
        return self.result.provenance["n_layers"]

    @property
    def has_corrupt(self) -> bool:
        return CORRUPT in set(self.result.tables["load"].run)

    @cached_property
    def classes(self) -> list[str]:
        """Position classes that have tokens."""
        there = set(self.result.tables["load"].position_class)
        return [name for name in CLASSES if name in there]

    @property
    def where(self) -> str:
        """The shown set of tokens in words."""
        what = {CLEAN: "clean runs", CORRUPT: "corrupt runs", CHANGE: "corrupt − clean"}[self.view.run]
        return f"{CLASS_WORDS[self.view.position_class]}, {what}"


def _telling_layer(result: DerivedResult, position_class: str) -> int:
    """The layer that the corruption changes most; without corrupt runs the last one."""
    table = result.tables["clean_corrupt"]
    table = table[table.position_class == position_class]
    if table.empty or not table.above_baseline.notna().any():
        return int(result.values["layers"][-1])
    return int(table.loc[table.above_baseline.idxmax(), "layer"])


def controls(shown: Shown, *, changes: bool) -> None:
    """Which tokens, which run, which layer; the last also for the keyboard."""
    view = shown.view
    with st.container(horizontal=True, vertical_alignment="bottom"):
        key = address.key(f"routing class {view.position_class}")
        st.segmented_control(
            "Positions", shown.classes, default=view.position_class, key=key, required=True, wrap=True, help=HELP_CLASS,
            format_func=CLASS_NAMES.__getitem__, on_change=setting("position_class", key),
        )  # fmt: skip
        if shown.has_corrupt:
            runs = [CLEAN, CORRUPT, *([CHANGE] if changes else [])]
            key = address.key(f"routing run {view.run} {changes}")
            st.segmented_control(
                "Runs", runs, default=view.run, key=key, required=True, wrap=True, help=HELP_RUN,
                format_func={CLEAN: "Clean", CORRUPT: "Corrupt", CHANGE: "Corrupt − clean"}.__getitem__,
                on_change=setting("run", key),
            )  # fmt: skip
        with st.container(horizontal=True, vertical_alignment="bottom", width="content"):
            _layer_and_expert(shown)


def _layer_and_expert(shown: Shown) -> None:
    view = shown.view
    layers = shown.result.values["layers"]
    of_layer = address.key(f"routing layer {shown.layer}")
    st.selectbox(
        "Layer", layers, index=layers.index(shown.layer), key=of_layer, width=140, format_func="layer {}".format,
        on_change=address.callback(of_layer, lambda: look(layer=st.session_state[of_layer], expert=None)),
    )  # fmt: skip
    options = list(range(shown.n_experts))
    of_expert = address.key(f"routing expert {shown.layer} {view.expert}")
    st.selectbox(
        "Expert", options, index=view.expert, key=of_expert, width=150, placeholder="none",
        format_func=lambda e: expert_name(shown.layer, e),
        on_change=address.callback(
            of_expert, lambda: look(layer=shown.layer, expert=st.session_state[of_expert], fact=None)
        ),
    )  # fmt: skip


def divergence_words(chance: str) -> str:
    """What the bars of a divergence mean."""
    return (
        "Jensen–Shannon divergence of the two loads over the layer's experts, in bits: 0 if they are equal, 1 if no "
        f"expert serves both. The tick is what it would be on average {chance}, the line goes up to the 95th "
        "percentile: bars below it are within chance. Click a bar to choose the layer."
    )


def header(
    title: str,
    name: str,
    shown: Shown,
    selection: str,
    build: Callable[..., Picture],
    *args: Any,
    table: pd.DataFrame,
    expert: int | None,
    framed: bool = True,
    there: bool = True,
    result: DerivedResult | None = None,
    source: Any = None,
    on_pick: Callable[[dict[str, int]], None] | None = None,
    **options: Any,
) -> None:
    """A title with downloads and the picture `build(result, *args, …)` below it; `source`: what it is built from in the
    result's place. A click on a mark of `selection` chooses its layer and expert. `framed`: the chosen layer has a
    frame; `there`: there is something to draw."""
    result = shown.result if result is None else result
    palette = pictures.theme()
    wanted = (shown.layer, expert)
    tokens = (shown.view.run, shown.view.position_class)
    # of pairs a column is framed, which a click does not move: the map is drawn anew
    column = expert if selection == "pair" else None
    base = (result.request, args, tokens, palette.name, shown.layer, repr(options), column)
    slot = pictures.slot(name, base, wanted)
    picture = seen = None
    if there:
        marks: dict[str, Any] = {"layer": shown.layer} if framed or selection == "layer" else {}
        if selection != "layer":
            marks["expert"] = slot.preset[1]
        made_of = result if source is None else source
        picture = seen = pictures.kept(build, made_of, *args, **marks, **options, palette=palette)
        if selection == "expert":
            seen = pictures.as_seen(picture, slot, layer=shown.layer, expert=expert)
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.markdown(f"##### {text.plain(title)}", width="content")
        downloads.menu(name, title, result, seen, table)
    if picture is None:
        return

    def pick(mark: dict[str, int]) -> None:
        if on_pick is not None:
            slot.picked = (shown.layer, mark.get("expert"))
            on_pick(mark)
            return
        slot.picked = (mark["layer"], mark.get("expert"))
        if slot.picked != wanted:
            look(layer=mark["layer"], expert=mark.get("expert"), fact=None)

    pictures.show(picture, key=slot.key, selection=selection, on_pick=pick, alt=f"{title}.")


def chosen_expert(shown: Shown) -> None:
    """The chosen expert: its frequency by position class, the way to its page, the tokens behind its average."""
    if shown.view.expert is None:
        return
    from . import routing_behind

    routing_behind.draw(shown)
