"""One side of the Compare page as long as the other has no answer, or never will: its numbers and its map."""

from __future__ import annotations

import streamlit as st

from core import sites
from core.cells.tables import at_site
from core.compare import charts as compare_charts
from core.compare import words
from core.compare.link import Pair
from core.derived import DerivedResult
from core.requests import digest
from core.results import TraceResult
from core.views import layer_cells

from . import compare_maps, compare_state, downloads, pictures, present, text


def say(side: str, result: TraceResult, at: DerivedResult | None, *, maps: bool) -> None:
    """The numbers of `side` ("a" or "b"). `at`: what its layer × token map shows, where that is not the trace's own;
    `maps`: whether it is there."""
    told = words.alone(side, result, None if not maps else result if at is None else at_site(result, at))
    present.say(told)
    st.html(text.findings(told))


def draw(pair: Pair, side: str, result: TraceResult, at: DerivedResult | None) -> None:
    """The layer × token map of `side`, and the chosen cell in a sentence."""
    link = pair.side(side)
    itself = compare_state.together(result, result, False, at, at)  # a map beside none has its own axes
    where = compare_maps.place(itself, Pair(link, link))
    cell = None if where is None else (where.layer, where.a)
    measure, theme = pair.a.view.measure, pictures.theme()
    ident = digest(result.request.to_dict(), result.provenance.fingerprint, itself.site("a"))[:10]
    slot = pictures.slot(f"compare_alone_{side}", (ident, measure, theme.name), cell)
    end = compare_charts.scale_end([layer_cells(itself.mapped("a"))], [measure])
    picture = pictures.kept(
        compare_charts.side_map, itself, "a", measure=measure, chosen=slot.preset, palette=theme, end=end
    )
    name = sites.map_name(*itself.site("a"))
    seen = picture if cell is None else pictures.as_seen(picture, slot, layer=cell[0], pos=cell[1])
    title = side if itself.site("a") == (sites.MOE, 1) else f"{side} · {name}"
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.markdown(f"**{text.plain(title)}**", width="content")
        downloads.menu(
            f"compare-{side}-alone", f"{title}: layer × token", at or result, seen, layer_cells(itself.mapped("a"))
        )

    def pick(mark: dict[str, int]) -> None:
        slot.picked = (mark["layer"], mark["pos"])
        if slot.picked != cell:
            at_side = {f"pos_{s}": mark["pos"] if s == side else None for s in "ab"}
            compare_state.look(layer=mark["layer"], **at_side)

    pictures.show(picture, key=slot.key, selection="cell", on_pick=pick, alt=f"Layer by token heat map of {side}")
    present.caption(f"{sites.cell_meaning(*itself.site('a'))}{compare_maps.missing_note([(side, result)], measure)}")
    if where is not None:
        compare_maps.cell(itself, where, {side: "a"})
