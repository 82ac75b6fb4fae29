"""The sidebar of the Expert page: model, set of facts, corruption, tokens. Every widget changes the view."""

from __future__ import annotations

import streamlit as st

from core import expert_link
from core.expert_link import ExpertView
from core.requests import TraceRequest

from . import fact_set_panel, model_panel, navigation, settings_panel
from .asker import Asker
from .expert_state import HERE, look


def draw(view: ExpertView) -> None:
    """The sidebar from the view, but for its foot."""
    asker = Asker("expert ", _request, _ask)
    with st.sidebar:
        navigation.draw()
        model_panel.draw(view.model, place="expert ", changed=lambda spec: look(model=spec))
        fact_set_panel.draw(view.facts, changed=lambda chosen: look(facts=chosen, relation=None), place="expert ")
        settings_panel.corruption(_request(), asker)
        settings_panel.tokens(_request(), asker)


def _request() -> TraceRequest:
    """The settings of the view, as a question about no fact in particular."""
    return HERE.value.trace(expert_link.NOBODY)


def _ask(request: TraceRequest, *, bundled: bool | None = None, listed: str = "") -> None:
    look(**{name: getattr(request, name) for name in HERE.value.settings})
