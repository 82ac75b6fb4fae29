"""The share link of the Study page: which study, what of it is looked at; query parameters and back.

And the links that lead from a fact of a study to the Trace page. Knows no browser; reading trusts nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..expert_link import ExpertView, of_trace
from ..links import Reader, View
from ..requests import Fact, TraceRequest
from .settings import StudySettings

SECTIONS = (
    "overview", "layers", "experts", "controls", "coalitions", "robustness", "relations", "joint_search", "facts",
    "settings",
)  # fmt: skip
SPLITS = ("discovery", "validation")


@dataclass(frozen=True)
class StudyView:
    """What the page shows. `study`: None for the list and the form. `layer`, `expert`: the patch whose facts are
    looked at, where it is not the selected one; `relation`, `split`: which facts are listed; `fact`: the scan_index of
    the ticked one. `problems`: sentences about what in the link cannot be."""

    study: str | None = None
    section: str = SECTIONS[0]
    layer: int | None = None
    expert: int | None = None
    relation: str | None = None
    split: str | None = None
    fact: int | None = None
    problems: tuple[str, ...] = ()


def to_query(view: StudyView) -> dict[str, str]:
    """The parameters of the link, in a fixed order; what is as by default is left out."""
    if view.study is None:
        return {}
    out = {"study": view.study}
    if view.section != SECTIONS[0]:
        out["show"] = view.section
    for name in ("layer", "expert", "relation", "split", "fact"):
        if getattr(view, name) is not None:
            out[name] = str(getattr(view, name))
    return out


def from_query(params: Mapping[str, str]) -> StudyView:
    """Read a link's parameters. Never raises for what stands in them; unknown names are ignored."""
    read = Reader(params)
    split = read.choice("split", ("", *SPLITS), "") or None
    view = StudyView(
        study=read.text("study", "") or None,
        section=read.choice("show", SECTIONS, SECTIONS[0]),
        layer=read.whole("layer", None, low=0),
        expert=read.whole("expert", None, low=0),
        relation=read.text("relation", "") or None,
        split=split,
        fact=read.whole("fact", None, low=0),
    )
    if view.study is None:
        return StudyView(problems=tuple(read.problems))
    if view.expert is not None and view.layer is None:
        read.problems.append("The link names an expert but no layer, so no expert is marked.")
        view = replace(view, expert=None)
    return replace(view, problems=tuple(read.problems))


def trace_request(settings: StudySettings, fact: Fact) -> TraceRequest:
    """The question to the Trace page that gives a fact's numbers of the study."""
    return TraceRequest(
        fact=fact,
        model=settings.model,
        noise=settings.noise,
        draws=settings.draws,
        seed=settings.seed,
        special_tokens=settings.special_tokens,
        object_tokens=settings.object_tokens,
    )


def expert_view(settings: StudySettings, *, layer: int, expert: int) -> ExpertView:
    """The page of an expert with the study's model, noise and tokens, over the page's own default set of facts."""
    return of_trace(trace_request(settings, Fact("", "", "")), layer=layer, expert=expert)


def trace_view(*, pos: int | None, layer: int | None, expert: int | None) -> View:
    """What the Trace page shows first: the study's patch, rescue in logits."""
    return View(measure="rescue", pos=pos, layer=layer, expert=None if layer is None else expert)
