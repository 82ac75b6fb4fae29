"""A trace's request into the request of a further question about the same fact, and back. No torch."""

from __future__ import annotations

from typing import Any

from ..derived import DerivedRequest
from ..requests import TraceRequest

_TOKENS = ("special_tokens", "object_tokens", "first_token")
_ALWAYS = ("draws", "corruption", *_TOKENS)
_SOMETIMES = ("noise", "seed", "replacement")


def ask(kind: str, request: TraceRequest, **settings: Any) -> DerivedRequest:
    """The question `kind` about the fact of `request`, under the same corruption; `settings` are the question's own.

    What does not count (the noise level where the subject is replaced, say) is left out.
    """
    given = {name: getattr(request, name) for name in _ALWAYS}
    if request.corruption == "noise":
        given["noise"] = request.noise
    if request.replacement:
        given["replacement"] = list(request.replacement)
    else:
        given["seed"] = request.seed
    return DerivedRequest.of(kind, request.model, facts=(request.fact,), **given, **settings)


def ask_map(request: TraceRequest, site: str, window: int, n_layers: int) -> DerivedRequest:
    """The layer × token map at another site or of a window; a window of more layers than the model has is all of it."""
    return ask("site_map", request, site=site, window=min(window, n_layers))


def ask_clean(kind: str, request: TraceRequest, **settings: Any) -> DerivedRequest:
    """The same for a question about the clean run alone: the corruption does not count."""
    given = {name: getattr(request, name) for name in _TOKENS}
    return DerivedRequest.of(kind, request.model, facts=(request.fact,), **given, **settings)


def question(request: DerivedRequest) -> TraceRequest:
    """The trace's request, without experts; what the question does not say is as it is by default."""
    settings = request.get()
    known = {name: settings[name] for name in (*_ALWAYS, *_SOMETIMES) if name in settings}
    if "replacement" in known:
        known["replacement"] = tuple(known["replacement"])
    return TraceRequest(request.facts[0], model=request.model, experts="none", **known)
