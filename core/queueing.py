"""What a viewer's job waits for: its place, who computes now, which models go and come; and what may be told of others.

Nothing that another viewer typed is told: of their work only its kind, and of models only names that are published or
lie on this machine, a folder by its last part. Knows jobs and turns, no pages.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .identity import DEMO, locate
from .jobs import Job
from .requests import ModelSpec
from .turns import LONG, PAUSED, SHORT, Asked

TRACE, QUESTION, MODEL, STUDY = "trace", "question", "model", "study"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)


@dataclass(frozen=True)
class Inside:
    """Whose turn it is. `kind`: TRACE, QUESTION, MODEL (loading by hand) or STUDY; `title`: of a question its kind's,
    of one's own work what it is about, else empty; `mine`: the viewer's own; `pauses`: it lets who waits in between
    two steps; `seconds_left`: where something honest can be said."""

    kind: str
    title: str
    mine: bool
    model: str
    pauses: bool
    seconds_left: float | None


@dataclass(frozen=True)
class Standing:
    """`place`: 1 = next, of `waiting` jobs; `model`: what the job wants; `goes`: models that are unloaded for it, empty
    where it is loaded or fits beside them; `comes`: it has to be loaded, and nobody does that now."""

    place: int
    waiting: int
    inside: Inside | None
    model: str
    goes: tuple[str, ...]
    comes: bool


def model_name(spec: ModelSpec | None) -> str:
    """How a model may be called before others."""
    if spec is None:
        return ""
    if spec.name == DEMO or _HUB_ID.fullmatch(spec.name):
        return spec.name
    try:
        folder = Path(spec.name).expanduser()
        return folder.name if folder.is_dir() else "another model"
    except (OSError, ValueError, RuntimeError):
        return "another model"


def model_names(specs: Iterable[ModelSpec]) -> dict[ModelSpec, str]:
    """How models may be called before others: where two have one name, with what tells them apart."""
    names = {spec: model_name(spec) for spec in specs}
    found = {}
    for spec, name in names.items():
        alike = [other for other in names if names[other] == name]
        apart = [told(spec) for told in _TOLD if len({told(other) for other in alike}) > 1]
        found[spec] = f"{name} ({', '.join(apart)})" if apart else name
    return found


def _revision(spec: ModelSpec) -> str:
    """A revision that is on this machine; what else was typed there is told to nobody."""
    if spec.revision is None:
        return "default revision"
    published = _HUB_ID.fullmatch(spec.name) and not Path(spec.name).is_dir() and locate(spec) is not None
    return f"revision {spec.revision}" if published else "another revision"


_TOLD = (
    _revision,
    lambda spec: f"dtype {spec.dtype}",
    lambda spec: f"device {spec.device}",
    lambda spec: f"quantisation {spec.quantisation}",
    lambda spec: f"placement {spec.placement}",
)


def standing(
    job: Job, viewer: Hashable, *, waiting: Sequence[Asked], inside: Asked | None, inside_job: Job | None,
    there: Sequence[ModelSpec], most: int,
) -> Standing:  # fmt: skip
    """How `job` stands for `viewer`. `waiting`: in the order of their turns; `inside`: who computes, `inside_job`: its
    job, None for a study; `there`: the models in memory, `most` of which may stay."""
    jobs = [asked for asked in waiting if asked.rank != LONG]
    place = next((i for i, asked in enumerate(jobs, 1) if asked.key == job.id), 1)
    rank = next((asked.rank for asked in jobs if asked.key == job.id), SHORT)
    needs = job.needs if isinstance(job.needs, ModelSpec) else None
    wanted = None if inside is None or not isinstance(inside.wanted, ModelSpec) else inside.wanted
    comes = needs is not None and needs not in (*there, wanted)
    names = model_names(spec for spec in (needs, wanted, *there) if spec is not None)
    return Standing(
        place=place,
        waiting=max(len(jobs), place),
        inside=None if inside is None else _inside(inside, inside_job, viewer, names.get(wanted, ""), rank=rank),
        model=names.get(needs, ""),
        goes=tuple(names[spec] for spec in there) if comes and most == 1 else (),
        comes=comes,
    )


def _inside(asked: Asked, job: Job | None, viewer: Hashable, model: str, *, rank: int) -> Inside:
    """`rank`: of who waits."""
    if job is None:
        return Inside(STUDY, "", False, model, True, None)
    mine = viewer in job.owners
    kind = QUESTION if asked.rank == PAUSED else MODEL if job.lane == "models" else TRACE
    title = job.title if mine or kind == QUESTION else ""
    return Inside(kind, title, mine, model, rank < asked.rank, job.status().seconds_left)
