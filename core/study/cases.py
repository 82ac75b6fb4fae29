"""The paper's own case ids with their split: sets of facts to choose where CounterFact itself is loaded.

The ids are those of arXiv 2606.03780, Table 8 (paper_case_ids.json). Knows facts, no model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..errors import InputError
from ..requests import Fact

SCAN = "scan"
CASE_SETS = {"paper-qwen3": "Qwen3-30B-A3B-Base", "paper-mixtral": "Mixtral-8x7B-v0.1"}
"""Name of a case set → the model whose facts they are, as the file calls it."""

_FILE = Path(__file__).parent / "paper_case_ids.json"
_RELATION = re.compile(r"P[0-9]+")
_SHOWN = 5


@dataclass(frozen=True)
class CaseSet:
    """Case ids of both halves, in the paper's order, and where they were published."""

    discovery: tuple[int, ...]
    validation: tuple[int, ...]
    source: str

    @property
    def case_ids(self) -> tuple[int, ...]:
        """Discovery first, then validation."""
        return self.discovery + self.validation


@lru_cache(maxsize=4)
def case_set(name: str) -> CaseSet:
    """One of `CASE_SETS`. Raises `InputError` for another name."""
    if name not in CASE_SETS:
        raise InputError(
            f"There is no case set {name!r}.", f"Choose one of: {', '.join((SCAN, *CASE_SETS))}.", field="cases"
        )
    data = json.loads(_FILE.read_text("utf-8"))
    ids = data[CASE_SETS[name]]
    return CaseSet(tuple(ids["discovery"]), tuple(ids["validation"]), data["source"])


def choose(facts: Sequence[Fact], name: str) -> list[Fact]:
    """The facts of a case set, in its order. Raises `InputError` where `facts` is not CounterFact."""
    by_id = {fact.case_id: fact for fact in facts}
    wanted = case_set(name).case_ids
    missing = [case_id for case_id in wanted if case_id not in by_id]
    if missing:
        shown = ", ".join(map(str, missing[:_SHOWN])) + (", …" if len(missing) > _SHOWN else "")
        raise InputError(
            f"The case set {name} needs {len(wanted)} facts of CounterFact; {len(missing)} of its case ids are not "
            f"among the {len(by_id)} facts given: {shown}.",
            "Give the whole CounterFact file (--facts), or choose --cases scan.",
            field="cases",
        )
    chosen = [by_id[case_id] for case_id in wanted]
    others = [fact for fact in chosen if fact.relation and not _RELATION.fullmatch(fact.relation)]
    if others:
        raise InputError(
            f"The case set {name} is for CounterFact, whose relations are such as P103; the fact with case_id "
            f"{others[0].case_id} has the relation {others[0].relation!r}.",
            "Give the CounterFact file (--facts), or choose --cases scan.",
            field="cases",
        )
    return chosen
