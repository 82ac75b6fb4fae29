"""The measured table as Markdown and JSON. Knows entries, runs nothing."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import case

if TYPE_CHECKING:
    from .heatmap import Entry

TARGETS = (
    ("plain forward hooks, one forward per cell", 15.0, lambda e: e.draws == 1 and e.method.key == "hooks"),
    ("the best library, cell by cell", 10.0, lambda e: e.draws == 1 and e.method.role == "library"),
    ("ROME's pattern at ten draws", 5.0, lambda e: e.draws == 10 and e.method.key == "rome"),
)


def write_results(
    folder: Path, entries: Sequence[Entry], machine: dict[str, Any], rounds: int, load: Sequence[float]
) -> str:
    """Write heatmap.md and heatmap.json; returns the Markdown."""
    folder.mkdir(exist_ok=True)
    data = {
        "measured": datetime.now(UTC).date().isoformat(), "machine": machine, "rounds": rounds,
        "load_average": [round(value, 1) for value in load],
        "model": {
            "family": "qwen3_moe", "layers": case.LAYERS, "hidden": case.HIDDEN, "experts": case.EXPERTS,
            "top_k": case.TOP_K, "expert_intermediate": case.INTERMEDIATE, "vocabulary": case.VOCABULARY,
            "tokens": case.TOKENS, "subject": list(case.SUBJECT), "dtype": "float32", "device": "cpu",
        },
        "rows": [_row(entry) for entry in entries],
        "targets": [_target(entries, *target) for target in TARGETS],
    }  # fmt: skip
    text = _markdown(data)
    (folder / "heatmap.json").write_text(json.dumps(data, indent=1) + "\n")
    (folder / "heatmap.md").write_text(text)
    return text


def _row(entry: Entry) -> dict[str, Any]:
    row: dict[str, Any] = {
        "draws": entry.draws, "key": entry.method.key, "method": entry.method.name, "role": entry.method.role,
        "package": entry.method.package if entry.version else "", "version": entry.version,
        "per_cell": entry.method.per_cell,
    }  # fmt: skip
    if entry.error:
        return {**row, "error": entry.error}
    seconds = [taken.seconds for taken in entry.rounds]
    return {
        **row,
        "seconds": [round(value, 4) for value in seconds],
        "ratio": round(statistics.median(entry.ratios), 2),
        "ratio_min": round(min(entry.ratios), 2),
        "ratio_max": round(max(entry.ratios), 2),
        "cpu_ratio": round(statistics.median(entry.cpu_ratios), 2),
        "largest_difference": entry.difference,
    }


def _target(entries: Sequence[Entry], name: str, wanted: float, meant: Any) -> dict[str, Any]:
    ratios = {e.method.name: statistics.median(e.ratios) for e in entries if e.rounds and meant(e)}
    best = min(ratios, key=lambda method: ratios[method]) if ratios else None
    found = ratios[best] if best else None
    return {
        "against": name, "at_least": wanted, "method": best, "ratio": None if found is None else round(found, 2),
        "reached": found is not None and found >= wanted,
    }  # fmt: skip


def _markdown(data: dict[str, Any]) -> str:
    model, machine = data["model"], data["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    first, last = model["subject"][0], model["tokens"]
    lines = [
        "# The layer × token heat map, by every method",
        "",
        f"One random {model['family']} model (fp32, CPU): {model['layers']} layers, hidden {model['hidden']}, "
        f"{model['experts']} experts of {model['expert_intermediate']}, top-{model['top_k']}, vocabulary "
        f"{model['vocabulary']}; a prompt of {last} tokens with a subject of {len(model['subject'])} "
        f"(positions {first} to {model['subject'][-1]}). Every method starts from token ids, makes its own clean and "
        f"corrupt run, and computes the cells of all layers at positions {first} to {last - 1} (left of the subject a "
        "cell equals the corrupt run, so nobody computes those). All give the same logits of the two objects; "
        "the largest difference from our sweep is in the table. Logits are computed at the last position only where "
        "the call allows that. Loading and wrapping the model is not timed.",
        "",
        f"Machine: {machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}; "
        f"Python {machine['python']}, {versions}; {machine['threads']} torch threads, "
        f"OMP_WAIT_POLICY={machine['OMP_WAIT_POLICY']}. Measured {data['measured']}, {data['rounds']} rounds in turns, "
        f"our sweep before each method; load average {' to '.join(map(str, data['load_average']))}. × is time over our "
        "sweep's in the same round: median, and least to most over the rounds; × CPU the same in processor time, which "
        "other work on the machine hardly moves.",
    ]
    for draws in sorted({row["draws"] for row in data["rows"]}):
        rows = [row for row in data["rows"] if row["draws"] == draws]
        lines += [
            "",
            f"## {'One noise draw' if draws == 1 else f'{draws} noise draws'}",
            "",
            "| method | per cell | seconds | × | least–most | × CPU | largest difference |",
            "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
            *(_line(row) for row in rows),
        ]
    lines += ["", "## Targets", "", "| against | wanted | measured | |", "| --- | ---: | ---: | --- |"]
    for target in data["targets"]:
        found = "not measured" if target["ratio"] is None else f"{target['ratio']:.1f} × ({target['method']})"
        verdict = "reached" if target["reached"] else "not reached"
        lines.append(f"| {target['against']} | {target['at_least']:.0f} × | {found} | {verdict} |")
    lines += [
        "",
        "The library target is about one call per cell, as the table says in words. The batched rows are the fair "
        "middle: whoever batches the cells of a layer by hand, or writes them as invokes of one trace (which is how "
        "nnsight's documentation draws such a map), pays per layer instead of per cell and is at "
        f"{_range(data, 'batched')} here. What is left is arithmetic: each cell still computes every layer below its "
        "patch and every position left of it again. No other method here patches single experts.",
        "",
    ]
    return "\n".join(lines)


def _range(data: dict[str, Any], role: str) -> str:
    """Smallest and largest ratio of the rows of one role, over all draws."""
    ratios = sorted(row["ratio"] for row in data["rows"] if row["role"] == role and "ratio" in row)
    return f"{ratios[0]:.1f}–{ratios[-1]:.1f} ×" if ratios else "an unmeasured ratio"


def _line(row: dict[str, Any]) -> str:
    name = row["method"] + (f" ({row['package']} {row['version']})" if row["version"] else "")
    if "error" in row:
        return f"| {name} | {row['per_cell']} | could not run: {row['error'][:200]} | | | | |"
    return (
        f"| {name} | {row['per_cell']} | {statistics.median(row['seconds']):.2f} | {row['ratio']:.1f} "
        f"| {row['ratio_min']:.1f}–{row['ratio_max']:.1f} | {row['cpu_ratio']:.1f} | {row['largest_difference']:.0e} |"
    )
