"""A fact while it is being typed: its tokens, the subject's marked, the object tokens named, problems as values.

The page shows this before anything is run. Knows tokenizers only through `core.prompts`, and no models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .errors import InputError
from .prompts import (
    ObjectToken,
    PreparedFact,
    check_distinct,
    check_length,
    check_objects,
    encode,
    object_token,
    piece,
    prepare,
    subject_positions,
    subject_span,
)
from .requests import Fact


@dataclass(frozen=True)
class LiveToken:
    """One token of a typed prompt: `special` was added by the tokenizer, `subject` overlaps the subject."""

    pos: int
    token_id: int
    token: str
    subject: bool
    special: bool


@dataclass(frozen=True)
class LiveFact:
    """The tokenisation of a fact that may still be incomplete. What could not be had is None or empty, and
    `problems` says why; `prepared` is there exactly when there are no problems."""

    tokens: tuple[LiveToken, ...]
    true: ObjectToken | None
    foil: ObjectToken | None
    problems: tuple[InputError, ...]
    prepared: PreparedFact | None


def live(
    tokenizer: Any,
    fact: Fact,
    *,
    special_tokens: str = "auto",
    object_tokens: str = "space",
    first_token: bool = False,
    max_length: int | None = None,
) -> LiveFact:
    """The tokenisation of a fact while it is being typed: as much as can be had, problems as values."""
    problems: list[InputError] = []

    def attempt(call, *args, **options):
        try:
            return call(*args, **options)
        except InputError as error:
            # the same cause (say, a tokenizer without offsets) is met at several steps: say it once
            if str(error) not in {str(p) for p in problems}:
                problems.append(error)
            return None

    span = attempt(subject_span, fact)
    met = len(problems)
    attempt(check_objects, fact)
    objects_wrong = len(problems) > met
    ids, spans, special, tokens, subject = (), (), (), (), ()
    if fact.text.strip():
        ids, spans, special = attempt(encode, tokenizer, fact.text, special_tokens=special_tokens) or ((), (), ())
        tokens = tuple(piece(tokenizer, i) for i in ids)
        attempt(check_length, len(ids), max_length)
    if span and ids:
        subject = attempt(subject_positions, fact.text, tokens, spans, *span) or ()
    options = {"special_tokens": special_tokens, "object_tokens": object_tokens, "first_token": first_token}
    objects: dict[str, ObjectToken | None] = {"true": None, "foil": None}
    for role, value in (("true", fact.true), ("foil", fact.foil)):
        if ids and value and value.strip() and not (role == "foil" and fact.foil_auto):
            objects[role] = attempt(object_token, tokenizer, fact.text, value, role=role, **options)
    if objects["true"] and objects["foil"] and not objects_wrong:  # equal objects begin alike, too
        attempt(check_distinct, fact, objects["true"], objects["foil"])
    prepared = None
    if not problems:
        prepared = attempt(prepare, tokenizer, fact, max_length=max_length, **options)
    shown = tuple(
        LiveToken(pos=p, token_id=i, token=t, subject=p in subject, special=s)
        for p, (i, t, s) in enumerate(zip(ids, tokens, special, strict=True))
    )
    return LiveFact(shown, objects["true"], objects["foil"], tuple(problems), prepared)
