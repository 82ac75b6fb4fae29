"""Facts of the few words that `tokenizers_for_tests` knows, and settings under which a random model keeps them."""

from __future__ import annotations

import random

from core.requests import Fact
from core.study.settings import StudySettings, preset

OBJECTS = ("Paris", "Rome", "Madrid", "Berlin", "London", "Polish", "French")
TEMPLATES = ("The capital of {} is", "The city of {} is", "The mother tongue of {} is")
SUBJECTS = ("France", "New York", "America", "Marie Curie")


def word_facts() -> list[Fact]:
    """Facts that the tokenizer of `checkpoints.build` knows; two of them cannot be used."""
    rng = random.Random(1)
    facts = []
    for i, (template, subject) in enumerate((t, s) for t in TEMPLATES for s in SUBJECTS):
        true, foil = rng.sample(OBJECTS, 2)
        facts.append(Fact(template, subject, true, foil, case_id=i, relation=f"relation {i // len(SUBJECTS)}"))
    facts.append(Fact(TEMPLATES[0], "Delhi", "Marie Curie", "Rome", case_id=50))  # an object of several tokens
    facts.append(Fact(TEMPLATES[0], "Delhi", "Paris", None, case_id=51))  # no foil
    return facts


def any_contrast(**changes: object) -> StudySettings:
    """Settings under which a random model's facts pass the filters."""
    return preset("demo", **{"n": 12, "min_clean_contrast": -1000, "min_drop": -1000, "draws": 2, **changes})
