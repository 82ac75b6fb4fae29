"""The lists of facts that a command can name: the bundled one, a file, a list of the Library.

Knows the store's lists by their names; no arguments and no model.
"""

from __future__ import annotations

from dataclasses import replace

from .errors import InputError
from .fact_sets import BUNDLED
from .requests import AUTO_FOIL, Fact

LIST = "list:"
"""What the name of a list of the Library begins with, where a command takes a file of facts."""
FACTS_HELP = f"CounterFact .json, .jsonl, .csv, .parquet; or {LIST}NAME, a list of the Library page"
_SHOWN = 20


def facts_of(source: str, *, foil: str = "file") -> list[Fact]:
    """What `--facts` names: `bundled`, a file, or `list:NAME`, a list that was made on the Library page.

    `foil`: as `core.facts.read` takes it. Raises `InputError` where there is no such file or list.
    """
    from . import facts as lists

    if source != BUNDLED and not source.startswith(LIST):
        return lists.read(source, foil=foil)
    found = lists.bundled() if source == BUNDLED else _of_library(source.removeprefix(LIST))
    return [replace(fact, foil=None, foil_auto=True) for fact in found] if foil == AUTO_FOIL else found


def _of_library(name: str) -> list[Fact]:
    from cache.fact_lists import FactLists

    from .fact_lists import FactListDesk

    desk = FactListDesk(FactLists())
    if desk.find(name) is None:
        there = ", ".join(desk.names()[:_SHOWN]) or "none"
        raise InputError(f"The Library has no list {name!r}.", f"It has: {there}.", field="facts")
    return list(desk.get(name))
