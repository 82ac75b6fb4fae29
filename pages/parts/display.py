"""The large-type switch: text, charts and numbers of every page readable from the back of a room.

Remembered for the browser tab, and in the address as `type=large`, so that a link shows what its sender saw.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import streamlit as st

if TYPE_CHECKING:  # charts take most of a second to import: a page's head is on the screen by then
    from core.picture import Picture

FACTOR = 1.3
"""How much larger."""
_ON, _SEEN, _WIDGET = "es_large", "es_large_seen", "es_large_switch"
_NAME, _LARGE = "type", "large"
# Streamlit writes white on its primary buttons, on the dark theme's light primary colour too
_BUTTONS = """<style>
[data-testid^="stBaseButton-primary"]:enabled { color: light-dark(#ffffff, #10141b) !important; }
</style>"""
# Streamlit's own sizes are in rem, those of its tables too, and so are ours
_STYLE = f"""<style>
html {{ font-size: {16 * FACTOR:g}px !important; }}
@media (min-width: 1000px) {{
  [data-testid="stSidebar"]:not([data-collapsed="true"]) {{ min-width: {280 * FACTOR:g}px !important; }}
}}
#vg-tooltip-element {{ font-size: {13 * FACTOR:g}px !important; }}
</style>"""


def begin() -> None:
    """At the top of every page: what the address says, if it says something new; and the style."""
    said = st.query_params.get(_NAME, "")
    if said == _LARGE and st.session_state.get(_SEEN) != _LARGE:
        st.session_state[_ON] = True
    st.session_state[_SEEN] = said
    st.html(_BUTTONS)
    if large():
        st.html(_STYLE)


def large() -> bool:
    """Whether it is on."""
    return st.session_state.get(_ON, False)


def pixels(width: int) -> int:
    """A width in normal type as it has to be in the type that is on."""
    return round(width * (FACTOR if large() else 1))


def table_height(rows: int, most: int) -> int:
    """Pixels that a table of so many rows takes, at most `most` (both as they are in normal type)."""
    return pixels(min(38 + 35 * max(rows, 1), most))


def query() -> dict[str, str]:
    """What the address says of it, beside the page's own parameters."""
    st.session_state[_SEEN] = _LARGE if large() else ""
    return {_NAME: _LARGE} if large() else {}


def spec(picture: Picture) -> dict[str, Any]:
    """The picture's spec as it is drawn on a page."""
    from core.picture import enlarged

    out = enlarged(picture.for_page(), FACTOR) if large() else picture.for_page()
    return out | {"config": out["config"] | {"background": "transparent"}}


def switch(touch: Callable[[], None]) -> None:
    """The switch, in the sidebar of every page. `touch`: notes that the page itself is the reason of the next run."""

    def change() -> None:
        touch()
        st.session_state[_ON] = st.session_state[_WIDGET]

    st.session_state[_WIDGET] = large()  # also where a link switched it
    st.toggle(
        "Large type", key=_WIDGET, on_change=change,
        help="Text, charts and numbers larger, for a projector. It stays on in this tab and in its links.",
    )  # fmt: skip
