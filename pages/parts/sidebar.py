"""The sidebar: model, fact, corruption, tokens, store. Every widget changes the state in its callback."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import streamlit as st

from core.errors import ExpertScopeError
from core.links import Link
from core.quantisation import QUANTISATIONS
from core.requests import (
    CORRUPTIONS,
    DEVICES,
    DTYPES,
    MAX_DRAWS,
    OBJECT_TOKENS,
    PLACEMENTS,
    SEPARATOR,
    SPECIAL_TOKENS,
    ModelSpec,
)
from core.workbench import LOADED, ON_DISK

from . import base, facts_panel, state, store_panel, text

STATE_BADGES = {LOADED: ":green-badge[loaded]", ON_DISK: ":blue-badge[on disk]"}

UNCHANGED = (None, "auto", "none")
HELP_QUANTISATION = (
    "`int8`: torchao's 8-bit weights for experts, attention and dense layers, made while loading. About half the "
    "memory of bfloat16; the numbers are those of the quantised model."
)
HELP_PLACEMENT = (
    "Where the weights are: in memory, or on the disk, from where each layer is read once per trace. `auto`: in memory "
    "where they fit. No number depends on it."
)
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
        st.markdown("### :material/biotech: ExpertScope")
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


def _change_model(field: str, widget: str) -> Callable[[], None]:
    def change() -> None:
        value = st.session_state.get(widget)
        request = state.request()
        changes: dict[str, Any] = {field: (value or "").strip() or None}
        if field == "name":
            if not changes["name"]:
                return
            changes["revision"] = None
        state.ask(request.replace(model=dataclasses.replace(request.model, **changes)))

    return state.callback(widget, change)


@st.cache_data(ttl=20, show_spinner=False)
def _names() -> list[str]:
    return [entry.id for entry in base.workbench().catalogue()]


def _model(link: Link) -> None:
    spec = link.request.model
    names = _names()
    options = names if spec.name in names else [spec.name, *names]
    key = state.key("model")
    st.selectbox(
        "Model",
        options,
        index=options.index(spec.name),
        key=key,
        accept_new_options=True,
        on_change=_change_model("name", key),
        help="A model of the list, or type a Hugging Face id (`org/name`) or the path of a local folder.",
    )
    model_state = base.workbench().model_state(spec)
    memory = (
        f" · needs about {text.size(model_state.memory)} of memory"
        if model_state.memory and spec.name != "demo"
        else ""
    )
    badge = STATE_BADGES.get(model_state.state, ":orange-badge[not here]")
    st.markdown(f"{badge} :small[{model_state.detail}{memory}]", width="stretch")
    if spec.name == "demo":
        st.caption(
            "A tiny demo model, trained for this app. It shows how tracing works; its maps are no evidence about "
            "large models."
        )
    options = (spec.revision, spec.dtype, spec.device, spec.quantisation, spec.placement)
    changed = [x for x in options if x not in UNCHANGED]
    with st.expander("Model options" + (f" · {text.plain(', '.join(changed))}" if changed else "")):
        if spec.name != "demo":
            key = state.key("revision")
            st.text_input(
                "Revision", spec.revision or "", key=key, on_change=_change_model("revision", key), placeholder="main",
                help="A branch, tag or commit of the hub repository.", max_chars=200,
            )  # fmt: skip
        for field, choices, help_ in (
            ("dtype", DTYPES, "Number format. `auto`: float32 on a CPU where it fits, else the checkpoint's own."),
            ("device", DEVICES, "`auto`: a GPU where there is one."),
            ("quantisation", QUANTISATIONS, HELP_QUANTISATION),
            ("placement", PLACEMENTS, HELP_PLACEMENT),
        ):
            key = state.key(field)
            st.selectbox(
                field, choices, index=choices.index(getattr(spec, field)), key=key, help=help_,
                on_change=_change_model(field, key),
            )  # fmt: skip


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
