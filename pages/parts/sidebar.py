"""The sidebar: model, fact, corruption, tokens, store. Every widget changes the state in its callback."""

from __future__ import annotations

import streamlit as st

from . import facts_panel, model_panel, navigation, settings_panel, state
from .asker import Asker

HERE = Asker("", state.request, state.ask)


def draw() -> None:
    """The sidebar from the current state, but for its `foot`."""
    link = state.begin()
    with st.sidebar:
        navigation.draw()
        model_panel.draw(
            link.request.model, place="", changed=lambda spec: state.ask(state.request().replace(model=spec))
        )
        facts_panel.draw(link, HERE, state.browse)
        settings_panel.corruption(link.request, HERE)
        settings_panel.tokens(link.request, HERE)
