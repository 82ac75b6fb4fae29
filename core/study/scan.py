"""The funnel: facts in scan order, which of them are kept, and how many fell at which filter.

Knows facts, settings and measured contrasts; no model. Keeping is decided from the stored contrasts, so that it
comes out the same whenever it is asked.
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from ..errors import InputError
from ..named_rows import named_rows
from ..requests import Fact
from . import cases
from .settings import StudySettings

UNUSABLE, OBJECTS, MEASURED = "unusable", "objects", "measured"
"""What became of a scanned fact: it cannot be traced at all (no foil, no subject in the prompt, ...); its objects are
not two different single tokens; or its contrasts were measured."""

SCAN_COLUMNS = {
    "place": "int64", "outcome": "object", "reason": "object", "clean_contrast": "float64", "drop": "float64",
}  # fmt: skip
"""Columns of the scan's table: `place` in scan order from 0; `reason` why it was not measured, else empty."""

FUNNEL = {
    "records": "facts in the list",
    "scanned": "scanned",
    "unusable": "cannot be traced (no foil, subject not in the prompt, prompt too long, ...)",
    "objects": "objects not two different single tokens",
    "clean_contrast": "clean contrast below the minimum",
    "drop": "drop below the minimum",
    "kept": "kept",
}
"""Counts of the funnel, in their order, and what they mean. scanned = unusable + objects + clean_contrast + drop +
kept."""


@dataclass(frozen=True)
class Funnel:
    """`counts`: see `FUNNEL`; `kept`: places in scan order of the kept facts; `enough`: as many as were wanted."""

    counts: dict[str, int]
    kept: tuple[int, ...]
    enough: bool


def scan_order(facts: Sequence[Fact], settings: StudySettings) -> list[Fact]:
    """The facts as they are scanned: shuffled with `random.Random(scan_seed)`, or the case set in its own order.

    Raises `InputError` where there are none, or the case set is not among them.
    """
    if settings.cases != cases.SCAN:
        return cases.choose(facts, settings.cases)
    if not facts:
        raise InputError("The list of facts is empty.", "Give a file with facts.", field="facts")
    facts = list(facts)
    random.Random(settings.scan_seed).shuffle(facts)
    return facts


def funnel(scanned: pd.DataFrame, settings: StudySettings, *, records: int) -> Funnel:
    """Apply the filters to the scanned facts (`SCAN_COLUMNS`), in scan order, until enough are kept.

    A case set was filtered by the paper: of it everything that could be measured is kept.
    """
    fixed = settings.cases != cases.SCAN
    counts = dict.fromkeys(FUNNEL, 0) | {"records": records}
    kept: list[int] = []
    wanted = records if fixed else settings.n
    for row in named_rows(scanned.sort_values("place")):
        if len(kept) == wanted:
            break
        counts["scanned"] += 1
        if row.outcome != MEASURED:
            counts[row.outcome] += 1
        elif not fixed and not row.clean_contrast >= settings.min_clean_contrast:
            counts["clean_contrast"] += 1
        elif not fixed and not row.drop >= settings.min_drop:
            counts["drop"] += 1
        else:
            kept.append(int(row.place))
    counts["kept"] = len(kept)
    return Funnel(counts, tuple(kept), len(kept) == wanted)


def splits(facts: Sequence[Fact], settings: StudySettings) -> list[str]:
    """The half of every kept fact, in the order in which they were kept."""
    from .rows import DISCOVERY, VALIDATION
    from .split import halves

    if settings.cases == cases.SCAN:
        subjects = [fact.subject for fact in facts]
        return halves(subjects, split_seed=settings.split_seed, by_subject=settings.by_subject)
    discovery = set(cases.case_set(settings.cases).discovery)
    return [DISCOVERY if fact.case_id in discovery else VALIDATION for fact in facts]


def facts_to_bytes(facts: Iterable[Fact]) -> bytes:
    """Facts as Parquet, to be stored with the study."""
    names = list(_FACT_TYPES)
    frame = pd.DataFrame([[getattr(fact, name) for name in names] for fact in facts], columns=names)
    return to_parquet(frame.astype(_FACT_TYPES))


def facts_from_bytes(data: bytes) -> list[Fact]:
    """The inverse of `facts_to_bytes`."""
    frame = pd.read_parquet(io.BytesIO(data))[list(_FACT_TYPES)].astype(object)
    records = frame.where(frame.notna(), None).to_dict("records")
    return [Fact(**record) for record in records]


def to_parquet(frame: pd.DataFrame) -> bytes:
    """A frame as Parquet bytes."""
    out = io.BytesIO()
    frame.to_parquet(out, index=False, compression="zstd")
    return out.getvalue()


_FACT_TYPES = {
    "prompt": "object", "subject": "object", "true": "object", "foil": "object", "case_id": "Int64",
    "relation": "object", "occurrence": "Int64",
}  # fmt: skip
