"""The share link: a `TraceRequest` and what is looked at, as URL query parameters and back.

Reading trusts nothing: whatever a link says that cannot be is replaced by the default and named in a sentence.
Knows no browser and no page; the names are the command line's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from urllib.parse import urlencode, urlsplit, urlunsplit

from .errors import InputError
from .quantisation import NONE, QUANTISATIONS
from .requests import (
    CORRUPTIONS,
    DEVICES,
    DTYPES,
    MAX_DRAWS,
    OBJECT_TOKENS,
    PLACEMENTS,
    SEPARATOR,
    SPECIAL_TOKENS,
    Fact,
    ModelSpec,
    TraceRequest,
)

MEASURES = ("restoration", "rescue")
SHARED = "shared"
MAX_TEXT = 4000
"""Longest text that is taken from a link, in characters."""

_TYPED = ("prompt", "subject", "true", "foil")
NAMES = (
    "model", "revision", "dtype", "device", "quantisation", "placement",
    "fact", "prompt", "subject", "true", "foil", "foil_auto", "occurrence", "case_id", "relation",
    "corruption", "replacement", "noise", "draws", "seed", "special_tokens", "object_tokens", "first_token",
    "show", "pos", "layer", "expert", "strip",
)  # fmt: skip
"""Every query parameter that a link may have."""


@dataclass(frozen=True)
class View:
    """What is looked at in one result. None: nothing chosen.

    `measure`: what colours the maps; `pos`, `layer`: the chosen cell; `expert`: an expert of that layer (an index,
    or `shared`); `strip`: the routing strip's layer where it is not the cell's.
    """

    measure: str = "restoration"
    pos: int | None = None
    layer: int | None = None
    expert: int | str | None = None
    strip: int | None = None


@dataclass(frozen=True)
class Link:
    """What a link says. `problems`: sentences about what in it cannot be. `bundled`: the fact is a bundled one."""

    request: TraceRequest
    view: View
    bundled: bool
    problems: tuple[str, ...] = ()


def to_query(request: TraceRequest, view: View, *, bundled: bool) -> dict[str, str]:
    """The parameters of the link, in a fixed order. `request.experts` is left out: the view's `pos` implies it.

    The model, the fact and the numbers are always there; a choice that equals its default is left out.
    """
    model, fact, default = request.model, request.fact, TraceRequest(fact=request.fact)
    out: dict[str, str] = {"model": model.name}
    if model.revision:
        out["revision"] = model.revision
    for name in ("dtype", "device", "placement"):
        if getattr(model, name) != "auto":
            out[name] = getattr(model, name)
    if model.quantisation != NONE:
        out["quantisation"] = model.quantisation
    if bundled:
        out["fact"] = str(fact.case_id)
    else:
        out |= {"prompt": fact.prompt, "subject": fact.subject, "true": fact.true}
        if fact.foil is not None:
            out["foil"] = fact.foil
        if fact.foil_auto:
            out["foil_auto"] = "1"
        if fact.occurrence is not None:
            out["occurrence"] = str(fact.occurrence)
        if fact.case_id:
            out["case_id"] = str(fact.case_id)
        if fact.relation:
            out["relation"] = fact.relation
    if request.corruption != default.corruption:
        out["corruption"] = request.corruption
    if request.replacement:
        out["replacement"] = SEPARATOR.join(request.replacement)
    out |= {"noise": f"{request.noise!r}".removesuffix(".0"), "draws": str(request.draws), "seed": str(request.seed)}
    for name in ("special_tokens", "object_tokens"):
        if getattr(request, name) != getattr(default, name):
            out[name] = getattr(request, name)
    if request.first_token:
        out["first_token"] = "1"
    if view.measure != MEASURES[0]:
        out["show"] = view.measure
    for name in ("pos", "layer", "expert", "strip"):
        if getattr(view, name) is not None:
            out[name] = str(getattr(view, name))
    return out


def link(base: str, request: TraceRequest, view: View, *, bundled: bool) -> str:
    """The whole address: `base` (the page's own, without parameters) and the parameters."""
    return with_query(base, to_query(request, view, bundled=bundled))


def with_query(base: str, params: Mapping[str, str]) -> str:
    """The address `base` with these parameters and no others."""
    parts = urlsplit(base)
    return urlunsplit((parts.scheme, parts.netloc, parts.path or "/", urlencode(params), ""))


def from_query(params: Mapping[str, str], *, bundled: Callable[[int], Fact | None], default: Fact) -> Link:
    """Read a link's parameters. `bundled`: the bundled fact with a case_id, or None; `default`: where none is named.

    Never raises for what stands in `params`; unknown names are ignored.
    """
    read = Reader(params)
    fact, is_bundled = _fact(read, params, bundled, default)
    model = ModelSpec(
        name=read.text("model", "demo") or "demo",
        revision=read.text("revision", "") or None,
        dtype=read.choice("dtype", DTYPES, "auto"),
        device=read.choice("device", DEVICES, "auto"),
        quantisation=read.choice("quantisation", QUANTISATIONS, NONE),
        placement=read.choice("placement", PLACEMENTS, "auto"),
    )
    request = TraceRequest(
        fact=fact,
        model=model,
        noise=read.number("noise", 3.0),
        draws=read.whole("draws", 1, low=1, high=MAX_DRAWS),
        seed=read.whole("seed", 0, low=0, high=2**62),
        special_tokens=read.choice("special_tokens", SPECIAL_TOKENS, "auto"),
        object_tokens=read.choice("object_tokens", OBJECT_TOKENS, "space"),
        first_token=read.choice("first_token", ("0", "1"), "0") == "1",
        corruption=read.choice("corruption", CORRUPTIONS, CORRUPTIONS[0]),  # type: ignore[arg-type]
    )
    request = _with_replacement(read, request)
    view = View(
        measure=read.choice("show", MEASURES, MEASURES[0]),
        pos=read.whole("pos", None, low=0),
        layer=read.whole("layer", None, low=0),
        expert=SHARED if params.get("expert") == SHARED else read.whole("expert", None, low=0),
        strip=read.whole("strip", None, low=0),
    )
    if view.expert is not None and view.layer is None:
        read.problems.append("The link names an expert but no layer, so no expert is marked.")
        view = replace(view, expert=None)
    return Link(request, view, is_bundled, tuple(read.problems))


def check_view(
    view: View, *, n_tokens: int, moe_layers: list[int], n_layers: int, n_experts: int, shared: bool
) -> tuple[View, list[str]]:
    """The view with everything dropped that this result does not have, and a sentence about each."""
    problems = []
    if view.pos is not None and view.pos >= n_tokens:
        problems.append(f"There is no position {view.pos}: the prompt has {n_tokens} tokens (0 to {n_tokens - 1}).")
        view = replace(view, pos=None, layer=None, expert=None)
    for name in ("layer", "strip"):
        layer = getattr(view, name)
        if layer is not None and layer not in moe_layers:
            why = f"the model has {n_layers} (0 to {n_layers - 1})" if layer >= n_layers else "it is dense"
            problems.append(f"Layer {layer} has no experts to show: {why}.")
            view = replace(view, **{name: None} | ({"expert": None} if name == "layer" else {}))
    if view.expert == SHARED and not shared:
        problems.append("This model has no shared expert.")
        view = replace(view, expert=None)
    if isinstance(view.expert, int) and view.expert >= n_experts:
        problems.append(f"There is no expert {view.expert}: each layer has {n_experts} (0 to {n_experts - 1}).")
        view = replace(view, expert=None)
    return view, problems


def _fact(read: Reader, params: Mapping[str, str], bundled, default: Fact) -> tuple[Fact, bool]:
    if any(name in params for name in _TYPED) and "fact" not in params:
        missing = [name for name in ("prompt", "subject", "true") if not params.get(name, "").strip()]
        if missing:
            read.problems.append(
                f"The link's fact has no {' and no '.join(missing)}; the default fact is shown instead."
            )
            return default, True
        auto = read.choice("foil_auto", ("0", "1"), "0") == "1"
        return Fact(
            prompt=read.text("prompt", ""),
            subject=read.text("subject", ""),
            true=read.text("true", ""),
            foil=None if auto else read.text("foil", "") or None,
            foil_auto=auto,
            occurrence=read.whole("occurrence", None, low=1),
            case_id=read.whole("case_id", 0, low=0),
            relation=read.text("relation", "") or None,
        ), False
    if "fact" not in params:
        return default, True
    case_id = read.whole("fact", None, low=0)
    if case_id is None:
        return default, True
    fact = bundled(case_id)
    if fact is None:
        read.problems.append(f"There is no bundled fact with case_id {case_id}; the default fact is shown instead.")
    return fact or default, True


def _with_replacement(read: Reader, request: TraceRequest) -> TraceRequest:
    names = tuple(name for name in (part.strip() for part in read.text("replacement", "").split(SEPARATOR)) if name)
    try:
        return request.replace(replacement=names)
    except InputError as error:
        read.problems.append(f"The link's other subject is left out: {error.what}")
        return request


class Reader:
    """Reads parameters one by one and collects in `problems` what is wrong with them."""

    def __init__(self, params: Mapping[str, str]) -> None:
        self._params = params
        self.problems: list[str] = []

    def _odd(self, name: str, default: object, expected: str) -> None:
        used = "it is left out" if default is None else f"{default} is used instead"
        shown = self._params[name]
        shown = shown if len(shown) <= 40 else shown[:40] + "…"
        self.problems.append(f"The link says {name}={shown}, but {name} must be {expected}; {used}.")

    def text(self, name: str, default: str) -> str:
        value = self._params.get(name, default)
        if len(value) > MAX_TEXT:
            self._odd(name, default, f"at most {MAX_TEXT} characters long")
            return default
        return "".join(c for c in value if c.isprintable() or c in "\n\t")

    def choice(self, name: str, allowed: tuple[str, ...], default: str) -> str:
        value = self._params.get(name, default)
        if value not in allowed:
            self._odd(name, default, f"one of {', '.join(allowed)}")
            return default
        return value

    def whole(self, name: str, default: int | None, *, low: int, high: int = 2**62) -> int | None:
        text = self._params.get(name)
        if text is None:
            return default
        # int() also reads "1_000", " 7 " and other scripts' digits: a link has none of these
        value = int(text) if text.isascii() and text.isdigit() and len(text) <= 19 else None
        if value is None or not low <= value <= high:
            expected = f"a whole number from {low}" + (f" to {high}" if high < 2**62 else "")
            self._odd(name, default, expected)
            return default
        return value

    def number(self, name: str, default: float) -> float:
        text = self._params.get(name)
        if text is None:
            return default
        try:
            value = float(text)
            if not math.isfinite(value):
                raise ValueError
            return TraceRequest(fact=Fact("", "", ""), noise=value).noise
        except (ValueError, InputError):
            self._odd(name, default, "a number above 0, at most 100")
            return default
