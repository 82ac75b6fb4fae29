"""The fields of a fact that is typed in, with its tokens shown as one types. Knows no page."""

from __future__ import annotations

import streamlit as st

from core.errors import ExpertScopeError
from core.requests import Fact, ModelSpec

from . import address, base, text

_LIVE = "400ms"


def draw(fact: Fact, *, place: str = "", relation: bool = False) -> Fact:
    """The fields, filled with `fact`; what they say. `place` tells the pages' widgets apart; `relation`: with a field
    for it."""
    prompt = st.text_input(
        "Prompt", fact.prompt, key=address.key(f"{place}prompt"), live=_LIVE, max_chars=4000,
        help="With {} where the subject belongs, or the whole text with the subject in it.",
    )  # fmt: skip
    subject = st.text_input("Subject", fact.subject, key=address.key(f"{place}subject"), live=_LIVE, max_chars=1000)
    left, right = st.columns(2)
    true = left.text_input("True object", fact.true, key=address.key(f"{place}true"), live=_LIVE, max_chars=1000)
    auto = st.toggle(
        "Foil: the model's most probable other token", fact.foil_auto, key=address.key(f"{place}auto"),
        help="Otherwise the foil is the wrong object typed above.",
    )  # fmt: skip
    foil = right.text_input(
        "Foil", fact.foil or "", key=address.key(f"{place}foil"), live=_LIVE, max_chars=1000, disabled=auto,
        placeholder="automatic" if auto else "a wrong object",
    )  # fmt: skip
    occurrence = None
    if "{}" not in prompt and subject.strip() and prompt.count(subject.strip()) > 1:
        n = prompt.count(subject.strip())
        start = min(fact.occurrence or 1, n)
        key = address.key(f"{place}occurrence")
        occurrence = int(st.number_input("Which occurrence of the subject", 1, n, start, key=key))
    its_relation = fact.relation
    if relation:
        key = address.key(f"{place}relation")
        typed = st.text_input(
            "Relation", fact.relation or "", key=key, max_chars=200, placeholder="none",
            help="What kind of fact it is; filters and per-relation tables go by it.",
        )  # fmt: skip
        its_relation = typed.strip() or None
    return Fact(
        prompt=prompt,
        subject=subject,
        true=true,
        foil=None if auto else foil.strip() or None,
        foil_auto=auto,
        occurrence=occurrence,
        case_id=fact.case_id,
        relation=its_relation,
    )


def tokens(
    fact: Fact, model: ModelSpec, *, special_tokens: str = "auto", object_tokens: str = "space",
    first_token: bool = False,
) -> bool:  # fmt: skip
    """The tokens of a typed fact and what is wrong with it; whether it can be traced as far as can be told."""
    try:
        read = base.workbench().live(
            fact, model, special_tokens=special_tokens, object_tokens=object_tokens, first_token=first_token
        )
    except ExpertScopeError as error:
        st.caption(text.error(error))
        return bool(fact.prompt.strip() and fact.subject.strip() and fact.true.strip())
    if read.tokens:
        st.html(text.tokens_row([(t.token, t.subject, t.special) for t in read.tokens]))
    for role, found in (("true", read.true), ("foil", read.foil)):
        if found is not None:
            pieces = "" if len(found.pieces) == 1 else f" (first of {len(found.pieces)} tokens)"
            st.html(text.object_token(role, found.token, found.token_id, pieces))
    for problem in read.problems:
        st.warning(text.error(problem))
    return read.prepared is not None
