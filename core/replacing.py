"""Symmetric token replacement: another subject in place of the fact's own, at the same positions of the prompt.

Chosen from a list of facts, or typed. A replacement must change the subject's tokens and nothing else. Knows
tokenizers and lists, no model, and never imports torch.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from .errors import InputError
from .prompts import PreparedFact, encode, piece, subject_positions, subject_span
from .requests import Fact, TraceRequest


def with_replacements(
    tokenizer: Any, request: TraceRequest, prepared: PreparedFact, pool: Iterable[Fact]
) -> PreparedFact:
    """`prepared` with the replaced token ids of every draw: of the subjects that the request names, or chosen.

    Raises `InputError` naming what differs, or how many subjects there are to choose from.
    """
    if request.replacement:
        found = [(name, replaced_ids(tokenizer, request, prepared, name)) for name in request.replacement]
    else:
        found = choose(tokenizer, request, prepared, pool)
    names, ids = zip(*found, strict=True)
    return dataclasses.replace(prepared, replacements=names, replaced_ids=ids)


def choose(
    tokenizer: Any, request: TraceRequest, prepared: PreparedFact, pool: Iterable[Fact]
) -> list[tuple[str, tuple[int, ...]]]:
    """As many other subjects of the list as there are draws, each with the replaced token ids of the prompt.

    The rule: subjects of the fact's own relation come before all others; within each of the two groups the sorted
    subjects are shuffled by `random.Random(seed + case_id)`; the first that fit are taken. Subjects that the list gives
    the same true object in the fact's relation are left out: with them nothing would be corrupted.
    """
    fits: list[tuple[str, tuple[int, ...]]] = []
    for name in _in_order(request.fact, list(pool), request.seed + request.fact.case_id):
        try:
            fits.append((name, replaced_ids(tokenizer, request, prepared, name)))
        except InputError:
            continue
        if len(fits) == request.draws:
            return fits
    tokens, own = _count(len(prepared.subject_positions)), request.fact.subject.strip()
    if not fits:
        raise InputError(
            f"No other subject of the fact list takes {tokens} at the same places of this prompt, as {own!r} does.",
            "Name one yourself (--replacement), or choose noise as the corruption.",
            field="replacement",
        )
    raise InputError(
        f"Only {len(fits)} other subject{'s' if len(fits) > 1 else ''} of the fact list "
        f"take{'s' if len(fits) == 1 else ''} {tokens} at the same places of this prompt, but {request.draws} draws "
        "are asked for.",
        f"Ask for at most {len(fits)} draw{'s' if len(fits) > 1 else ''}.",
        field="draws",
    )


def _in_order(fact: Fact, pool: Sequence[Fact], seed: int) -> Iterator[str]:
    """The list's other subjects in the order in which they are tried."""
    true, relation = fact.true.strip().casefold(), fact.relation
    same_answer = {
        f.subject.strip().casefold() for f in pool if f.relation == relation and f.true.strip().casefold() == true
    }
    taken = {fact.subject.strip().casefold()} | (same_answer if relation is not None else set())
    own = {f.subject.strip() for f in pool if relation is not None and f.relation == relation}
    for group in (own, {f.subject.strip() for f in pool} - own):
        names = sorted(name for name in group if name and name.casefold() not in taken)
        random.Random(seed).shuffle(names)
        yield from names


def replaced_ids(tokenizer: Any, request: TraceRequest, prepared: PreparedFact, name: str) -> tuple[int, ...]:
    """Token ids of the prompt with `name` in the subject's place.

    Raises `InputError` naming what differs, unless the subject's tokens and no others change.
    """
    fact, name = request.fact, name.strip()
    start, end = subject_span(fact)
    text = fact.text[:start] + name + fact.text[end:]
    ids, spans, _ = encode(tokenizer, text, special_tokens=request.special_tokens)
    tokens = tuple(piece(tokenizer, i) for i in ids)
    at = subject_positions(text, tokens, spans, start, start + len(name))
    old_at, old = prepared.subject_positions, prepared.input_ids
    own = fact.subject.strip()
    if len(at) != len(old_at):
        raise _misfit(
            f"{name!r} takes {_count(len(at))} in this prompt ({_shown(tokens, at)}), "
            f"{own!r} takes {len(old_at)} ({_shown(prepared.tokens, old_at)})",
            f"Choose a subject of {_count(len(old_at))}.",
        )
    for pos in range(max(len(ids), len(old))):
        if pos in old_at and pos in at:
            continue
        here = [(i[pos] if pos < len(i) else None) for i in (old, ids)]
        if here[0] != here[1] or (pos in old_at) != (pos in at):
            was, now = (repr(t[pos]) if pos < len(t) else "nothing" for t in (prepared.tokens, tokens))
            raise _misfit(
                f"With {name!r} in place of {own!r} the token at position {pos} changes as well: {was} becomes {now}",
                "Choose a subject that the tokenizer splits at the same places.",
            )
    if ids == old:
        raise _misfit(f"{name!r} has the same tokens as {own!r}", "Choose another subject.")
    return ids


def _misfit(what: str, next_step: str) -> InputError:
    return InputError(f"This replacement does not fit: {what}.", next_step, field="replacement")


def _count(n: int) -> str:
    return f"{n} token{'s' if n > 1 else ''}"


def _shown(tokens: Sequence[str], at: Sequence[int]) -> str:
    return " + ".join(repr(tokens[pos]) for pos in at)
