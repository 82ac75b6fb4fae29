"""Which facts a question about many facts is asked of: a list, relations of it, how many, and the seed that draws them.

A `FactSet` is a short description that fits into a link; `choose` turns it into facts. Knows neither pages nor the
store: it is given the list.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

from .errors import InputError
from .facts import relations as count_relations
from .links import MAX_TEXT, Reader
from .requests import SEPARATOR, Fact

BUNDLED = "bundled"
"""The source that is no stored list."""
ALL = "all"
"""How a link says that every fact is meant."""
MOST = 10**9
DEFAULT_N = 64


@dataclass(frozen=True)
class FactSet:
    """Some facts of a list. `source`: `bundled`, or the name of a stored list; `relations`: of these only, in
    alphabetical order (none: of all); `n`: at most so many (None: all of them), drawn with `seed`."""

    source: str = BUNDLED
    relations: tuple[str, ...] = ()
    n: int | None = DEFAULT_N
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "relations", tuple(sorted({str(name) for name in self.relations})))
        if not self.source.strip():
            raise InputError("No list of facts was named.", f"Give `{BUNDLED}` or a list's name.", field="facts")
        for name, value, low, high in (("n", self.n, 1, MOST), ("seed", self.seed, 0, 2**62)):
            if value is None and name == "n":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise InputError(f"{name} is {value!r}.", f"Give a whole number from {low} to {high}.", field=name)

    @property
    def stored(self) -> str:
        """The name of the stored list; empty for the bundled one."""
        return "" if self.source == BUNDLED else self.source

    def to_query(self, default: FactSet | None = None) -> dict[str, str]:
        """The parameters of a link: `facts`, `relations`, `n`, `facts_seed`. What is as in `default` is left out."""
        default = default or FactSet()
        out = {}
        if self.source != default.source:
            out["facts"] = self.source
        if self.relations != default.relations:
            out["relations"] = SEPARATOR.join(_escaped(name) for name in self.relations)
        if self.n != default.n:
            out["n"] = ALL if self.n is None else str(self.n)
        if self.seed != default.seed:
            out["facts_seed"] = str(self.seed)
        return out

    @classmethod
    def from_query(cls, read: Reader, default: FactSet | None = None) -> FactSet:
        """The inverse of `to_query`. Whatever cannot be is replaced by the default and named in `read.problems`."""
        default = default or FactSet()
        listed = read.text("relations", SEPARATOR.join(_escaped(name) for name in default.relations))
        relations = tuple(_plain(name) for name in listed.split(SEPARATOR) if name.strip())
        if len(SEPARATOR.join(_escaped(name) for name in relations)) > MAX_TEXT:
            read.odd("relations", None, f"at most {MAX_TEXT} characters long as a link has them")
            relations = default.relations
        every = read.text("n", "") == ALL
        return cls(
            source=read.text("facts", default.source).strip() or default.source,
            relations=relations,
            n=None if every else read.whole("n", default.n, low=1, high=MOST),
            seed=read.whole("facts_seed", default.seed, low=0, high=2**62),
        )


def choose(fact_set: FactSet, known: Iterable[Fact]) -> tuple[Fact, ...]:
    """The facts that `fact_set` means, of those in its list: `random.Random(seed)` shuffles those of its relations,
    the first `n` stay, in the order of the list."""
    wanted = set(fact_set.relations)
    of_relation = [fact for fact in known if not wanted or fact.relation in wanted]
    if fact_set.n is None or fact_set.n >= len(of_relation):
        return tuple(of_relation)
    places = list(range(len(of_relation)))
    random.Random(fact_set.seed).shuffle(places)
    return tuple(of_relation[place] for place in sorted(places[: fact_set.n]))


def sentence(fact_set: FactSet, known: Iterable[Fact]) -> str:
    """How many facts that is, of how many, in words."""
    known = list(known)
    chosen = choose(fact_set, known)
    counts = count_relations(known)
    missing = [name for name in fact_set.relations if name not in counts]
    pool = sum(counts.get(name, 0) for name in fact_set.relations) if fact_set.relations else len(known)
    n_relations = len({fact.relation for fact in chosen if fact.relation})
    of = f" of {_count(n_relations, 'relation')}" if n_relations else ""
    if len(chosen) == pool:
        said = f"{'All ' if pool > 1 else ''}{_count(pool, 'fact')}{of}."
    else:
        said = f"{len(chosen):,} of {_count(pool, 'fact')}{of}, drawn with seed {fact_set.seed}."
    if missing:
        said += f" The list has no relation {', '.join(missing)}."
    return said


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _escaped(name: str) -> str:
    """A relation's name without the separator."""
    return name.replace("%", "%25").replace(SEPARATOR, "%7C")


def _plain(name: str) -> str:
    return name.replace("%7C", SEPARATOR).replace("%25", "%")
