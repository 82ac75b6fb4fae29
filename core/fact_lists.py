"""Lists of facts that a person keeps: facts in, facts out, over the named lists of the store (`cache.fact_lists`).

Knows what a list may hold and how it is written down; no SQL, no pages. Loads no torch.
"""

from __future__ import annotations

import dataclasses
import json
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import InputError, StoreError
from .fact_sets import BUNDLED
from .facts import MAX_CASE_ID
from .requests import Fact
from .tables import table_bytes

MOST_FACTS = 200_000
"""In one list."""
COLUMNS = (
    "case_id", "relation_id", "prompt", "subject", "target_true", "target_new", "occurrence", "foil_auto",
)  # fmt: skip
"""Of a file of facts."""
_KEPT = 4  # lists whose facts are kept at hand


@dataclass(frozen=True)
class FactList:
    """One list without its facts. `note`: where they come from; times in microseconds since 1970."""

    name: str
    n: int
    note: str
    bytes: int
    created: int
    updated: int


class FactListDesk:
    """The lists of one store. Methods may be called from any thread; what they raise for a person is an
    ExpertScopeError."""

    def __init__(self, book: Any, *, store_error: str = "") -> None:
        """`book`: a `cache.fact_lists.FactLists`, or None (then `store_error` says why)."""
        self._book, self._store_error = book, store_error
        self._lock = threading.Lock()
        self._facts: OrderedDict[tuple[int, int], tuple[Fact, ...]] = OrderedDict()

    def all(self) -> list[FactList]:
        """Every list, in alphabetical order; none where there is no store."""
        return [] if self._book is None else [_described(record) for record in self._book.all()]

    def names(self) -> list[str]:
        """Their names."""
        return [found.name for found in self.all()]

    def find(self, name: str) -> FactList | None:
        """One list, or None where there is none of that name."""
        record = None if self._book is None else self._book.find(name)
        return None if record is None else _described(record)

    def get(self, name: str) -> tuple[Fact, ...]:
        """The facts of a list, in its order. Raises `InputError` where there is none of that name."""
        record = self._stored().find(name)
        key = None if record is None else (record.id, record.updated)
        with self._lock:
            if key in self._facts:
                self._facts.move_to_end(key)
                return self._facts[key]
        record, payload = self._stored().get(name)
        facts = tuple(from_bytes(payload))
        with self._lock:
            self._facts[record.id, record.updated] = facts
            while len(self._facts) > _KEPT:
                self._facts.popitem(last=False)
        return facts

    def put(self, name: str, facts: Iterable[Fact], *, note: str = "", replace: bool = False) -> str:
        """Keep facts as a list under a new name, or (`replace`) in place of the list of that name; the name.

        Raises `InputError` for a name that is none or taken, and for facts that cannot be one list.
        """
        facts = check(facts)
        if name.strip().casefold() == BUNDLED:
            raise InputError(f"The name {BUNDLED!r} is that of the bundled list.", "Choose another.", field="name")
        return self._stored().put(name, to_bytes(facts), n=len(facts), note=note, replace=replace).name

    def add(self, name: str, facts: Iterable[Fact]) -> tuple[Fact, ...]:
        """Put facts at the end of a list; they as they are in it: one whose case_id is taken gets the next free one.

        A fact that is in the list already, whatever its case_id, is not put there again.
        """
        new = list(facts)
        added: list[Fact] = []

        def work(payload: bytes) -> tuple[bytes, int]:
            there = from_bytes(payload)
            added[:] = _numbered(there, new)
            together = check([*there, *added])
            return to_bytes(together), len(together)

        self._stored().change(name, work)
        return tuple(added)

    def edit(self, name: str, case_id: int, fact: Fact) -> None:
        """Put `fact` in the place of the one with `case_id`, under the same case_id."""

        def work(payload: bytes) -> tuple[bytes, int]:
            there = from_bytes(payload)
            if case_id not in {old.case_id for old in there}:
                raise _no_fact(name, case_id)
            new = dataclasses.replace(fact, case_id=case_id)
            together = check([new if old.case_id == case_id else old for old in there])
            return to_bytes(together), len(together)

        self._stored().change(name, work)

    def remove(self, name: str, case_ids: Iterable[int]) -> int:
        """Take facts out of a list; how many that were."""
        gone = set(case_ids)
        removed = [0]

        def work(payload: bytes) -> tuple[bytes, int]:
            there = from_bytes(payload)
            left = [fact for fact in there if fact.case_id not in gone]
            removed[0] = len(there) - len(left)
            return to_bytes(left), len(left)

        self._stored().change(name, work)
        return removed[0]

    def rename(self, name: str, new: str) -> str:
        """Give a list another name; that name."""
        if new.strip().casefold() == BUNDLED:
            raise InputError(f"The name {BUNDLED!r} is that of the bundled list.", "Choose another.", field="name")
        self._stored().rename(name, new)
        return new.strip()

    def delete(self, name: str) -> None:
        """Remove a list."""
        self._stored().delete(name)

    def _stored(self) -> Any:
        if self._book is None:
            raise StoreError(f"There is no store to keep lists of facts in. {self._store_error}".strip())
        return self._book


def check(facts: Iterable[Fact]) -> list[Fact]:
    """The facts, if they can be one list: none without prompt, subject and true object, no case_id twice."""
    facts = list(facts)
    if len(facts) > MOST_FACTS:
        raise InputError(
            f"That are {len(facts):,} facts.", f"A list holds at most {MOST_FACTS:,}: make several.", field="facts"
        )
    seen: set[int] = set()
    for place, fact in enumerate(facts):
        for name in ("prompt", "subject", "true"):
            if not getattr(fact, name).strip():
                what = "true object" if name == "true" else name
                raise InputError(f"Fact {place} of the list has no {what}.", "Give it one.", field=name)
        if fact.case_id in seen:
            raise InputError(
                f"Two facts of the list have the case_id {fact.case_id}.", "Give each its own.", field="facts"
            )
        seen.add(fact.case_id)
    return facts


def next_case_id(facts: Iterable[Fact], *, above: int = -1) -> int:
    """The first case_id that is free behind those of `facts` and behind `above`."""
    number = max((fact.case_id for fact in facts), default=-1)
    return max(number, above) + 1


def to_bytes(facts: Sequence[Fact]) -> bytes:
    """Facts as they are stored: compressed JSON."""
    records = [{name: value for name, value in vars(fact).items() if value is not None} for fact in facts]
    return zlib.compress(json.dumps(records).encode("ascii"), 6)


def from_bytes(payload: bytes) -> list[Fact]:
    """The inverse of `to_bytes`."""
    return [Fact(**record) for record in json.loads(zlib.decompress(payload))]


def to_file(facts: Sequence[Fact], suffix: str) -> bytes:
    """Facts as the content of a file that `core.facts.read` reads back as they are: `.jsonl`, `.csv` or `.parquet`."""
    records = [
        {
            "case_id": fact.case_id, "relation_id": fact.relation, "prompt": fact.prompt, "subject": fact.subject,
            "target_true": fact.true, "target_new": fact.foil, "occurrence": fact.occurrence,
            "foil_auto": fact.foil_auto or None,
        }
        for fact in facts
    ]  # fmt: skip
    if suffix == ".jsonl":
        lines = (json.dumps({k: v for k, v in r.items() if v is not None}, ensure_ascii=False) for r in records)
        return "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace")
    import pandas as pd

    types = {"case_id": "Int64", "occurrence": "Int64", "foil_auto": "boolean"}
    table = pd.DataFrame(records, columns=list(COLUMNS)).astype({name: types.get(name, "object") for name in COLUMNS})
    return table_bytes(table, suffix)


def _numbered(there: Sequence[Fact], new: Sequence[Fact]) -> list[Fact]:
    """Those of `new` that are not `there`, with case_ids of their own."""
    seen = {dataclasses.replace(fact, case_id=0) for fact in there}
    fresh: list[Fact] = []
    for fact in new:
        bare = dataclasses.replace(fact, case_id=0)
        if bare not in seen:
            fresh.append(fact)
            seen.add(bare)
    ids = {fact.case_id for fact in there}
    free = next_case_id([*there, *fresh])
    for place, fact in enumerate(fresh):
        if fact.case_id in ids:
            if free > MAX_CASE_ID:
                raise InputError("There is no free case_id left in the list.", "Make a new list.", field="facts")
            fresh[place] = dataclasses.replace(fact, case_id=free)
            free += 1
        ids.add(fresh[place].case_id)
    return fresh


def _described(record: Any) -> FactList:
    return FactList(record.name, record.n, record.note, record.bytes, record.created, record.updated)


def _no_fact(name: str, case_id: int) -> InputError:
    return InputError(f"The list {name!r} has no fact with case_id {case_id}.", "", field="fact")
