"""A study in the store: put there, and read back with its settings, funnel, facts and rows out of its batches' parts.

The same function serves the study under way (whose selection needs the rows so far), the results, and the exported
file. Loads no torch.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ..errors import InputError, StoreError
from ..requests import Fact
from . import cases, controls, locks, selection
from . import rows as table
from .scan import SCAN_COLUMNS, Funnel, facts_from_bytes, facts_to_bytes, funnel, scan_order, splits
from .settings import StudySettings

FACTS, SCAN, SURVEY, EXPERTS, COALITIONS, VALIDATION = "facts", "scan", "survey", "experts", "coalitions", "validation"
"""Stages of the work, in their order, under which parts are stored. `facts`: the list in scan order. `scan`: contrasts
of candidates. `survey`: layer patches and (joint search) experts of every layer, on all kept facts. `experts`: those of
the selected layer, where there is no joint search. `coalitions`: the search on discovery. `validation`: equal-norm
pairs, coalitions, the fresh draw and the other noise levels on the validation facts."""

MEASURING = (SURVEY, EXPERTS, COALITIONS, VALIDATION)

QUEUED, RUNNING, DONE, CANCELLED, FAILED = "queued", "running", "done", "cancelled", "failed"
"""States of a study. One that says running or queued while nobody holds its lock was interrupted (killed)."""
INTERRUPTED = "interrupted"


MEASURED_COLUMNS = [
    "scan_index", "draw", "noise", "stage", "kind", "layer", "pos", "expert", "experts", "clean_active",
    "router_weight_clean", "clean_contrast", "corrupt_contrast", "rescue",
]  # fmt: skip
"""Columns of a stored batch of patches: those of `core.study.rows` but for what the fact and the split say."""


@dataclass(frozen=True)
class StudyData:
    """`records`: facts in scan order; `scanned`: see `SCAN_COLUMNS`; `funnel`: what is known of it so far; `kept`: the
    kept facts by `scan_index`, empty while the scan goes on; `rows`: see `core.study.rows`, of every batch that is
    done, controls included."""

    name: str
    model: str
    settings: StudySettings
    plan: dict[str, Any]
    provenance: dict[str, Any]
    state: str
    progress: dict[str, Any]
    records: list[Fact]
    scanned: pd.DataFrame
    funnel: Funnel
    kept: list[Fact]
    rows: pd.DataFrame


def create(
    book: Any, name: str, settings: StudySettings, facts: Sequence[Fact], *, batch_tokens: int | None = None
) -> None:
    """Put a new study into `book` (`cache.studies.Studies`), with its facts in scan order; nothing is measured yet, and
    no model is needed: the plan is made when the study starts.

    Raises `InputError` where the name is taken or the facts do not fit the settings. `batch_tokens`: see
    `core.study.plan.Plan.make`.
    """
    ordered = scan_order(facts, settings)
    if settings.cases != cases.SCAN:
        settings = settings.replace(n=len(ordered))
    book.add(
        name,
        model=settings.model.name,
        settings=settings.to_dict(),
        plan={} if batch_tokens is None else {"batch_tokens": batch_tokens},
        provenance={},
        state=QUEUED,
        progress={},
        parts=[(FACTS, 0, facts_to_bytes(ordered))],
    )


def load(book: Any, name: str) -> StudyData:
    """The study `name` of a `cache.studies.Studies`. Raises `InputError` if there is none."""
    record = book.get(name)
    return assemble(record, book.parts(name))


def state_of(book: Any, record: Any) -> str:
    """The state of a study as it is: one that nobody works on any more is interrupted, whatever it says."""
    if record.state not in (RUNNING, QUEUED):
        return record.state
    with locks.trying(locks.folder_beside(book.path), f"study {record.id}") as free:
        return INTERRUPTED if free else record.state


def running_already(name: str) -> InputError:
    """What is wrong when someone works on the study."""
    return InputError(f"The study {name!r} is running already.", "Wait for it, or cancel it.", field="name")


def assemble(record: Any, parts: Mapping[tuple[str, int], bytes]) -> StudyData:
    """A study from its `cache.studies.StudyRecord` and its parts."""
    settings = StudySettings.from_dict(record.settings)
    if (FACTS, 0) not in parts:
        raise StoreError(f"The study {record.name!r} is damaged: its facts are missing.", "Delete it and run it again.")
    records = facts_from_bytes(parts[FACTS, 0])
    scanned = joined(parts, SCAN, SCAN_COLUMNS)
    found = funnel(scanned, settings, records=len(records))
    scan_ended = found.enough or found.counts["scanned"] == len(records)
    kept = [records[place] for place in found.kept] if scan_ended else []
    measured = [frame for stage in MEASURING if not (frame := joined(parts, stage, None)).empty]
    rows = complete(pd.concat(measured, ignore_index=True), kept, settings) if measured else table.table([])
    return StudyData(
        record.name, record.model, settings, record.plan, record.provenance, record.state, record.progress, records,
        scanned, found, kept, rows,
    )  # fmt: skip


def joined(parts: Mapping[tuple[str, int], bytes], stage: str, columns: Mapping[str, str] | None) -> pd.DataFrame:
    """The tables of a stage's parts, one after the other."""
    numbers = sorted(number for found, number in parts if found == stage)
    frames = [pd.read_parquet(io.BytesIO(parts[stage, number])) for number in numbers]
    if not frames:
        return pd.DataFrame(columns=list(columns or ())).astype(dict(columns or {}))
    return pd.concat(frames, ignore_index=True)


def with_facts(measured: pd.DataFrame, kept: list[Fact], settings: StudySettings) -> pd.DataFrame:
    """Measured rows (`MEASURED_COLUMNS`) with what the fact and the split say: rows as `core.study.rows`."""
    half = splits(kept, settings)
    at = measured.scan_index.to_numpy(dtype=int)
    facts = pd.DataFrame(
        {
            "case_id": [fact.case_id for fact in kept],
            "relation": [fact.relation for fact in kept],
            "subject": [fact.subject for fact in kept],
            "split": half,
        }
    )
    return table.table(measured.assign(**{name: facts[name].to_numpy()[at] for name in facts}))


def complete(measured: pd.DataFrame, kept: list[Fact], settings: StudySettings) -> pd.DataFrame:
    """All rows of what was measured, in a fixed order, with the control rows that follow from them."""
    rows = with_facts(measured, kept, settings)
    layer = selection.best_layer(rows)
    if layer is not None and (rows.kind == table.EXPERT).any():
        chosen = selection.choose_expert(rows, layer=layer, recurrence=settings.recurrence)
        options = {"layer": layer, "expert": chosen.expert, "controls": settings.controls}
        drawn = [controls.control_rows(rows, stage=stage, **options) for stage in (table.MAIN, table.FRESH_DRAW)]
        rows = pd.concat([rows, *(part for part in drawn if not part.empty)], ignore_index=True)
    order = {kind: i for i, kind in enumerate(table.KINDS)}
    stages = {stage: i for i, stage in enumerate(dict.fromkeys([table.MAIN, *rows.stage]))}
    keys = pd.DataFrame({"stage": rows.stage.map(stages), "fact": rows.scan_index, "kind": rows.kind.map(order)})
    keys["draw"], keys["layer"], keys["expert"] = rows.draw, rows.layer, rows.expert.fillna(-1)
    by = ["stage", "fact", "draw", "kind", "layer", "expert"]
    return table.table(rows.iloc[keys.sort_values(by, kind="stable").index])
