"""The sidebar of the Expert page: model, set of facts, corruption, tokens. Every widget changes the view."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import streamlit as st

from core.expert_link import ExpertView
from core.requests import CORRUPTIONS, MAX_DRAWS, OBJECT_TOKENS, SPECIAL_TOKENS

from . import address, fact_set_panel, model_panel, navigation, sidebar
from .expert_state import look


def draw(view: ExpertView) -> None:
    """The sidebar from the view, but for its foot."""
    with st.sidebar:
        navigation.draw()
        model_panel.draw(view.model, place="expert ", changed=lambda spec: look(model=spec))
        fact_set_panel.draw(view.facts, changed=lambda chosen: look(facts=chosen, relation=None), place="expert ")
        _corruption(view)
        _tokens(view)


def _corruption(view: ExpertView) -> None:
    st.markdown("**Corruption**")
    key = address.key("expert corruption")
    st.segmented_control(
        "Corruption", CORRUPTIONS, default=view.corruption, key=key, required=True, width="stretch",
        format_func={"noise": "Noise", "replace": "Another subject"}.__getitem__, help=sidebar.HELP_CORRUPTION,
        label_visibility="collapsed", on_change=_setting("corruption", key),
    )  # fmt: skip
    left, right = st.columns(2)
    if view.corruption == "noise":
        key = address.key("expert noise")
        left.number_input(
            "Noise level", min(0.01, view.noise), 100.0, view.noise, 0.5, format="%.4g", key=key,
            help=sidebar.HELP_NOISE, on_change=_setting("noise", key, float),
        )  # fmt: skip
    key = address.key("expert draws")
    right.number_input(
        "Draws", 1, MAX_DRAWS, view.draws, 1, key=key, help=sidebar.HELP_DRAWS,
        on_change=_setting("draws", key, int),
    )  # fmt: skip
    if view.seed > 2**53 - 1:  # beyond what a browser's numbers can say
        st.caption(f"Seed {view.seed} (from the link)")
        return
    key = address.key("expert seed")
    st.number_input(
        "Seed", 0, 2**53 - 1, view.seed, 1, key=key, help=sidebar.HELP_SEED, on_change=_setting("seed", key, int)
    )


def _tokens(view: ExpertView) -> None:
    changed = [view.special_tokens != "auto", view.object_tokens != "space", view.first_token]
    with st.expander("Tokens" + (" · changed" if any(changed) else "")):
        for name, label, options, help_ in (
            ("special_tokens", "Special tokens", SPECIAL_TOKENS, sidebar.HELP_SPECIAL),
            ("object_tokens", "Object tokens", OBJECT_TOKENS, sidebar.HELP_OBJECT),
        ):
            key = address.key(f"expert {name}")
            st.segmented_control(
                label, options, default=getattr(view, name), key=key, help=help_, required=True, width="stretch",
                on_change=_setting(name, key),
            )  # fmt: skip
        key = address.key("expert first_token")
        st.toggle(
            "First token of a longer object", view.first_token, key=key, help=sidebar.HELP_FIRST,
            on_change=_setting("first_token", key, bool),
        )  # fmt: skip


def _setting(name: str, widget: str, convert: Callable[[Any], Any] = lambda value: value) -> Callable[[], None]:
    """A callback that puts a widget's value into the view's field `name`."""

    def change() -> None:
        value = st.session_state.get(widget)
        if value is not None:
            look(**{name: convert(value)})

    return address.callback(widget, change)
