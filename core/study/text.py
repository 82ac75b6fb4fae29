"""What a study found, as text for a terminal: state, funnel, verdict, estimates. Knows the summary, no model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .data import StudyData
from .findings import notes
from .scan import FUNNEL
from .summary import summarise

_ROWS = {
    "layer_rescue": "layer patch",
    "expert_rescue": "selected expert",
    "expert_rescue_active_only": "  where active",
    "specificity": "specificity",
    "gate_matched_specificity": "  against gate-matched",
    "equal_norm_specificity": "  with equal norms",
    "clean_topk": "clean top-k",
    "routing_union": "routing union",
    "minimal_coalition": "minimal coalition",
    "random_coalition": "random coalitions",
}


def overview(study: StudyData) -> str:
    """Everything that fits on a screen. Rescues in logits on the validation facts, 95 % (or the chosen) intervals."""
    lines = [funnel_line(study.funnel.counts, study.settings.n)]
    if study.rows.empty:
        return lines[0]
    summary = summarise(study.rows, study.settings.to_dict(), study.funnel.counts)
    if study.state != "done":
        lines.append("The study is not finished: what follows is from what is there.")
    lines += ["", f"Verdict: {summary['verdict']}", *summary["verdict_words"]]
    lines += [f"Caution: {line}" for line in [*summary["cautions"], *notes(study.provenance)]]
    width = max(map(len, _ROWS.values()))
    lines += ["", f"{'rescue on validation':{width}}   mean      interval        positive  p (sign flip)    n"]
    for name, title in _ROWS.items():
        lines.append(f"{title:{width}} {_estimate(summary[name])}")
    return "\n".join(lines)


def funnel_line(counts: Mapping[str, int], wanted: int) -> str:
    """The funnel in one line; `wanted`: so many facts were to be kept."""
    fell = ", ".join(f"{counts[name]} {FUNNEL[name].split(' (')[0]}" for name in _FILTERS if counts[name])
    return f"{counts['scanned']} of {counts['records']} facts scanned, {counts['kept']} of {wanted} kept" + (
        f"; {fell}" * bool(fell)
    )


_FILTERS = ("unusable", "objects", "clean_contrast", "drop")


def _estimate(values: Mapping[str, Any]) -> str:
    if not values["n"]:
        return "      –"
    low, high = (f"{values[end]:+.3f}" if values[end] is not None else "–" for end in ("ci_low", "ci_high"))
    p = "–" if values["p_sign_flip"] is None else f"{values['p_sign_flip']:.4f}"
    return (
        f"{values['mean']:+7.3f}  [{low:>6}, {high:>6}]   {values['positive_fraction']:7.2f}  {p:>13}  {values['n']:>3}"
    )
