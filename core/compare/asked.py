"""What each of two questions asks beside its fact, in words: before there is an answer, and where the answers are one.

Strings only; knows requests, no results.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..requests import TraceRequest


@dataclass(frozen=True)
class Setting:
    """A setting that is not the same on both sides, in words."""

    name: str
    a: str
    b: str


def apart(a: TraceRequest, b: TraceRequest) -> list[Setting]:
    """Every setting that is asked for differently, whether or not it comes to the same (dtype auto may be float32)."""
    rows = [Setting(name, told(a), told(b)) for name, told in _ASKED]
    return [row for row in rows if row.a != row.b]


def asked(request: TraceRequest, other: TraceRequest) -> list[tuple[str, bool]]:
    """(a few words, whether the other side asks for something else) per setting: the model, the corruption, and what is
    not as by default or not as on the other side."""
    default = TraceRequest(fact=request.fact)
    found = []
    for name, told in _ASKED:
        value, differs = told(request), told(request) != told(other)
        if name in _ALWAYS:
            found.append((value, differs))
        elif differs or value != told(default):
            found.append((f"{name} {value}", differs))
    return found


def _corruption(request: TraceRequest) -> str:
    if request.corruption == "noise":
        return f"noise {request.noise:g}"
    if request.replacement:
        return f"subject replaced by {', '.join(request.replacement)}"
    return "subject replaced by others"


_ALWAYS = ("model", "corruption")
_ASKED = (
    ("model", lambda q: q.model.name),
    ("revision", lambda q: q.model.revision or "by default"),
    ("dtype", lambda q: q.model.dtype),
    ("device", lambda q: q.model.device),
    ("quantisation", lambda q: q.model.quantisation),
    ("placement", lambda q: q.model.placement),
    ("corruption", _corruption),
    ("draws", lambda q: str(q.draws)),
    ("seed", lambda q: str(q.seed)),
    ("special tokens", lambda q: q.special_tokens),
    ("object tokens", lambda q: q.object_tokens),
    ("objects of several tokens:", lambda q: "the first token" if q.first_token else "not taken"),
)
