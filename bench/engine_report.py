"""The engine's own figures as Markdown and JSON. Knows numbers, measures nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import case
from .commits import section as removed

if TYPE_CHECKING:
    from .engine import Measured


def write_engine_results(
    folder: Path,
    *,
    maps: Sequence[Measured],
    rate: float,
    facts: Sequence[Measured],
    swept: Measured,
    questions: Sequence[Measured],
    parts: dict[str, float],
    machine: dict[str, Any],
    rounds: int,
    load: Sequence[float],
) -> str:
    """Write engine.md and engine.json; returns the Markdown."""
    data = {
        "measured": datetime.now(UTC).date().isoformat(), "machine": machine, "rounds": rounds,
        "load_average": [round(value, 1) for value in load], "multiply_adds_per_second": rate,
        "maps": [_plain(m) for m in maps], "facts": [_plain(m) for m in facts], "last_position": _plain(swept),
        "questions": [_plain(m) for m in questions], "profile": parts,
    }  # fmt: skip
    lines = [*_lines(data, maps, facts, swept, questions), *(("", text) if (text := removed()) else ())]
    text = "\n".join(lines) + "\n"
    folder.mkdir(exist_ok=True)
    (folder / "engine.json").write_text(json.dumps(data, indent=1) + "\n")
    (folder / "engine.md").write_text(text)
    return text


def _plain(measured: Measured) -> dict[str, Any]:
    return {"name": measured.name, "seconds": [round(s, 5) for s in measured.seconds], **measured.facts}


def _lines(
    data: dict[str, Any], maps: Sequence[Measured], facts: Sequence[Measured], swept: Measured,
    questions: Sequence[Measured],
) -> list[str]:  # fmt: skip
    machine = data["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    base = maps[0].median
    asked = {m.name: m.median for m in questions}
    first = asked["first question"]
    batch, single = facts
    rate = data["multiply_adds_per_second"]
    return [
        "# What the engine's own work costs",
        "",
        f"The base: one random qwen3_moe model (fp32, CPU) of {case.LAYERS} layers, hidden {case.HIDDEN}, "
        f"{case.EXPERTS} experts of {case.INTERMEDIATE}, top-{case.TOP_K}; a prompt of {case.TOKENS} tokens with a "
        f"subject of {len(case.SUBJECT)} from position {case.SUBJECT[0]}, one fact, one noise draw, the whole "
        "layer × token heat map with everything that the page shows except expert patches.",
        "",
        f"Machine: {machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}; "
        f"Python {machine['python']}, {versions}; {machine['threads']} torch threads, "
        f"OMP_WAIT_POLICY={machine['OMP_WAIT_POLICY']}. Measured {data['measured']}, medians of {data['rounds']} "
        f"rounds; load average {' to '.join(map(str, data['load_average']))}.",
        "",
        "## As the heat map grows",
        "",
        "The bound is arithmetic alone: patched rows × their suffix × active weights, and the unpatched runs, at the "
        f"fastest rate at which this machine multiplied matrices during the run ({rate / 1e9:.0f} billion "
        "multiply-adds a second). Attention scores, norms, routing, memory traffic and the head are not in it, so "
        "nothing reaches 1.",
        "",
        "| heat map | patched rows | seconds | × base | bound, seconds | × bound |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {m.name} | {m.facts['rows']:,.0f} | {m.median:.3f} | {m.median / base:.1f} | {m.facts['bound']:.3f} "
            f"| {m.median / m.facts['bound']:.1f} |"
            for m in maps
        ),
        "",
        "## Many facts",
        "",
        "Whole traces: the heat map and every routed expert at the last position.",
        "",
        "| | seconds | facts per second | × one at a time |",
        "| --- | ---: | ---: | ---: |",
        *(
            f"| {m.name} | {m.median:.2f} | {m.facts['per second']:.2f} | {single.median / m.median:.2f} |"
            for m in (batch, single)
        ),
        "",
        f"The layer sweep at the last position, {swept.name} in one pass over the weights: {swept.median:.2f} s, "
        f"{swept.facts['rows per second']:,.0f} patched rows a second.",
        "",
        "## First and second question about a fact",
        "",
        "With a store, in this order; and the further questions again without one.",
        "",
        "| question | seconds | × the first |",
        "| --- | ---: | ---: |",
        *(f"| {name} | {seconds:.3f} | {seconds / first:.2f} |" for name, seconds in asked.items()),
        "",
        "## Where the time goes",
        "",
        "The base heat map under torch's profiler, shares of its wall time:",
        "",
        "| part | share |",
        "| --- | ---: |",
        *(f"| {name} | {share:.0%} |" for name, share in data["profile"].items()),
    ]
