"""The sidebar: model, fact, corruption, tokens, store. Every widget changes the state in its callback."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import streamlit as st

from core.errors import ExpertScopeError
from core.links import Link
from core.requests import CORRUPTIONS, MAX_DRAWS, OBJECT_TOKENS, SEPARATOR, SPECIAL_TOKENS, ModelSpec

from . import facts_panel, model_panel, navigation, state, store_panel

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


def draw() -> None:
    """The sidebar from the current state, but for its `foot`."""
    link = state.begin()
    with st.sidebar:
        navigation.draw()
        _model(link)
        facts_panel.draw(link)
        _corruption(link)
        _tokens(link)


def foot() -> None:
    """The sidebar's last line, drawn after everything that may have been stored."""
    with st.sidebar:
        store_panel.draw()


def _setting(name: str, widget: str, convert: Callable[[Any], Any] = lambda value: value) -> Callable[[], None]:
    """A callback that puts a widget's value into the request's field `name`."""
    return _ask(widget, lambda value: {name: convert(value)})


def _ask(widget: str, changes: Callable[[Any], dict[str, Any]]) -> Callable[[], None]:
    """A callback that asks with what a widget's value changes in the request."""

    def change() -> None:
        value = st.session_state.get(widget)
        if value is None:
            return
        try:
            state.ask(state.request().replace(**changes(value)))
        except ExpertScopeError as error:
            st.session_state["es_input_error"] = str(error)

    return state.callback(widget, change)


def _model(link: Link) -> None:
    model_panel.draw(
        link.request.model, place="", changed=lambda spec: state.ask(state.request().replace(model=spec))
    )


def _corruption(link: Link) -> None:
    request = link.request
    st.markdown("**Corruption**")
    key = state.key("corruption")
    st.segmented_control(
        "Corruption", CORRUPTIONS, default=request.corruption, key=key, required=True, width="stretch",
        format_func={"noise": "Noise", "replace": "Another subject"}.__getitem__, help=HELP_CORRUPTION,
        label_visibility="collapsed", on_change=_ask(key, lambda kind: {"corruption": kind, "replacement": ()}),
    )  # fmt: skip
    left, right = st.columns([3, 2] if request.corruption == "replace" else 2)
    if request.corruption == "noise":
        key = state.key("noise")
        left.number_input(
            "Noise level", min(0.01, request.noise), 100.0, request.noise, 0.5, format="%.4g", key=key,
            help=HELP_NOISE, on_change=_setting("noise", key, float),
        )  # fmt: skip
    else:
        key = state.key("replacement")
        left.text_input(
            "Other subject", f" {SEPARATOR} ".join(request.replacement), key=key, placeholder="chosen", max_chars=1000,
            help=HELP_REPLACEMENT, on_change=_ask(key, _named),
        )  # fmt: skip
    key = state.key("draws")
    right.number_input(
        "Draws", 1, MAX_DRAWS, request.draws, 1, key=key, help=HELP_DRAWS, on_change=_setting("draws", key, int),
        disabled=bool(request.replacement),
    )  # fmt: skip
    if request.replacement:
        return  # nothing is drawn
    key = state.key("seed")
    # a browser's numbers are exact up to 2^53 only; larger seeds come by link and are shown as they are
    largest = max(2**53 - 1, request.seed)
    if request.seed > 2**53 - 1:
        st.caption(f"Seed {request.seed} (from the link)")
    else:
        st.number_input(
            "Seed", 0, largest, request.seed, 1, key=key, help=HELP_SEED, on_change=_setting("seed", key, int)
        )


def _named(text: str) -> dict[str, Any]:
    """The settings that other subjects, typed, mean."""
    names = tuple(name.strip() for name in text.split(SEPARATOR) if name.strip())
    return {"replacement": names, "draws": len(names) or 1}


def _tokens(link: Link) -> None:
    request = link.request
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
            key = state.key(name)
            st.segmented_control(
                label, options, default=getattr(request, name), key=key, help=help_, required=True,
                on_change=_setting(name, key), width="stretch",
            )  # fmt: skip
        key = state.key("first_token")
        st.toggle(
            "First token of a longer object", request.first_token, key=key, help=HELP_FIRST,
            on_change=_setting("first_token", key, bool),
        )  # fmt: skip


def model_spec() -> ModelSpec:
    """The model that is asked for."""
    return state.request().model
