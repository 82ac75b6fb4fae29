"""What this browser tab looks at on the Routing page: a `core.routing_link.RoutingView`, in step with the address."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import streamlit as st

from core.derived import DerivedRequest
from core.errors import ExpertScopeError
from core.expert_link import ExpertView
from core.links import Link, View, with_query
from core.prompt_forms import in_form
from core.prompt_lists import is_short
from core.requests import Fact
from core.routing_kinds import routing_request
from core.routing_link import FACTS, PROMPTS, PromptSet, RoutingView, from_query, to_query

from . import address as bar
from . import base, text
from .address import Address
from .study_state import APP

HERE: Address[RoutingView] = Address("routing", read=from_query, write=to_query)
PAGE = APP.parent / "pages" / "Routing.py"
_SAID = "es_routing_said"


def look(**changes: Any) -> None:
    """Look at something else, or ask for something else."""
    HERE.change(replace(HERE.value, **{"problems": (), **changes}))


def setting(name: str, widget: str, convert: Callable[[Any], Any] = lambda value: value) -> Callable[[], None]:
    """A callback that puts a widget's value into the view's field `name`."""

    def change() -> None:
        value = st.session_state.get(widget)
        if value is not None:
            look(**{name: convert(value)})

    return bar.callback(widget, change)


def address() -> str:
    """The link to what is shown."""
    return with_query(st.context.url or "http://localhost:8501/Routing", to_query(HERE.value))


def choose(which: str, chosen: PromptSet | None) -> None:
    """Another set of prompts: `a`, or `b` to compare with. What was said about the old one is gone."""
    st.session_state.pop(f"{_SAID}_{which}", None)
    look(**{which: chosen, "fact": None})


def choose_prompts(which: str, read: Callable[[], tuple[str, ...]]) -> None:
    """The prompts that `read()` gives as the set `which`; what is wrong with them is said beside the field."""
    try:
        prompts = read()
        if not is_short(prompts):
            base.workbench().keep_prompts(prompts)
    except ExpertScopeError as error:
        st.session_state[f"{_SAID}_{which}"] = text.error(error)
        bar.touch()
        return
    choose(which, PromptSet(source=PROMPTS, prompts=prompts))


def said(which: str) -> str:
    """What was wrong with the prompts that were given last, as Markdown; empty for nothing."""
    return st.session_state.get(f"{_SAID}_{which}", "")


def prompts_of(chosen: PromptSet) -> tuple[str, ...]:
    """The set's plain prompts; none where the store does not have them (any more)."""
    if chosen.prompts or not chosen.prompts_key:
        return chosen.prompts
    return base.workbench().prompts(chosen.prompts_key) or ()


def request_of(view: RoutingView, chosen: PromptSet) -> DerivedRequest | None:
    """The question about one set with the view's settings, or None where the set is empty."""
    if chosen.source == FACTS:
        facts = in_form(base.facts_of(chosen.facts), chosen.form)
        return routing_request(view.model, facts=facts, **view.settings) if facts else None
    prompts = prompts_of(chosen)
    return routing_request(view.model, prompts=prompts, special_tokens=view.special_tokens) if prompts else None


def name_of(chosen: PromptSet) -> str:
    """A short name of a set, for legends and headings."""
    if chosen.source == PROMPTS:
        prompts = prompts_of(chosen)
        first = prompts[0] if prompts else "no prompts"
        more = f" and {len(prompts) - 1} more" if prompts[1:] else ""
        return f"“{first[:28]}{'…' if len(first) > 28 else ''}”{more}"
    facts = chosen.facts
    of = ", ".join(name.replace("_", " ") for name in facts.relations[:2]) if facts.relations else "all relations"
    more = f" and {len(facts.relations) - 2} more" if len(facts.relations) > 2 else ""
    source = "" if facts.source == "bundled" else f"{facts.source}: "
    form = {"direct": "", "paraphrased": ", paraphrased", "context": ", stated before"}[chosen.form]
    return f"{source}facts of {of}{more}{form}"


def trace_link(
    view: RoutingView, fact: Fact, *, pos: int | None, layer: int | None, expert: int | None, listed: str = ""
) -> Link:
    """The fact as a question to the Trace page with this page's settings, at a cell. `listed`: the stored list that
    has it."""
    shown = View(pos=pos, layer=layer, expert=expert if layer is not None else None)
    return Link(view.trace(fact), shown, base.is_bundled(fact), listed=listed)


def expert_view(view: RoutingView, layer: int, expert: int) -> ExpertView:
    """The Expert page of an expert, over this page's facts and with its settings."""
    chosen = {"facts": view.a.facts} if view.a.source == FACTS else {}
    return ExpertView(model=view.model, layer=layer, expert=expert, **view.settings, **chosen)
