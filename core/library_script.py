"""How to get what the Library shows without it: facts in Python, stored traces and studies by their commands.

Strings only; nothing is run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from . import script
from .cli_lists import LIST
from .fact_sets import BUNDLED
from .library_link import LibraryView
from .script import Bundled, Script
from .stored import StoredTrace
from .study import explain
from .study.settings import StudySettings

MOST = 20
"""So many traces or studies stand in a script."""
MODELS = Script("python -m core models", "")
"""The models that are known by name."""


def of_facts(view: LibraryView) -> Script:
    """The facts that the view lists: those of its list that relation and search leave."""
    source = BUNDLED if view.source == BUNDLED else f"{LIST}{view.source}"
    lines = ["from core import facts", "from core.cli_lists import facts_of", "", f"known = facts_of({source!r})"]
    how = f"{view.search!r}, relation={view.relation!r}, limit=None, everywhere=True"
    lines += [f"found = facts.search(known, {how})", "for fact in found:", "    print(fact)"]
    return Script("", "\n".join(lines) + "\n")


def of_traces(traces: Sequence[StoredTrace], *, bundled: Bundled) -> Script:
    """The first `MOST` of these traces."""
    requests, chosen = [one.request for one in traces[:MOST]], [one.replacements for one in traces[:MOST]]
    if len(requests) == 1:
        return script.of_trace(requests[0], bundled=bundled, chosen=chosen[0])
    return script.of_traces(requests, bundled=bundled, chosen=chosen)


def of_studies(studies: Iterable[tuple[str, StudySettings]]) -> Script:
    """The first `MOST` of these (name, settings), each under a name that is not taken here."""
    commands = [explain.command(settings, explain.again(name)) for name, settings in list(studies)[:MOST]]
    return Script("\n".join(commands), "")
