"""Choosing a model: name, revision, number format, device, quantisation, placement; and where it is now.

Knows neither questions nor studies: it is given a `ModelSpec` and tells of another one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import streamlit as st

from core import formats
from core.quantisation import QUANTISATIONS
from core.queueing import model_names
from core.requests import DEVICES, DTYPES, PLACEMENTS, ModelSpec
from core.workbench import LOADED, ON_DISK

from . import address, base, text

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
OPTIONS = (
    ("dtype", DTYPES, "Number format. `auto`: float32 on a CPU where it fits, else the checkpoint's own."),
    ("device", DEVICES, "`auto`: a GPU where there is one."),
    ("quantisation", QUANTISATIONS, HELP_QUANTISATION),
    ("placement", PLACEMENTS, HELP_PLACEMENT),
)


@st.cache_data(ttl=20, show_spinner=False)
def _names() -> list[str]:
    return [entry.id for entry in base.workbench().catalogue()]


def draw(spec: ModelSpec, *, place: str, changed: Callable[[ModelSpec], None]) -> None:
    """The widgets for `spec`; `changed` is called with another one. `place` tells the pages' widgets apart."""
    names = _names()
    options = names if spec.name in names else [spec.name, *names]
    key = address.key(f"{place}model")
    st.selectbox(
        "Model",
        options,
        index=options.index(spec.name),
        key=key,
        accept_new_options=True,
        on_change=_change("name", key, spec, changed),
        help="A model of the list, or type a Hugging Face id (`org/name`) or the path of a local folder.",
    )
    now = base.workbench().model_state(spec)
    memory = f" · needs about {formats.size(now.memory)} of memory" if now.memory and spec.name != "demo" else ""
    badge = STATE_BADGES.get(now.state, ":orange-badge[not here]")
    st.markdown(f"{badge} :small[{text.plain(now.detail)}{memory}]", width="stretch")
    if note := in_its_place(spec):
        st.caption(note)
    if spec.name == "demo":
        st.caption(
            "A tiny demo model, trained for this app. It shows how tracing works; its maps are no evidence about "
            "large models."
        )
    chosen = _chosen(spec)
    with st.expander("Model options" + (f" · {text.plain(', '.join(chosen))}" if chosen else "")):
        if spec.name != "demo":
            key = address.key(f"{place}revision")
            st.text_input(
                "Revision", spec.revision or "", key=key, on_change=_change("revision", key, spec, changed),
                help="A branch, tag or commit of the hub repository.", max_chars=200, placeholder="main",
            )  # fmt: skip
        for field, choices, help_ in OPTIONS:
            key = address.key(f"{place}{field}")
            st.selectbox(
                field, choices, index=choices.index(getattr(spec, field)), key=key, help=help_,
                on_change=_change(field, key, spec, changed),
            )  # fmt: skip


def called(spec: ModelSpec) -> str:
    """The model as its own viewer named it, with the options that are not as by default."""
    return f"{spec.name} ({', '.join(chosen)})" if (chosen := _chosen(spec)) else spec.name


def _chosen(spec: ModelSpec) -> list[str]:
    return [x for x in (spec.revision, *(getattr(spec, name) for name, _, _ in OPTIONS)) if x not in UNCHANGED]


def in_its_place(spec: ModelSpec) -> str:
    """What loading the model does to those in memory, as Markdown; empty where it does nothing."""
    residents = base.workbench().residents
    there = [resident.spec for resident in residents.all()]
    if not there or spec in there:
        return ""
    told = model_names([spec, *there])
    names = " and ".join(text.plain(told[other]) for other in there)
    if residents.most == 1:
        return f"In memory now: **{names}**. It is unloaded for this one; work on it that was asked before comes first."
    return f"In memory now: **{names}**. They stay as far as memory allows, the least recently used goes first."


def _change(field: str, widget: str, spec: ModelSpec, changed: Callable[[ModelSpec], None]) -> Callable[[], None]:
    def change() -> None:
        value = (st.session_state.get(widget) or "").strip() or None
        changes: dict[str, str | None] = {field: value}
        if field == "name":
            if value is None:
                return
            changes["revision"] = None
        changed(dataclasses.replace(spec, **changes))

    return address.callback(widget, change)
