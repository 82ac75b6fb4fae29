"""Whose question a panel of widgets changes: the Trace page's, or one of the two sides of the Compare page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import streamlit as st

from core.errors import ExpertScopeError
from core.requests import TraceRequest

from . import address


class Ask(Protocol):
    """Asks another question; `bundled`: whether its fact is a bundled one (None: as before); `listed`: the stored list
    that the fact was chosen from."""

    def __call__(self, request: TraceRequest, *, bundled: bool | None = None, listed: str = "") -> None: ...


@dataclass(frozen=True)
class Asker:
    """`place` tells the widgets of several askers apart; `now`: the question as it is when a callback runs."""

    place: str
    now: Callable[[], TraceRequest]
    ask: Ask

    def key(self, name: str) -> str:
        """A widget's key (see `address.key`)."""
        return address.key(f"{self.place}{name}")

    def put(
        self, request: TraceRequest, *, own: bool = True, bundled: bool | None = None, listed: str = ""
    ) -> None:
        """Ask; every widget starts anew where more becomes another than the one that was used shows. `own`: the request
        differs by that alone."""
        self.ask(request, bundled=bundled, listed=listed)
        if not own or self.now() != request:
            address.renew()

    def setting(self, widget: str, changes: Callable[..., dict[str, object]]) -> Callable[[], None]:
        """A callback that asks with what the value of `widget` changes in the question. What cannot be asked is said
        on the page that is drawn next."""

        def change() -> None:
            value = st.session_state.get(widget)
            if value is None:
                return
            try:
                changed = changes(value)
                self.put(self.now().replace(**changed), own=len(changed) == 1)
            except ExpertScopeError as error:
                st.session_state["es_input_error"] = str(error)

        return address.callback(widget, change)
