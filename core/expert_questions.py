"""The questions of an expert's dossier that need the model's weights or hooks, as derived requests.

One function per kind, with the settings that can change its numbers and no others, so that two views which differ in
nothing else share an answer. Knows no numbers and loads no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .derived import DerivedRequest
from .errors import InputError
from .requests import Fact, ModelSpec

WRITES, SIZE, NEURONS, STEERING = "expert_writes", "expert_size", "expert_neurons", "steering"
CLEAN_SETTINGS = ("special_tokens", "object_tokens", "first_token")
"""Fields of a `TraceRequest` that matter where nothing is corrupted."""
CORRUPT_SETTINGS = ("noise", "draws", "seed", "corruption", "replacement")
LEAST_FACTOR, MOST_FACTOR = -2.0, 4.0
MOST_CONTINUED = 20
PLACES = ALL, LAST, SUBJECT = ("all", "last", "subject")
"""Where an expert is steered: at every position, at the prompt's last one, or at the subject's."""


def writes(
    model: ModelSpec, facts: Sequence[Fact], *, layer: int, expert: int, corruption: str = "noise", **settings: Any
) -> DerivedRequest:
    """What an expert writes (`core.writes`). `settings`: of a trace (noise, draws, seed, replacement, special_tokens,
    object_tokens, first_token)."""
    if corruption == "replace":
        settings.pop("noise", None)  # no number depends on it
    return _request(
        WRITES, model, facts, (*CLEAN_SETTINGS, *CORRUPT_SETTINGS), layer=layer, expert=expert, corruption=corruption,
        **settings,
    )  # fmt: skip


def size(model: ModelSpec, facts: Sequence[Fact], *, layer: int, expert: int, **settings: Any) -> DerivedRequest:
    """How large an expert's output is beside its layer's others (`core.expert_size`). `settings`: special_tokens."""
    return _request(SIZE, model, facts, CLEAN_SETTINGS, layer=layer, expert=expert, **settings)


def neurons(model: ModelSpec, facts: Sequence[Fact], *, layer: int, expert: int, **settings: Any) -> DerivedRequest:
    """A gated expert's neurons (`core.neurons`). `settings`: special_tokens, object_tokens, first_token."""
    return _request(NEURONS, model, facts, CLEAN_SETTINGS, layer=layer, expert=expert, **settings)


def steering(
    model: ModelSpec,
    facts: Sequence[Fact],
    *,
    layer: int,
    expert: int,
    factor: float,
    where: str = ALL,
    continued: int = MOST_CONTINUED,
    **settings: Any,
) -> DerivedRequest:
    """The prompts of `facts` with an expert's contribution scaled by `factor` (`core.steering`).

    `where`: one of `PLACES`; `continued`: length of the greedy continuation in tokens. Raises `InputError` for values
    that are not allowed. `settings`: special_tokens, object_tokens, first_token.
    """
    factor, continued = _check_steering(factor, where, continued)
    return _request(
        STEERING, model, facts, CLEAN_SETTINGS, layer=layer, expert=expert, factor=factor, where=where,
        continued=continued, **settings,
    )  # fmt: skip


def read(request: DerivedRequest) -> dict[str, Any]:
    """A request's settings, checked: it may have been written by hand. Raises `InputError`."""
    settings = {"where": ALL, "continued": MOST_CONTINUED} if request.kind == STEERING else {}
    settings |= request.get()
    own = ("layer", "expert", *(("factor", "where", "continued") if request.kind == STEERING else ()))
    allowed = (*own, *CLEAN_SETTINGS, *(CORRUPT_SETTINGS if request.kind == WRITES else ()))
    for name in own:
        if name not in settings:
            raise InputError(f"{name} is missing.", f"Settings of {request.kind}: {', '.join(allowed)}.", field=name)
    for name in sorted(set(settings) - set(allowed)):
        raise InputError(
            f"{request.kind} has no setting {name}.", f"Its settings: {', '.join(allowed)}.", field=name
        )
    for name in ("layer", "expert"):
        if isinstance(settings[name], bool) or not isinstance(settings[name], int):
            raise InputError(f"{name} is {settings[name]!r}.", "Give a whole number.", field=name)
    if request.kind == STEERING:
        checked = _check_steering(*(settings[name] for name in ("factor", "where", "continued")))
        settings["factor"], settings["continued"] = checked
    return settings


def _check_steering(factor: Any, where: Any, continued: Any) -> tuple[float, int]:
    """(factor, length of the continuation) as numbers."""
    try:
        number = float(factor)
    except (TypeError, ValueError):
        number = float("nan")
    if not LEAST_FACTOR <= number <= MOST_FACTOR:
        raise InputError(
            f"The factor is {factor}.", f"Give a number from {LEAST_FACTOR:g} to {MOST_FACTOR:g}.", field="factor"
        )
    if where not in PLACES:
        raise InputError(f"where is {where!r}.", f"Choose one of: {', '.join(PLACES)}.", field="where")
    whole = isinstance(continued, int | float) and not isinstance(continued, bool) and float(continued).is_integer()
    if not whole or not 0 <= continued <= MOST_CONTINUED:
        raise InputError(
            f"The continuation is {continued} tokens long.", f"Give a whole number from 0 to {MOST_CONTINUED}.",
            field="continued",
        )  # fmt: skip
    return number, int(continued)


def trace_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Those of a derived request's settings that are fields of a `TraceRequest`."""
    kept = {name: settings[name] for name in (*CLEAN_SETTINGS, *CORRUPT_SETTINGS) if name in settings}
    if "replacement" in kept:
        kept["replacement"] = tuple(kept["replacement"])
    return kept


def _request(
    kind: str, model: ModelSpec, facts: Sequence[Fact], allowed: Sequence[str], **settings: Any
) -> DerivedRequest:
    kept = {name: value for name, value in settings.items() if name not in (*CLEAN_SETTINGS, *CORRUPT_SETTINGS)}
    kept |= {name: settings[name] for name in allowed if name in settings}
    return DerivedRequest.of(kind, model, facts=tuple(facts), **kept)
