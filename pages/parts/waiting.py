"""What a job waits for, in words for one viewer: whose work comes first, which models go and come, the place in line.

Of others it says the kind of work and the model, nothing that they typed (see `core.queueing`).
"""

from __future__ import annotations

from core import formats
from core.queueing import MODEL, QUESTION, STUDY, Inside, Standing


def words(standing: Standing) -> str:
    """One line, without Markdown."""
    inside = standing.inside
    parts = [f"waits for {_whose(inside)}" if inside else "about to begin"]
    if inside is not None and inside.seconds_left is not None:
        parts.append(f"{formats.duration(inside.seconds_left, about=True)} left")
    if inside is not None and inside.pauses:
        parts.append("which lets others in between its steps" if not standing.comes else "which gives way soon")
    line = ", ".join(parts)
    if standing.goes:
        line += f"; then {' and '.join(standing.goes)} is unloaded and {standing.model} loaded"
    elif standing.comes:
        line += f"; then {standing.model} is loaded"
    if standing.waiting > 1:
        line += f" · place {standing.place} of {standing.waiting} in the queue"
    return line


def _whose(inside: Inside) -> str:
    on = f" on {inside.model}" if inside.model else ""
    if inside.kind == STUDY:
        return f"a study{on}"
    whose = "your own" if inside.mine else "another viewer's"
    if inside.kind == MODEL:
        return f"{whose} loading of {inside.model}" if inside.model else f"{whose} unloading"
    if inside.kind == QUESTION:
        return f"{whose} question ({inside.title}){on}"
    return f"{whose} trace{f' of {inside.title}' if inside.title else ''}{on}"
