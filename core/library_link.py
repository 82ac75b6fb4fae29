"""The share link of the Library page: which section, list, filters, search, and how facts are validated.

Reading trusts nothing: whatever a link says that cannot be is replaced by a default and named in a sentence. Knows no
browser.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from . import links, validation
from .derived import DerivedRequest
from .fact_sets import BUNDLED
from .links import Reader, View
from .requests import Fact, ModelSpec, TraceRequest

SECTIONS = ("facts", "validation", "traces", "studies", "store", "models")
"""What the page shows, one at a time; the first is the default."""
_NOBODY = Fact("", "", "")
_ASKED = ("noise", "draws", "seed", "special_tokens", "object_tokens")
_OF_TRACE = ("model", "revision", "dtype", "device", "quantisation", "placement", *_ASKED)
_LEAST = {"min_clean_contrast": 1.0, "min_drop": 0.5}


@dataclass(frozen=True)
class LibraryView:
    """What the page shows. `source`: the list of facts; `relation`, `search`: which of them; `outcome`: which of the
    validated ones (see `core.validation.OUTCOMES`); `of`: whose traces; `model` to `min_drop`: how facts are
    validated. `problems`: sentences about what in the link cannot be."""

    section: str = SECTIONS[0]
    source: str = BUNDLED
    relation: str | None = None
    search: str = ""
    outcome: str | None = None
    of: str | None = None
    model: ModelSpec = field(default_factory=ModelSpec)
    measure: bool = True
    noise: float = 3.0
    draws: int = 1
    seed: int = 0
    special_tokens: str = "auto"
    object_tokens: str = "space"
    min_clean_contrast: float = _LEAST["min_clean_contrast"]
    min_drop: float = _LEAST["min_drop"]
    problems: tuple[str, ...] = ()

    def trace(self, fact: Fact) -> TraceRequest:
        """The question to the Trace page about a fact, with the model and the settings of the validation."""
        return TraceRequest(fact, self.model, **{name: getattr(self, name) for name in _ASKED})

    def validate(self, facts: Sequence[Fact]) -> DerivedRequest:
        """The question which of these facts the model can be asked about."""
        settings = {name: getattr(self, name) for name in (*_ASKED, *_LEAST)}
        return validation.ask(self.model, facts, measure=self.measure, **settings)


def to_query(view: LibraryView) -> dict[str, str]:
    """The parameters of the link, in a fixed order; a choice that equals its default is left out."""
    default = LibraryView()
    out = {} if view.section == default.section else {"show": view.section}
    names = {"source": "facts", "relation": "relation", "search": "search", "outcome": "outcome", "of": "of"}
    for name, parameter in names.items():
        if getattr(view, name) != getattr(default, name):
            out[parameter] = str(getattr(view, name))
    usual = links.to_query(default.trace(_NOBODY), View(), bundled=True)
    asked = links.to_query(view.trace(_NOBODY), View(), bundled=True)
    out |= {name: value for name, value in asked.items() if usual.get(name) != value}
    if not view.measure:
        out["measure"] = "0"
    for name in _LEAST:
        if getattr(view, name) != getattr(default, name):
            out[name] = f"{getattr(view, name)!r}".removesuffix(".0")
    return out


def from_query(params: Mapping[str, str]) -> LibraryView:
    """Read a link's parameters. Never raises for what stands in them; unknown names are ignored."""
    asked = links.from_query(
        {name: params[name] for name in _OF_TRACE if name in params}, bundled=lambda _: _NOBODY, default=_NOBODY
    )
    read = Reader(params)
    view = LibraryView(
        section=read.choice("show", SECTIONS, SECTIONS[0]),
        source=read.text("facts", BUNDLED).strip() or BUNDLED,
        relation=read.text("relation", "") or None,
        search=read.text("search", ""),
        outcome=read.choice("outcome", ("", *validation.OUTCOMES), "") or None,
        of=read.text("of", "") or None,
        model=asked.request.model,
        measure=read.choice("measure", ("1", "0"), "1") == "1",
        **{name: getattr(asked.request, name) for name in _ASKED},
        **{name: _number(read, params, name) for name in _LEAST},
    )
    return replace(view, problems=(*asked.problems, *read.problems))


def _number(read: Reader, params: Mapping[str, str], name: str) -> float:
    try:
        value = float(params.get(name, _LEAST[name]))
    except ValueError:
        value = math.nan
    if math.isfinite(value):
        return value
    shown = read.text(name, "")[:40]
    used = f"{_LEAST[name]:g}"
    read.problems.append(f"The link says {name}={shown}, but {name} must be a number; {used} is used instead.")
    return _LEAST[name]
