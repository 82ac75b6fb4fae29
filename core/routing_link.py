"""The share link of the Routing page: which prompts, a second set to compare with, what is looked at; and back.

Reading trusts nothing: whatever a link says that cannot be is replaced by a default and named in a sentence. Knows no
browser and no numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from . import links
from .errors import InputError
from .fact_sets import FactSet
from .links import Reader, View
from .prompt_forms import DIRECT, FORMS
from .prompt_lists import is_short, key_of, read_lines
from .requests import Fact, ModelSpec, TraceRequest
from .roles import CLASSES, LAST

SECTIONS = ("frequency", "relations", "co-activation", "compare")
"""What the page shows below its head, one at a time; the first is the default."""
CLEAN, CORRUPT, CHANGE = RUNS = ("clean", "corrupt", "change")
"""Whose routing is shown: of the clean runs, of the corrupt ones, or corrupt minus clean."""
FACTS, PROMPTS = SOURCES = ("facts", "prompts")

DEFAULT_FACTS = FactSet(n=256)
SECOND = "b_"
"""What the parameters of the second set begin with."""

_NOBODY = Fact("", "", "")
_ASKED = ("noise", "draws", "seed", "special_tokens", "corruption")
_OF_TRACE = ("model", "revision", "dtype", "device", "quantisation", "placement", *_ASKED)
_SET = ("set", "facts", "relations", "n", "facts_seed", "form", "prompts", "prompts_key")


@dataclass(frozen=True)
class PromptSet:
    """Whose tokens are counted. `source`: facts (of `facts`, in one of the forms of `core.prompt_forms`) or plain
    prompts: `prompts`, or `prompts_key`, the content key under which the store has them."""

    source: str = FACTS
    facts: FactSet = DEFAULT_FACTS
    form: str = DIRECT
    prompts: tuple[str, ...] = ()
    prompts_key: str = ""


@dataclass(frozen=True)
class RoutingView:
    """What the page shows. `a`: the set of prompts, `b`: another one to compare with (None: none chosen yet); `run`,
    `position_class`: which tokens are counted; `layer`, `expert`: looked at closely; `fact`: number of the prompt that
    is ticked. `problems`: sentences about what in the link cannot be."""

    model: ModelSpec = field(default_factory=ModelSpec)
    a: PromptSet = PromptSet()
    b: PromptSet | None = None
    noise: float = 3.0
    draws: int = 1
    seed: int = 0
    special_tokens: str = "auto"
    corruption: str = "noise"
    section: str = SECTIONS[0]
    run: str = CLEAN
    position_class: str = LAST
    layer: int | None = None
    expert: int | None = None
    fact: int | None = None
    problems: tuple[str, ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """What, besides model and prompts, can change a number."""
        return {name: getattr(self, name) for name in _ASKED}

    def trace(self, fact: Fact) -> TraceRequest:
        """The question to the Trace page with this page's model and settings."""
        return TraceRequest(fact=fact, model=self.model, **self.settings)


def to_query(view: RoutingView) -> dict[str, str]:
    """The parameters of the link, in a fixed order; a choice that equals its default is left out."""
    out = links.to_query(view.trace(_NOBODY), View(), bundled=True)
    del out["fact"]
    out |= _set_to_query(view.a)
    if view.b is not None:
        out |= {f"{SECOND}{name}": value for name, value in ({"set": view.b.source} | _set_to_query(view.b)).items()}
    default = RoutingView()
    for name, parameter in (("section", "show"), ("run", "run"), ("position_class", "where")):
        if getattr(view, name) != getattr(default, name):
            out[parameter] = getattr(view, name)
    for name in ("layer", "expert", "fact"):
        if getattr(view, name) is not None:
            out["prompt" if name == "fact" else name] = str(getattr(view, name))
    return out


def from_query(params: Mapping[str, str]) -> RoutingView:
    """Read a link's parameters. Never raises for what stands in them; unknown names are ignored."""
    asked = links.from_query(
        {name: params[name] for name in _OF_TRACE if name in params}, bundled=lambda _: _NOBODY, default=_NOBODY
    )
    read = Reader(params)
    view = RoutingView(
        model=asked.request.model,
        a=_set_from_query(read, params),
        section=read.choice("show", SECTIONS, SECTIONS[0]),
        run=read.choice("run", RUNS, CLEAN),
        position_class=read.choice("where", CLASSES, LAST),
        layer=read.whole("layer", None, low=0),
        expert=read.whole("expert", None, low=0),
        fact=read.whole("prompt", None, low=0),
        **{name: getattr(asked.request, name) for name in _ASKED},
    )
    problems = [*asked.problems, *read.problems]
    second = {name: params[f"{SECOND}{name}"] for name in _SET if f"{SECOND}{name}" in params}
    if second:
        other = Reader(second)
        view = replace(view, b=_set_from_query(other, second))
        problems += [f"The second set: {problem}" for problem in other.problems]
    if view.expert is not None and view.layer is None:
        problems.append("The link names an expert but no layer, so no expert is marked.")
        view = replace(view, expert=None)
    return replace(view, problems=tuple(problems))


def check(view: RoutingView, *, layers: list[int], n_experts: int) -> tuple[RoutingView, list[str]]:
    """The view without a layer or expert that the model does not have, and a sentence about it."""
    if view.layer is not None and view.layer not in layers:
        said = f"Layer {view.layer} has no experts to show: the MoE layers go from {layers[0]} to {layers[-1]}."
        return replace(view, layer=None, expert=None), [said]
    if view.expert is not None and view.expert >= n_experts:
        said = f"There is no expert {view.expert}: each layer has {n_experts} (0 to {n_experts - 1})."
        return replace(view, expert=None), [said]
    return view, []


def _set_to_query(chosen: PromptSet) -> dict[str, str]:
    if chosen.source == FACTS:
        form = {} if chosen.form == DIRECT else {"form": chosen.form}
        return chosen.facts.to_query(DEFAULT_FACTS) | form
    out = {"set": PROMPTS}
    if chosen.prompts and is_short(chosen.prompts):
        out["prompts"] = "\n".join(chosen.prompts)
    elif chosen.prompts or chosen.prompts_key:
        out["prompts_key"] = key_of(chosen.prompts) if chosen.prompts else chosen.prompts_key
    return out


def _set_from_query(read: Reader, params: Mapping[str, str]) -> PromptSet:
    plain = "prompts" in params or "prompts_key" in params
    source = read.choice("set", SOURCES, PROMPTS if plain else FACTS)
    if source == FACTS:
        return PromptSet(facts=FactSet.from_query(read, DEFAULT_FACTS), form=read.choice("form", FORMS, DIRECT))
    prompts: tuple[str, ...] = ()
    if params.get("prompts", "").strip():
        try:
            prompts = read_lines(read.text("prompts", ""), "The link's list of prompts")
        except InputError as error:
            read.problems.append(str(error))
    key = read.text("prompts_key", "")
    if len(key) != 32 or set(key) - set("0123456789abcdef"):
        if key:
            read.problems.append(f"The link says prompts_key={key[:40]}, which is no key of a list of prompts.")
        key = ""
    return PromptSet(source=PROMPTS, prompts=prompts, prompts_key="" if prompts else key)
