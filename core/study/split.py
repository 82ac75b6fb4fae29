"""Which facts select and which estimate: the two halves, and the folds by relation. Plain lists, nothing measured."""

from __future__ import annotations

import random
from collections.abc import Sequence

from .rows import DISCOVERY, VALIDATION
from .values import subject_key


def halves(subjects: Sequence[str | None], *, split_seed: int, by_subject: bool) -> list[str]:
    """The half of every kept fact, in the order of `subjects` (the order in which the facts were kept).

    The facts are shuffled with `random.Random(split_seed)`; the first half is discovery (of an odd number: the
    smaller half), the rest validation. `by_subject`: in the shuffled order, each subject goes with all its facts to
    discovery if they all fit into what is left of that half, else to validation; where no subject repeats this is the
    plain split.
    """
    order = list(range(len(subjects)))
    random.Random(split_seed).shuffle(order)
    groups: dict[object, list[int]] = {}
    for fact in order:
        key = subject_key(subjects[fact]) if by_subject else fact
        groups.setdefault(key, []).append(fact)
    room = len(order) // 2
    out = [VALIDATION] * len(order)
    for members in groups.values():
        if len(members) <= room:
            room -= len(members)
            for fact in members:
                out[fact] = DISCOVERY
    return out


def relation_folds(relations: Sequence[str | None], *, folds: int) -> list[list[str]]:
    """The relations of each fold: sorted, shuffled with `random.Random(0)`, dealt round robin. Empty folds are left
    out, so fewer relations than `folds` give fewer folds. Facts without a relation count as one relation, ""."""
    names = sorted({relation or "" for relation in relations})
    random.Random(0).shuffle(names)
    return [names[i::folds] for i in range(folds) if names[i::folds]]
