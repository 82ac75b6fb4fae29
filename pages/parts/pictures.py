"""Pictures on a page: built once and kept, drawn by Streamlit, clicks turned into changes of the view."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import streamlit as st

from core.bounded import Bounded, values_in
from core.palette import Palette, palette
from core.picture import Picture

from . import address, display

KEPT = 128
"""Pictures kept at most, those of all viewers together."""
_cache = Bounded(KEPT)


def theme() -> Palette:
    """The palette of the viewer's theme."""
    return palette(st.context.theme.type)


def kept(build: Callable[..., Any], result: Any, *args: Any, **options: Any) -> Any:
    """`build(result, *args, **options)`, remembered at most for as long as this very result is."""
    key = (build.__name__, id(result), args, tuple(sorted(options.items())))
    found = _cache.get(key)
    if found is None or found[0]() is not result:  # another object may have the id by now
        made = build(result, *args, **options)
        _cache.drop(lambda kept: kept[0]() is None)
        found = _cache.keep(key, (weakref.ref(result), made), values_in(made))
    return found[1]


@dataclass
class Slot:
    """One chart's or table's selection. `preset`: what is marked when it is first drawn, fixed for its lifetime, so
    that a click changes nothing but the click's own mark; `picked`: what was clicked last; `key`: the widget's key."""

    base: Hashable
    preset: Any
    picked: Any
    key: str


def slot(name: str, base: Hashable, wanted: Any) -> Slot:
    """The slot `name` with `wanted` marked. A new one (another key, drawn anew) where `base` changed, or where what is
    wanted is not what was picked here: a widget cannot be told its selection afterwards."""
    slots: dict[str, Slot] = st.session_state.setdefault("es_slots", {})
    now = slots.get(name)
    if now is None or now.base != base or now.picked != wanted:
        count = st.session_state["es_slot_count"] = st.session_state.get("es_slot_count", 0) + 1
        now = slots[name] = Slot(base, wanted, wanted, f"es_{name}_{count}")
    return now


def as_seen(picture: Picture, slot: Slot, **picked: int | None) -> Picture:
    """The picture as it stands on the screen, for files: with the mark that was clicked there, `picked` (the fields of
    its selection), not the one that it was drawn with."""
    if slot.preset == slot.picked or None in picked.values():
        return picture
    return picture.marked(picked)  # type: ignore[arg-type]


def show(picture: Picture, *, key: str, selection: str, on_pick: Callable[[dict[str, int]], None], alt: str) -> None:
    """Draw a picture; a click calls `on_pick` with the fields of the selected mark before the page is drawn again. A
    mark without one of them, as a dense layer's cells have no expert, is nothing to choose."""
    fields = _fields(picture, selection)

    def picked() -> None:
        event = st.session_state.get(key)
        marks = (event or {}).get("selection", {}).get(selection) or []
        if marks and all(marks[0].get(name) is not None for name in fields):
            on_pick({name: int(marks[0][name]) for name in fields})

    chosen = address.callback(key, picked)
    st.vega_lite_chart(
        display.spec(picture), key=key, on_select=chosen, selection_mode=[selection], theme=None, alt=alt
    )


def _fields(picture: Picture, selection: str) -> list[str]:
    """What a mark that is selected is known by."""
    parts = (picture.spec, *picture.spec.get("layer", ()))
    return next(p["select"]["fields"] for part in parts for p in part.get("params", ()) if p["name"] == selection)


def still(picture: Picture, *, key: str, alt: str) -> None:
    """Draw a picture without clicks."""
    st.vega_lite_chart(display.spec(picture), key=key, theme=None, alt=alt)
