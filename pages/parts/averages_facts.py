"""The facts behind one average: every fact's own value, and the way to the Trace page at that cell."""

from __future__ import annotations

import pandas as pd

from core.averages.link import AveragesView, trace_link
from core.named_rows import named_rows
from core.requests import Fact
from core.views import SHARED_INDEX

from . import base, listing, study_columns, study_state
from .listing import Column

COLUMNS = (
    "trace", "subject", "true", "rescue", "restoration", "clean_active", "router_weight", "layer_rescue", "drop",
    "clean_contrast", "tokens", "relation", "prompt", "foil", "case_id",
)  # fmt: skip
"""Columns of the table, in their order."""
OPEN = "Opens this fact on the Trace page at this layer; of several tokens of the role at the one of largest effect."


def draw(
    view: AveragesView, facts: tuple[Fact, ...], behind: pd.DataFrame, *, name: str, expert: int | None = None
) -> None:
    """The table. `name` tells the tables of a page apart; `expert`: whose values they are."""
    listed = behind.assign(trace=[_address(view, facts, row, expert) for row in named_rows(behind)])
    study_columns.show(
        listed[[column for column in COLUMNS if column in listed]], height=420,
        key=f"es_averages_{name}_{view.layer}_{view.role}_{expert}", alt="The facts behind the average",
        columns={
            "trace": listing.link("Trace", OPEN),
            "prompt": Column("prompt", width="large"),
        },
    )  # fmt: skip


def _address(view: AveragesView, facts: tuple[Fact, ...], row, expert: int | None) -> str | None:  # noqa: ANN001
    if pd.isna(row.pos) or view.layer is None:
        return None
    fact = facts[row.fact]
    chosen = "shared" if expert == SHARED_INDEX else expert
    link = trace_link(view, fact, bundled=base.is_bundled(fact), layer=view.layer, pos=int(row.pos), expert=chosen)
    return study_state.trace_address(link)
