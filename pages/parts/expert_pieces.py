"""What the sections of the Expert page are made of: a figure with downloads, a table, the way to the Trace page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st

from core.derived import DerivedResult
from core.expert_link import ExpertView
from core.expert_tables import Rescue
from core.links import Link, View
from core.picture import Picture
from core.requests import Fact

from . import address, base, downloads, listing, pictures, present, study_state, text
from .listing import Column

if TYPE_CHECKING:
    from .expert_routing import Counted

def traces() -> dict[str, object]:
    """The column `trace` of addresses."""
    return {"trace": listing.link("Trace", "Opens this fact on the Trace page, the expert marked.")}


@dataclass(frozen=True)
class Shown:
    """What a section is drawn from: the view with an expert chosen, its facts, the rescue of all experts, of this one
    (`found`), the routing of all tokens and what it says of this expert (`tokens`); None: not there yet."""

    view: ExpertView
    facts: tuple[Fact, ...]
    rescue: DerivedResult
    found: Rescue | None
    routing: DerivedResult | None
    tokens: Counted | None

    @property
    def layer(self) -> int:
        return int(self.view.layer)  # type: ignore[arg-type]

    @property
    def expert(self) -> int:
        return int(self.view.expert)  # type: ignore[arg-type]

    @cached_property
    def by_key(self) -> dict[tuple[int, str], Fact]:
        """The facts by case_id and subject."""
        return {(fact.case_id, fact.subject): fact for fact in self.facts}

    def trace(self, fact: Fact, pos: int | None) -> Link:
        """A fact as a question to the Trace page, with this expert marked at `pos`."""
        view = View(measure="rescue", pos=pos, layer=self.layer, expert=self.expert)
        return Link(self.view.trace(fact), view, base.is_bundled(fact), listed=self.view.facts.stored)

    def trace_address(self, fact: Fact, pos: int | None) -> str:
        """The address of that."""
        return study_state.trace_address(self.trace(fact, pos))

    def with_traces(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Rows that name facts by case_id and subject (and a position `pos`), with their addresses as `trace`."""
        found = [self.by_key.get(key) for key in zip(rows.case_id, rows.subject, strict=True)]
        places = [int(pos) for pos in rows.pos] if "pos" in rows else [None] * len(rows)
        addresses = {
            (fact, pos): self.trace_address(fact, pos) for fact, pos in zip(found, places, strict=True) if fact
        }
        return rows.assign(trace=[addresses.get(each) for each in zip(found, places, strict=True)])


def header(
    title: str, name: str, result: DerivedResult, picture: Picture | None, table: pd.DataFrame, view: ExpertView
) -> None:
    """A heading and its download menu; `name` is the file's stem, the expert's name is put before it."""
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.markdown(f"##### {title}", width="content")
        stem = f"{view.name}_{name}" if view.chosen else name
        downloads.menu(stem, f"{view.name} {title}".strip(), result, picture, table)


def figure(
    title: str,
    name: str,
    result: DerivedResult,
    picture: Picture,
    table: pd.DataFrame,
    view: ExpertView,
    *,
    caption: str = "",
    selection: str = "",
    on_pick: Callable[[dict[str, int]], None] | None = None,
    key: str = "",
    seen: Picture | None = None,
) -> None:
    """A picture with its heading, downloads and what it shows. `key`: of the widget, where it has a slot, and then
    `seen`: the picture as it stands on the screen."""
    header(title, name, result, picture if seen is None else seen, table, view)
    key = key or f"es_expert_{name}_{view.name}_{pictures.theme().name}"
    if on_pick is None:
        pictures.still(picture, key=key, alt=f"{title} of {view.name}. {caption}")
    else:
        pictures.show(picture, key=key, selection=selection, on_pick=on_pick, alt=f"{title} of {view.name}. {caption}")
    if caption:
        present.caption(text.plain(caption))


def table(
    frame: pd.DataFrame,
    columns: dict[str, Column],
    *,
    key: str,
    alt: str,
    on_pick: Callable[[int], None] | None = None,
    more: dict[str, object] | None = None,
    height: int = 400,
) -> None:
    """The named columns of a table. A ticked row calls `on_pick` with its number; `more`: columns that come
    first."""
    options: dict[str, object] = {}
    if on_pick is not None:

        def pick() -> None:
            rows = address.ticked(key)
            if rows:
                on_pick(rows[0])

        options = {"on_select": address.callback(key, pick), "selection_mode": "single-row"}
    listing.show(frame, (more or {}) | columns, key=key, alt=alt, most=height, **options)
