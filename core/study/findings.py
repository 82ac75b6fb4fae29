"""A study with everything that it found, computed once: what the page, the report and the downloads show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pandas as pd

from ..requests import Fact
from .analysis import Analysis, analyse
from .summary import summarise
from .tables import tables


class Study(Protocol):
    """What is needed of a study that was read back from the store (`core.study.data.StudyData`)."""

    name: str
    settings: Any
    provenance: dict[str, Any]
    state: str
    funnel: Any
    kept: list[Fact]
    rows: pd.DataFrame


@dataclass(frozen=True)
class Findings:
    """`summary`: summary.json; `tables`: by the names of `core.study.tables.TITLES`; `state`: of the study, so that an
    unfinished one says so; `facts`: the kept ones by scan_index."""

    name: str
    state: str
    rows: pd.DataFrame
    analysis: Analysis
    summary: dict[str, Any]
    tables: dict[str, pd.DataFrame]
    provenance: dict[str, Any] = field(default_factory=dict)
    facts: Sequence[Fact] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """The settings as they were stored."""
        return self.summary["settings"]


def notes(provenance: Mapping[str, Any]) -> list[str]:
    """What has to be said of a study's numbers because of where they come from (`core.provenance`)."""
    said = provenance.get("notes")
    return [str(note) for note in said] if isinstance(said, list) else []


def of_study(study: Study) -> Findings:
    """The findings of a study as it is now, finished or not."""
    return find(
        study.rows,
        study.settings.to_dict(),
        study.funnel.counts,
        name=study.name,
        state=study.state,
        provenance=study.provenance,
        facts=study.kept,
    )


def find(
    rows: pd.DataFrame,
    settings: Mapping[str, Any],
    funnel: Mapping[str, Any],
    *,
    name: str,
    state: str = "done",
    provenance: Mapping[str, Any] | None = None,
    facts: Sequence[Fact] = (),
) -> Findings:
    """The findings of rows under settings. `facts`: the kept ones by scan_index, for their prompts and objects."""
    analysis = analyse(rows, settings)
    summary = summarise(rows, settings, funnel, analysis=analysis)
    summary["cautions"] = [*summary["cautions"], *notes(provenance or {})]
    found = tables(analysis, summary)
    if facts:
        table = found["facts"]
        mine = [facts[i] for i in table.scan_index]
        for place, (column, values) in enumerate(
            {"prompt": [f.text for f in mine], "true": [f.true for f in mine], "foil": [f.foil for f in mine]}.items()
        ):
            table.insert(4 + place, column, values)
    return Findings(name, state, rows, analysis, summary, found, dict(provenance or {}), tuple(facts))
