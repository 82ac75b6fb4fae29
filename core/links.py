"""The share link: a `TraceRequest` and what is looked at, as URL query parameters and back.

Reading trusts nothing: whatever a link says that cannot be is replaced by the default and named in a sentence.
Knows no browser and no page; the names are the command line's.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit, urlunsplit

from .browsing import BROWSING_NAMES, Browsing, browsing_query, read_browsing
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
from .trace_view import MEASURES, SHARED, VIEW_NAMES, View, check_view, read_view, view_query

__all__ = [
    "MAX_TEXT", "MEASURES", "NAMES", "SHARED", "Browsing", "Link", "Reader", "View", "check_view", "from_query",
    "to_query", "with_query",
]  # fmt: skip

MAX_TEXT = 4000
"""Longest text that is taken from a link, in characters."""

_TYPED = ("prompt", "subject", "true", "foil")
NAMES = (
    "model", "revision", "dtype", "device", "quantisation", "placement",
    "fact", "prompt", "subject", "true", "foil", "foil_auto", "occurrence", "case_id", "relation", "list",
    "corruption", "replacement", "noise", "draws", "seed", "special_tokens", "object_tokens", "first_token",
    *VIEW_NAMES, *BROWSING_NAMES,
)  # fmt: skip
"""Every query parameter that a link may have."""


@dataclass(frozen=True)
class Link:
    """What a link says. `problems`: sentences about what in it cannot be. `bundled`: the fact is a bundled one.
    `listed`: the stored list that it was chosen from; empty: none. Of the list nothing but its name is in a link, and
    no number depends on it: the fact is there in full. `browsing`: what is leafed through for the next fact."""

    request: TraceRequest
    view: View
    bundled: bool
    problems: tuple[str, ...] = ()
    listed: str = ""
    browsing: Browsing = Browsing()

    def to_query(self) -> dict[str, str]:
        """The parameters of the link, in a fixed order."""
        told = to_query(self.request, self.view, bundled=self.bundled, listed=self.listed)
        return told | browsing_query(self.browsing)


def to_query(request: TraceRequest, view: View, *, bundled: bool, listed: str = "") -> dict[str, str]:
    """The parameters of the link, in a fixed order. `request.experts` is left out: the view's `pos` implies it.
    `bundled`, `listed`: as in `Link`.

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
    if listed:
        out["list"] = listed
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
    return out | view_query(view)


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
        name=_model_name(read),
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
    view = read_view(read)
    listed = read.text("list", "").strip()
    browsing = read_browsing(read)
    return Link(request, view, is_bundled, tuple(read.problems), listed, browsing)


def _model_name(read: Reader) -> str:
    name = read.text("model", "demo")
    if name.strip():
        return name
    read.problems.append("The link names no model; demo is used instead.")
    return "demo"


def _fact(read: Reader, params: Mapping[str, str], bundled, default: Fact) -> tuple[Fact, bool]:
    if any(name in params for name in _TYPED) and "fact" not in params:
        typed = {name: read.text(name, "") for name in ("prompt", "subject", "true")}
        missing = [name for name, value in typed.items() if not value.strip()]
        if missing:
            read.problems.append(
                f"The link's fact has no {' and no '.join(missing)}; the default fact is shown instead."
            )
            return default, True
        auto = read.choice("foil_auto", ("0", "1"), "0") == "1"
        return Fact(
            **typed,
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

    def odd(self, name: str, default: object, expected: str) -> None:
        """Note that a parameter is not what it must be."""
        used = "it is left out" if default in (None, "") else f"{default} is used instead"
        shown = self._params[name]
        shown = "".join(c if c.isprintable() else "\ufffd" for c in shown[:40]) + ("…" if len(shown) > 40 else "")
        self.problems.append(f"The link says {name}={shown}, but {name} must be {expected}; {used}.")

    def text(self, name: str, default: str) -> str:
        """A text without control characters. What joins or directs letters (U+200C, U+202B) is part of a text: it
        changes the tokens."""
        value = self._params.get(name, default)
        if len(value) > MAX_TEXT:
            self.odd(name, default, f"at most {MAX_TEXT} characters long")
            return default
        kept = "".join(c for c in value if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs"))
        if kept != value:
            self.problems.append(f"The link's {name} has characters that are no text; they are left out.")
        return kept

    def choice(self, name: str, allowed: tuple[str, ...], default: str) -> str:
        value = self._params.get(name, default)
        if value not in allowed:
            self.odd(name, default, f"one of {', '.join(filter(None, allowed))}")
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
            self.odd(name, default, expected)
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
            self.odd(name, default, "a number above 0, at most 100")
            return default
