"""The Library's validation: which facts of the list a model can be asked about, why not the others, their contrasts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import streamlit as st

from core.derived import DerivedResult
from core.formats import count, percent
from core.library_link import LibraryView
from core.named_rows import named_rows
from core.requests import OBJECT_TOKENS, SPECIAL_TOKENS, Fact
from core.validation import OUTCOMES, USABLE

from . import (
    address,
    display,
    downloads,
    library_facts,
    library_lists,
    library_state,
    model_panel,
    present,
    settings_panel,
    text,
)
from .answers import answer
from .library_state import look
from .listing import Column
from .study_columns import MEANS

HELP_MEASURE = (
    "Also the clean and the corrupt run of every fact, held against the minima of a study. Without it only the "
    "tokenizer is asked, which takes seconds."
)
HELP_LEAST = {
    "min_clean_contrast": "Facts that the model knows less well are out; the paper's minimum is 1.",
    "min_drop": "Facts that the corruption takes less from are out; the paper's minimum is 0.5.",
}
_EVERY = ""
_AUTO = 4096
"""Up to so many facts a quick model begins by itself."""
_LOGITS = {name: MEANS[name] for name in ("clean_contrast", "drop")}


def draw(view: LibraryView) -> None:
    """The section."""
    if library_lists.missing(view):
        return
    facts = library_lists.shown_facts(view)
    with st.container(border=True):
        with st.grid(2, min_column_width=330, gap="large"):
            left, right = st.container(), st.container()
        with left:
            model_panel.draw(view.model, place="library ", changed=lambda spec: look(model=spec))
        with right:
            _settings(view)
    if not facts:
        st.info("There is no fact to validate. Choose another list, relation or search in the sidebar.")
        return
    result, _ = answer(view.validate(facts), "validation", auto=len(facts) <= _AUTO)
    if result is not None:
        _result(view, facts, result)


def _settings(view: LibraryView) -> None:
    key = address.key("library measure")
    st.toggle(
        "Measure contrasts", view.measure, key=key, help=HELP_MEASURE, on_change=_change("measure", key, bool)
    )
    if view.measure:
        with st.grid(2, min_column_width=display.pixels(130), gap="small"):
            for name, help_ in HELP_LEAST.items():
                _number(view, name, name.replace("_", " ").replace("min", "minimum"), help_, 0.25)
            _number(view, "noise", "noise level", settings_panel.HELP_NOISE, 0.5, low=0.01, high=100.0)
            key = address.key("library seed")
            st.number_input(
                "seed", 0, max(2**53 - 1, view.seed), view.seed, 1, key=key, help=settings_panel.HELP_SEED,
                on_change=_change("seed", key, int),
            )  # fmt: skip
    with st.grid(2, min_column_width=display.pixels(190), gap="small"):
        for name, options, help_ in (
            ("special_tokens", SPECIAL_TOKENS, settings_panel.HELP_SPECIAL),
            ("object_tokens", OBJECT_TOKENS, settings_panel.HELP_OBJECT),
        ):
            key = address.key(f"library {name}")
            st.segmented_control(
                name.replace("_", " "), options, default=getattr(view, name), key=key, wrap=True,
                help=help_, required=True,
                on_change=_change(name, key, str),
            )  # fmt: skip


def _number(
    view: LibraryView, name: str, label: str, help_: str, step: float, *, low: float | None = None,
    high: float | None = None,
) -> None:  # fmt: skip
    key = address.key(f"library {name}")
    value = getattr(view, name)
    st.number_input(
        label, None if low is None else min(low, value), high, value, step, format="%.4g", key=key, help=help_,
        on_change=_change(name, key, float),
    )  # fmt: skip


def _change(name: str, key: str, convert: Callable[[Any], Any]) -> Callable[[], None]:
    def change() -> None:
        value = st.session_state.get(key)
        if value is not None:
            look(**{name: convert(value)})

    return address.callback(key, change)


# -- what came out -----------------------------------------------------------------------------------------------------


def _result(view: LibraryView, facts: Sequence[Fact], result: DerivedResult) -> None:
    table, counts = result.tables["facts"], result.tables["counts"]
    n, usable = result.values["facts"], result.values["usable"]
    title = "Validation of facts"
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        share = f" ({percent(usable / n)})" if n else ""
        st.markdown(f"##### {count(usable)} of {count(n)} facts are usable{share}", width="content")
        downloads.menu("validation", title, result, None, table)
    present.say([f"{count(usable)} of {count(n)} facts are usable{share}."])
    steps = [(row.meaning, int(row.facts), row.outcome == USABLE) for row in named_rows(counts)]
    st.html(text.funnel(steps, n))
    present.note("validation-counts", "How many are usable, and why not the others", None, counts, None)
    wanted = view.outcome if view.outcome in set(counts.outcome) else None
    options = [_EVERY, *counts.outcome]
    key = address.key(f"library outcome {wanted}")

    def change() -> None:
        chosen = st.session_state[key]
        look(outcome=None if chosen == _EVERY else chosen)

    numbers = dict(zip(counts.outcome, counts.facts, strict=True))
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.selectbox(
            "Listed below", options, index=options.index(wanted or _EVERY), key=key, width=420,
            format_func=lambda o: f"all ({count(n)})" if o == _EVERY else f"{OUTCOMES[o]} ({count(numbers[o])})",
            on_change=address.callback(key, change),
        )  # fmt: skip
        good = [fact for fact, outcome in zip(facts, table.outcome, strict=True) if outcome == USABLE]
        if good:
            library_facts.to_list(good, ticked=False, origin=view.source, what="usable")
    _table(view, facts, table, wanted)


def _table(view: LibraryView, facts: Sequence[Fact], table: pd.DataFrame, wanted: str | None) -> None:
    mine = table.index[table.outcome == wanted] if wanted is not None else table.index
    shown = [facts[i] for i in mine]
    contrasts = ["clean_contrast", "corrupt_contrast", "drop"] if view.measure else []
    more = table.loc[mine, ["outcome", "reason", *contrasts, "foil"]].reset_index(drop=True)
    more["outcome"] = more.outcome.map(lambda name: "✓" if name == USABLE else "✗")
    more["reason"] = more.reason.map(text.on_page).where(more.reason != "", None)
    config = {
        "outcome": Column("usable", width=60, alignment="center"),
        "reason": Column("why not", width=300),
        **{
            name: Column(name.replace("_", " "), help_, width=112)
            for name, help_ in (_LOGITS | {"corrupt_contrast": "The same in the corrupt run."}).items()
        },
    }
    key = library_facts.table_key(view, "validated", shown)
    actions = st.container()
    library_facts.table(view, shown, key=key, more=more, config=config)
    rows = library_state.ticked(key, min(len(shown), library_facts.MOST))
    if rows:
        with actions:
            library_facts.actions(view, [shown[row] for row in rows])
