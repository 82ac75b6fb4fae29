"""The switches of what a layer × token map patches: at which site, in how many layers at once."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from core import sites

from . import display

HELP_SITE = (
    "What is put back to its clean value at each layer and token: the MoE block's output (the paper's layer patch), "
    "the attention sublayer's output, both, or the residual stream after the layer."
)
HELP_WINDOW = (
    "Patch this many neighbouring layers at once. One layer's loss can be made up for by the next; ROME's plots use 10."
)
WINDOWS = (1, 2, 3, 5, 10, 20)
LABEL = "What layer × token patches"


def site(current: str | None, *, key: str, callback: Callable[[str], Callable[[], None]], label: str = LABEL) -> None:
    """`current`: the site, None: not the same everywhere. `callback(key)`: what is done when `key`'s widget changes."""
    st.segmented_control(
        label, sites.SITES, default=current, key=key, wrap=True, required=current is not None, on_change=callback(key),
        format_func=sites.NAMES.__getitem__, help=HELP_SITE,
    )  # fmt: skip


def window(
    current: int | None, *, n_layers: int | None, key: str, callback: Callable[[str], Callable[[], None]]
) -> None:
    """The same for the number of layers at once. `n_layers`: of the model, None where it is not known yet."""
    options = sorted({w for w in WINDOWS if n_layers is None or w <= n_layers} | ({current} if current else set()))
    st.selectbox(
        "In a window of", options, index=None if current is None else options.index(current), key=key,
        width=display.pixels(140), on_change=callback(key), help=HELP_WINDOW, placeholder="not the same",
        format_func=lambda w: f"{w} layer{'s' if w > 1 else ''}",
    )  # fmt: skip
