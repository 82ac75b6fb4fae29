"""The settings of a question beside model and fact: corruption, draws, seed, tokens."""

from __future__ import annotations

from typing import Any

import streamlit as st

from core.requests import CORRUPTIONS, MAX_DRAWS, OBJECT_TOKENS, SEPARATOR, SPECIAL_TOKENS, TraceRequest

from .asker import Asker

HELP_SPECIAL = (
    "Whether the tokenizer adds its special tokens (a BOS, say). `auto` is the tokenizer's own default. "
    "It changes conclusions: Mixtral selects another expert with a BOS than without."
)
HELP_OBJECT = (
    "`space`: the object as it continues the prompt, with a space before it. `paper`: the bare object where that is a "
    "single token, else with a space. They differ only for tokenizers that keep the space in the token."
)
HELP_FIRST = "Represent an object of several tokens by its first one. Such results are marked."
HELP_NOISE = "σ of the Gaussian noise on the subject's input embeddings, in units of the embedding table's own std."
HELP_CORRUPTION = (
    "Noise: Gaussian noise on the subject's input embeddings. Another subject: one of as many tokens stands in its "
    "place, so the model sees nothing unusual. Sites that both find are to be trusted more."
)
HELP_REPLACEMENT = (
    f"A subject that the tokenizer splits into as many tokens (several: {SEPARATOR} between them). Left empty, other "
    "subjects are chosen from the bundled facts, those of the same relation first."
)
HELP_DRAWS = (
    "How many corrupt runs: with fresh noise (the paper uses 1, ROME averages 10), or with different other subjects."
)
HELP_SEED = "The generator is seeded with seed + case_id, so the numbers can be had again."
LARGEST_SEED = 2**53 - 1
"""A browser's numbers are exact up to here; larger seeds come by link and are shown as they are."""


def corruption(request: TraceRequest, asker: Asker) -> None:
    """Noise or another subject, how much, how often, with which seed."""
    st.markdown("**Corruption**")
    key = asker.key("corruption")
    st.segmented_control(
        "Corruption", CORRUPTIONS, default=request.corruption, key=key, required=True, width="stretch",
        format_func={"noise": "Noise", "replace": "Another subject"}.__getitem__, help=HELP_CORRUPTION,
        label_visibility="collapsed",
        on_change=asker.setting(key, lambda kind: {"corruption": kind, "replacement": ()}),
    )  # fmt: skip
    left, right = st.columns([3, 2] if request.corruption == "replace" else 2)
    if request.corruption == "noise":
        key = asker.key("noise")
        left.number_input(
            "Noise level", min(0.01, request.noise), 100.0, request.noise, 0.5, format="%.4g", key=key,
            help=HELP_NOISE, on_change=asker.setting(key, lambda value: {"noise": float(value)}),
        )  # fmt: skip
    else:
        key = asker.key("replacement")
        left.text_input(
            "Other subject", f" {SEPARATOR} ".join(request.replacement), key=key, placeholder="chosen", max_chars=1000,
            help=HELP_REPLACEMENT, on_change=asker.setting(key, _named),
        )  # fmt: skip
    key = asker.key("draws")
    right.number_input(
        "Draws", 1, MAX_DRAWS, request.draws, 1, key=key, help=HELP_DRAWS, disabled=bool(request.replacement),
        on_change=asker.setting(key, lambda value: {"draws": int(value)}),
    )  # fmt: skip
    if request.replacement:
        return  # nothing is drawn
    if request.seed > LARGEST_SEED:
        st.caption(f"Seed {request.seed} (from the link)")
    else:
        key = asker.key("seed")
        st.number_input(
            "Seed", 0, LARGEST_SEED, request.seed, 1, key=key, help=HELP_SEED,
            on_change=asker.setting(key, lambda value: {"seed": int(value)}),
        )  # fmt: skip


def _named(text: str) -> dict[str, Any]:
    """The settings that other subjects, typed, mean."""
    names = tuple(name.strip() for name in text.split(SEPARATOR) if name.strip())
    return {"replacement": names, "draws": len(names) or 1}


def tokens(request: TraceRequest, asker: Asker) -> None:
    """How prompt and objects become tokens."""
    changed = [
        label
        for label, different in (
            (f"special {request.special_tokens}", request.special_tokens != "auto"),
            (f"objects {request.object_tokens}", request.object_tokens != "space"),
            ("first token", request.first_token),
        )
        if different
    ]
    with st.expander("Tokens" + (f" · {', '.join(changed)}" if changed else "")):
        for name, label, options, help_ in (
            ("special_tokens", "Special tokens", SPECIAL_TOKENS, HELP_SPECIAL),
            ("object_tokens", "Object tokens", OBJECT_TOKENS, HELP_OBJECT),
        ):
            key = asker.key(name)
            st.segmented_control(
                label, options, default=getattr(request, name), key=key, help=help_, required=True, width="stretch",
                on_change=asker.setting(key, lambda value, name=name: {name: value}),
            )  # fmt: skip
        key = asker.key("first_token")
        st.toggle(
            "First token of a longer object", request.first_token, key=key, help=HELP_FIRST,
            on_change=asker.setting(key, lambda value: {"first_token": bool(value)}),
        )  # fmt: skip
