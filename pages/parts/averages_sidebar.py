"""The sidebar of the Averages page: model, set of facts, what is restored, corruption, tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import streamlit as st

from core.averages.link import AveragesView
from core.sites import MEANING, NAMES, SITES
from core.trace_view import MAX_WINDOW

from . import address, fact_set_panel, model_panel, navigation, settings_panel
from .asker import Asker
from .averages_state import HERE, ask, look

PLACE = "averages "
HELP_SITE = "  \n".join(f"{NAMES[site]}: {MEANING[site]}." for site in SITES)
HELP_WINDOW = (
    "So many layers around each are restored together, from l − ⌊w/2⌋ to l + ⌈w/2⌉ − 1. What is restored replaces what "
    "the run computes there. ROME's plots use 10."
)
HELP_DROP = (
    "Facts whose drop (clean minus corrupt contrast) is smaller are left out: there is nothing to restore. Empty: none "
    "is left out. The paper's filter is 0.5."
)


def draw(view: AveragesView) -> None:
    """The sidebar from the view, but for its foot."""
    asker = Asker(PLACE, lambda: HERE.value.asked, ask)
    with st.sidebar:
        navigation.draw()
        model_panel.draw(view.asked.model, place=PLACE, changed=lambda spec: ask(HERE.value.asked.replace(model=spec)))
        fact_set_panel.draw(view.facts, place=PLACE, changed=lambda chosen: look(facts=chosen))
        _min_drop(view)
        _restored(view)
        settings_panel.corruption(view.asked, asker)
        settings_panel.tokens(view.asked, asker)


def _min_drop(view: AveragesView) -> None:
    key = address.key(f"{PLACE}min drop")
    st.session_state[key] = view.min_drop  # at every run, and not as the widget's default: see `fact_set_panel`
    st.number_input(
        "Least drop (logits)", 0.0, 100.0, None, 0.25, format="%.4g", key=key, placeholder="no threshold",
        help=HELP_DROP, on_change=_change("min_drop", key, missing=None),
    )  # fmt: skip


def _restored(view: AveragesView) -> None:
    st.markdown("**What is restored**")
    key = address.key(f"{PLACE}site")
    st.selectbox(
        "Site", SITES, index=SITES.index(view.site), key=key, format_func=NAMES.__getitem__, help=HELP_SITE,
        on_change=_change("site", key),
    )  # fmt: skip
    key = address.key(f"{PLACE}window")
    st.number_input(
        "Window", 1, MAX_WINDOW, view.window, 1, key=key, help=HELP_WINDOW, on_change=_change("window", key)
    )


def _change(field: str, key: str, **empty: Any) -> Callable[[], None]:
    """A callback that looks at the widget's value as `field`; `missing=`: what an empty one means."""

    def change() -> None:
        value = st.session_state.get(key)
        if value is None and "missing" not in empty:
            return
        look(**{field: empty["missing"] if value is None else value})

    return address.callback(key, change)
