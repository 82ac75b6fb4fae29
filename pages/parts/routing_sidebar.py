"""The sidebar of the Routing page: model, the set of prompts, corruption, special tokens. And the panel of any set."""

from __future__ import annotations

from dataclasses import replace

import streamlit as st

from core.prompt_forms import DIRECT, FORMS, PARAPHRASED, in_form
from core.prompt_lists import MOST_PROMPTS, read_lines
from core.requests import CORRUPTIONS, MAX_DRAWS, SPECIAL_TOKENS
from core.routing_link import FACTS, SOURCES, PromptSet, RoutingView

from . import address, base, fact_set_panel, model_panel, navigation, text
from . import settings_panel as words
from .routing_state import choose, choose_prompts, look, prompts_of, said, setting

FORM_NAMES = {"direct": "As they are", "paraphrased": "Paraphrased", "context": "Stated before"}
HELP_FORM = (
    "As they are: the list's own prompts. Paraphrased: the same facts in other words (bundled facts have them). Stated "
    "before: a sentence states the fact before the prompt asks for it, so the context mediates the answer: “The "
    "capital of France is Paris. The capital of France is”."
)
HELP_PROMPTS = (
    f"One prompt per line, at most {MOST_PROMPTS:,}. They have no subject, so there are clean runs only, and two "
    "position classes: the last token and the others."
)


def draw(view: RoutingView) -> None:
    """The sidebar from the view, but for its foot."""
    with st.sidebar:
        navigation.draw()
        model_panel.draw(view.model, place="routing ", changed=lambda spec: look(model=spec, layer=None, expert=None))
        prompt_set("a", view.a, title="Prompts")
        if view.a.source == FACTS or (view.b is not None and view.b.source == FACTS):
            _corruption(view)
        _special(view)


def prompt_set(which: str, chosen: PromptSet, *, title: str) -> None:
    """The widgets of a set: facts in some form, or plain prompts, pasted or from a file. `which`: a or b."""
    place = f"routing {which} "
    source = address.key(f"{place}source")

    def switch() -> None:
        choose(which, PromptSet(source=st.session_state[source] or FACTS))

    st.markdown(f"**{title}**")
    st.segmented_control(
        title, SOURCES, default=chosen.source, key=source, required=True, width="stretch", label_visibility="collapsed",
        format_func={"facts": "Facts", "prompts": "Plain prompts"}.__getitem__,
        on_change=address.callback(source, switch),
    )  # fmt: skip
    if chosen.source == FACTS:
        fact_set_panel.draw(
            chosen.facts, changed=lambda facts: choose(which, replace(chosen, facts=facts)), place=place,
            title="Which facts",
        )  # fmt: skip
        form = address.key(f"{place}form")
        st.segmented_control(
            "Form", FORMS, default=chosen.form, key=form, required=True, format_func=FORM_NAMES.__getitem__,
            help=HELP_FORM, width="stretch",
            on_change=address.callback(form, lambda: choose(which, replace(chosen, form=st.session_state[form]))),
        )  # fmt: skip
        _without_form(chosen)
    else:
        _plain(which, chosen, place)
    if problem := said(which):
        st.error(problem)


def _without_form(chosen: PromptSet) -> None:
    """How many facts cannot be put into the chosen form."""
    facts = base.facts_of(chosen.facts) if chosen.form != DIRECT else ()
    missing = len(facts) - len(in_form(facts, chosen.form))
    if missing:
        why = "have no paraphrase" if chosen.form == PARAPHRASED else "do not have their subject in the prompt"
        st.caption(f"{missing:,} of {len(facts):,} facts {why} and are left out.")


def _plain(which: str, chosen: PromptSet, place: str) -> None:
    prompts = prompts_of(chosen)
    area = address.key(f"{place}prompts {hash(prompts)}")
    st.text_area(
        "Prompts", "\n".join(prompts), key=area, height=150, placeholder="One prompt per line", help=HELP_PROMPTS,
        on_change=address.callback(area, lambda: choose_prompts(which, lambda: read_lines(st.session_state[area]))),
        label_visibility="collapsed",
    )  # fmt: skip
    upload = address.key(f"{place}upload {hash(prompts)}")

    def uploaded() -> None:
        file = st.session_state.get(upload)
        if file is not None:
            choose_prompts(which, lambda: read_lines(file.getvalue(), file.name))

    st.file_uploader(
        "Or a text file", type=["txt"], key=upload, on_change=address.callback(upload, uploaded), max_upload_size=2,
    )  # fmt: skip
    if prompts:
        st.caption(f"{len(prompts):,} plain prompt{'s' if len(prompts) > 1 else ''}: clean runs only.")
    elif chosen.prompts_key:
        st.error(
            "The link names a list of prompts that this store does not have: it was pasted elsewhere, or the store was "
            f"cleared (key {text.plain(chosen.prompts_key)}). Paste the prompts again."
        )


def _corruption(view: RoutingView) -> None:
    st.markdown("**Corruption**")
    key = address.key("routing corruption")
    st.segmented_control(
        "Corruption", CORRUPTIONS, default=view.corruption, key=key, required=True, width="stretch",
        format_func={"noise": "Noise", "replace": "Another subject"}.__getitem__, help=words.HELP_CORRUPTION,
        label_visibility="collapsed", on_change=setting("corruption", key),
    )  # fmt: skip
    left, right = st.columns(2)
    if view.corruption == "noise":
        key = address.key("routing noise")
        left.number_input(
            "Noise level", min(0.01, view.noise), 100.0, view.noise, 0.5, format="%.4g", key=key,
            help=words.HELP_NOISE, on_change=setting("noise", key, float),
        )  # fmt: skip
    key = address.key("routing draws")
    right.number_input(
        "Draws", 1, MAX_DRAWS, view.draws, 1, key=key, help=words.HELP_DRAWS, on_change=setting("draws", key, int)
    )
    if view.seed > words.LARGEST_SEED:
        st.caption(f"Seed {view.seed} (from the link)")
    else:
        key = address.key("routing seed")
        st.number_input(
            "Seed", 0, words.LARGEST_SEED, view.seed, 1, key=key, help=words.HELP_SEED,
            on_change=setting("seed", key, int),
        )  # fmt: skip


def _special(view: RoutingView) -> None:
    changed = f" · {view.special_tokens}" if view.special_tokens != "auto" else ""
    with st.expander(f"Special tokens{changed}"):
        key = address.key("routing special_tokens")
        st.segmented_control(
            "Special tokens", SPECIAL_TOKENS, default=view.special_tokens, key=key, help=words.HELP_SPECIAL,
            required=True, on_change=setting("special_tokens", key), width="stretch", label_visibility="collapsed",
        )  # fmt: skip
