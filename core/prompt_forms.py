"""The same facts asked otherwise: paraphrased, or with the fact stated before the question.

Facts in, facts out. Subject, objects, case_id and relation stay, so that a fact is found again among its other forms.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence

from .errors import ExpertScopeError, InputError
from .fact_files import rows_of
from .facts import BUNDLED, bundled
from .prompts import subject_span
from .requests import Fact

DIRECT, PARAPHRASED, CONTEXT = FORMS = ("direct", "paraphrased", "context")
"""`direct`: as the list has it; `paraphrased`: the list's own paraphrase (the bundled facts have them); `context`: the
fact stated in a sentence before the prompt, as “The capital of France is Paris. The capital of France is”."""


def in_form(facts: Iterable[Fact], form: str) -> tuple[Fact, ...]:
    """The facts in one of `FORMS`; those that cannot be put into it are left out."""
    if form == DIRECT:
        return tuple(facts)
    made = (paraphrased(fact) if form == PARAPHRASED else in_context(fact) for fact in facts)
    return tuple(fact for fact in made if fact is not None)


def in_context(fact: Fact) -> Fact | None:
    """The fact with itself stated before: context-mediated recall. The subject is that of the question; None where the
    subject is not found in the prompt."""
    try:
        start, end = subject_span(fact)
    except InputError:
        return None
    text = fact.text
    stated = f"{text.rstrip()} {fact.true.strip()}."
    return dataclasses.replace(fact, prompt=f"{stated} {text[:start]}{{}}{text[end:]}", occurrence=None)


def paraphrased(fact: Fact) -> Fact | None:
    """The fact in the words of the first of its paraphrases that has the subject in it; None where it has none.

    Only bundled facts have paraphrases (demo/facts.jsonl, as in CounterFact).
    """
    known = _paraphrases().get(fact.case_id)
    if known is None or known[0] != fact:  # a fact of another list, with a case_id that a bundled one has too
        return None
    for text in known[1]:
        if text.count(fact.subject) and "{}" not in text:
            first = None if text.count(fact.subject) == 1 else 1
            return dataclasses.replace(fact, prompt=text, occurrence=first)
    return None


@functools.lru_cache(maxsize=1)
def _paraphrases() -> dict[int, tuple[Fact, Sequence[str]]]:
    """The bundled facts by case_id, each with its paraphrases; none where the file is missing."""
    try:
        texts = {row.get("case_id"): row.get("paraphrase_prompts") for row in rows_of(BUNDLED).rows}
        known = bundled()
    except ExpertScopeError:
        return {}
    return {fact.case_id: (fact, texts.get(fact.case_id) or ()) for fact in known}
