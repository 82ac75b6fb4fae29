"""Necessity beside sufficiency: what each expert brings back alone, and what the clean run loses without it."""

from __future__ import annotations

import streamlit as st

from core import views
from core.cells import pictures as cell_pictures
from core.cells import tables, words
from core.cells.asking import ask_clean
from core.links import View
from core.results import TraceResult

from . import display, downloads, listing, pictures, present, sections
from .answers import answer
from .listing import Column

WHOLE_TABLE = 600
"""Pixels that the table takes with all its columns."""
MEANING = (
    "Rescue: in the corrupt run, this update put back; its direct part reaches the logits without a later layer. "
    "Knockouts: in the clean run, the expert taken out at this token, and what the clean contrast loses. Zero leaves "
    "the rest as it is; reroute lets the router choose another expert in its place."
)


def draw(at: TraceResult, shown: View, ident: str) -> None:
    """The section. `at`: has the expert patches of the chosen cell's position."""
    found, _ = answer(ask_clean("cell_knockouts", at.request, layer=shown.layer, pos=shown.pos), "section")
    if found is None:
        return

    def both(found, _: str):  # noqa: ANN001, ANN202 - `pictures.kept` remembers it by the answer
        return tables.necessity(at, found)

    def picture_of(found, _: str, *, palette, direct: bool):  # noqa: ANN001, ANN202
        return cell_pictures.necessity(tables.necessity(at, found), direct=direct, palette=palette)

    table = pictures.kept(both, found, ident)
    values, last = found.values, shown.pos == views.last_pos(at)
    sections.say(
        words.necessity(table, clean_contrast=values["clean_contrast"], reroutable=values["reroutable"])
    )
    with st.grid(2, min_column_width=display.pixels(WHOLE_TABLE), gap="medium"):
        with st.container():
            picture = pictures.kept(picture_of, found, ident, palette=pictures.theme(), direct=last)
            downloads.header("Sufficient alone, needed in the clean run", "necessity", found, picture, table)
            pictures.still(picture, key=f"necessity-{ident}", alt="Rescue and knockout cost of each expert")
        with st.container():
            _table(table, reroutable=values["reroutable"], last=last)
    present.caption(MEANING)


def _table(table, *, reroutable: bool, last: bool) -> None:  # noqa: ANN001 - a data frame
    columns = {
        "name": Column("expert", pinned=True),
        "rescue": Column("rescue", "Contrast with this update put back − corrupt contrast, logits."),
        "direct": Column("direct", "The part of the rescue that reaches the logits without a later layer."),
        "zero": Column("zero", "Clean contrast − contrast without the expert at this token, logits."),
        "zero_all": Column("zero, all tokens", "The same with the expert taken out of this layer at every token."),
        "reroute": Column("reroute", "The same at this token, another expert chosen in its place."),
        "reroute_all": Column("reroute, all tokens", "The same at every token."),
    }
    if not reroutable:
        del columns["reroute"], columns["reroute_all"]
    if not last:  # 0 there, by definition
        del columns["direct"]
    listing.show(table, columns, alt="Rescue and knockout costs")
