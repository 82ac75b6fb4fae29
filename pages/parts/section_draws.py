"""The draws behind the means: each draw's rescue of the cell's experts and of its layer patch."""

from __future__ import annotations

import streamlit as st

from core.cells import pictures as cell_pictures
from core.cells import tables
from core.links import View
from core.results import TraceResult

from . import downloads, pictures, present, state

MEANING = (
    "One dot per draw (another noise, or another subject), the tick is their mean. Where dots lie on both sides of 0, "
    "the mean says little about any one draw."
)
SEVERAL = 10


def draw(at: TraceResult, shown: View, ident: str) -> None:
    """The section. `at`: has the expert patches of the chosen cell's position."""
    request = at.request
    if request.draws == 1:
        st.markdown("There is one draw, so nothing is known about the spread.")
        if not request.replacement:
            st.button(
                f"Take {SEVERAL} draws", icon=":material/casino:", key=state.key("more draws"),
                on_click=_several,
            )  # fmt: skip
        return
    rows = pictures.kept(tables.draws_of, at, shown.layer, shown.pos)
    picture = pictures.kept(_dots, at, shown.layer, shown.pos, palette=pictures.theme())
    downloads.header(f"Rescue in each of {request.draws} draws", "draws", at, picture, rows)
    pictures.still(picture, key=f"draws-{ident}", alt="Rescue of each expert in each draw")
    present.caption(MEANING)


def _several() -> None:
    state.ask(state.request().replace(draws=SEVERAL))
    state.renew()  # the sidebar says how many, too


def _dots(at: TraceResult, layer: int, pos: int, *, palette):  # noqa: ANN001, ANN202
    return cell_pictures.draws(tables.draws_of(at, layer, pos), palette=palette)
