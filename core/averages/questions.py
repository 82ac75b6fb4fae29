"""The two questions about many facts: every cell of a site, and every expert at a role. Values only, no model.

A question holds nothing of how its answer is averaged or looked at: which facts count, and by which measure, is for
`core.averages.tables` to say, so that it can change without computing anything again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..derived import DerivedRequest
from ..errors import InputError
from ..requests import Fact, ModelSpec, TraceRequest
from ..roles import BEFORE, LAST, ROLES
from ..sites import MOE, SITES
from ..trace_view import MAX_WINDOW

CELLS, EXPERTS = "averages", "expert_averages"
"""The kinds (see `core.derived.KINDS`)."""

SHOWN_ROLES = tuple(role for role in ROLES if role != BEFORE)
"""The five of ROME's figure. What stands before the subject is the same in the clean and in the corrupt run."""

NOBODY = Fact("", "", "")
"""Stands for the fact in a request of which only the settings count."""
ASKED = ("noise", "draws", "seed", "special_tokens", "object_tokens", "first_token", "corruption", "replacement")
"""The fields of a `TraceRequest` that hold for all facts."""


def cells_request(asked: TraceRequest, facts: Sequence[Fact], *, site: str = MOE, window: int = 1) -> DerivedRequest:
    """Every cell of `facts`: `site` restored at each layer and position, on a window of so many layers around it.

    Of `asked` the model and the settings count. Raises `InputError` for a site or a window that there is not.
    """
    if site not in SITES:
        raise InputError(f"site is {site!r}.", f"Choose one of: {', '.join(SITES)}.", field="site")
    if not 1 <= window <= MAX_WINDOW:
        raise InputError(f"window is {window}.", f"Give a number of layers from 1 to {MAX_WINDOW}.", field="window")
    return _request(CELLS, asked, facts, site=site, window=int(window))


def experts_request(asked: TraceRequest, facts: Sequence[Fact], *, role: str = LAST) -> DerivedRequest:
    """The expert patch of every routed expert of `facts`, at the positions of one role in every layer.

    Raises `InputError` for a role that there is not.
    """
    if role not in SHOWN_ROLES:
        raise InputError(f"role is {role!r}.", f"Choose one of: {', '.join(SHOWN_ROLES)}.", field="role")
    return _request(EXPERTS, asked, facts, role=role)


def trace_settings(request: DerivedRequest) -> dict[str, Any]:
    """What of the request is about each fact's runs: fields of a `TraceRequest`."""
    given = request.get()
    settings = {name: given[name] for name in ASKED if name in given}
    return settings | {"replacement": tuple(given.get("replacement", ()))}


def trace_request(request: DerivedRequest, fact: Fact, *, model: ModelSpec | None = None, **more: Any) -> TraceRequest:
    """The trace of one fact with the settings of the request; `model`: in another one's place."""
    return TraceRequest(fact, request.model if model is None else model, **trace_settings(request), **more)


def _request(kind: str, asked: TraceRequest, facts: Sequence[Fact], **settings: Any) -> DerivedRequest:
    held = {name: getattr(asked, name) for name in ASKED}
    if asked.corruption == "replace":
        del held["noise"]  # no number depends on it
    if not asked.replacement:
        del held["replacement"]
    return DerivedRequest.of(kind, asked.model, facts=facts, **settings, **held)
