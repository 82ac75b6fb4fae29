"""What each part of a study found, in a sentence or two, from its own numbers. Plain text; the report and the page
escape it for the place where it stands."""

from __future__ import annotations

import math

from ..formats import bound, logit, logits, mean_count, percent, typed
from ..named_rows import named_rows
from ..results import expert_name
from ..views import VISIBLE_ROUNDING
from .analysis import Analysis
from .coalitions import RULES
from .findings import Findings
from .published import INSIDE, OUTSIDE, SAME, SOURCE
from .verdict import interval

EXPERT_ROWS = 16
"""So many experts of the selected layer are drawn; the table has all."""

HOW_TO_READ = (
    "Rescue is in logits: how far a patch lifts the contrast logit(true) − logit(foil) of the corrupt run. Everything "
    "was selected on the discovery half and is estimated on the validation half, which had no part in the selection. "
    "Brackets are percentile-bootstrap intervals over {units}; p is the two-sided sign-flip test's. Where a value is "
    "missing, its fact is left out and counted."
)


def method(found: Findings) -> list[str]:
    """What was done, with this study's settings, one paragraph a step."""
    s, o = found.settings, found.analysis.options
    noise = s.get("noise")
    draws = s.get("draws", 1)
    level = "" if noise is None else f" of {noise:g} × the embedding table's std, {_count(draws, 'draw')} per fact"
    halves = "all facts of a subject in the same half" if o.by_subject else "fact by fact"
    limits = [s.get("min_clean_contrast"), s.get("min_drop")]
    kept = (
        ""
        if None in limits
        else f" Kept are facts with a clean contrast of at least {limits[0]:g} and a drop of at least {limits[1]:g}."
    )  # noqa: E501
    return [
        f"Facts: scanned in a fixed order; objects must be two different single tokens.{kept} The corrupt run is the "
        f"same prompt with Gaussian noise{level} added to the subject's input embeddings.",
        f"Halves: the kept facts are shuffled (seed {o.split_seed}), {halves}; the first half is discovery, the "
        "second validation.",
        "Layer: the MoE block's output at the last prompt position is replaced by the clean run's, layer by layer; "
        "the layer with the highest mean rescue on discovery is selected.",
        f"Expert: at that layer every clean-active expert's update is added alone. Candidates are clean-active in at "
        f"least {100 * o.recurrence:g} % of the discovery facts; the one with the highest mean rescue over all "
        "discovery facts (0 where it is not active) is selected.",
        f"Controls: up to {o.controls} other clean-active experts per fact, drawn at random; the one with the nearest "
        "router weight; and both of that pair scaled to the smaller norm.",
        f"Coalitions: experts are added one by one, by router weight or by their mean rescue on discovery, until the "
        f"discovery mean reaches {100 * o.coalition_share:g} % of the layer patch; random coalitions of that size are "
        "drawn from the same fact's clean-active experts.",
        f"Statistics: {o.resamples:,} bootstrap resamples of {_units(o.by_subject)}, {100 * o.confidence:g} % "
        f"intervals, {o.flips:,} sign flips, seed {o.stats_seed}.",
    ]


DEMO = (
    "The demo model is tiny and trained for this purpose, and its training shaped where recall happens: what is found "
    "in it shows how the method works and is no evidence about large models."
)


MEANS = ("layer_curves", "experts", "controls", "coalitions", "joint_search", "noise", "fresh_draw")
"""Figures and tables of means over all validation facts."""


def how_to_read(found: Findings) -> str:
    """How the numbers are to be read."""
    return f"{HOW_TO_READ.format(units=_units(found.analysis.options.by_subject))} {rounding(found)}".strip()


def rounding(found: Findings, n: int = 1) -> str:
    """What of a fact's rescue, or with `n` of a mean over so many facts, is within rounding (independent from fact to
    fact, so that a mean moves by 1 ÷ √n of it); empty where nobody could take it for an effect, or it was not measured.
    """
    floor, dtype = found.provenance.get("noise_floor"), found.provenance.get("dtype")
    if isinstance(floor, bool) or not isinstance(floor, int | float) or not math.isfinite(floor) or n < 1:
        return ""
    mean = floor / math.sqrt(n)
    if mean < VISIBLE_ROUNDING:
        return ""
    if n > 1:
        return f"Means over {n} facts below about {bound(mean)} logits are within rounding ({dtype})."
    return (
        f"A single fact's rescue below {bound(floor)} logits is within rounding ({dtype}), a mean over n facts below "
        f"about {bound(floor)} ÷ √n."
    )


def captions(found: Findings) -> dict[str, str]:
    """Figure or table name → what it shows and what was found there."""
    a = found.analysis
    out = {
        "layer_curves": _layers(found),
        "experts": _experts(a),
        "controls": _controls(a),
        "coalitions": "The routing union equals the layer patch by algebra where there is no shared expert, so it "
        "proves nothing on its own; the minimal coalition against random ones of its size does.",
        "coalition_search": _coalition(a),
        "joint_search": _joint(a),
        "stability": _stability(found),
        "held_out_relations": _held_out(found),
        "relations": _relations(found),
        "noise": _noise(found),
        "fresh_draw": "The filter (drop) and the estimate look at the same noise draw, which flatters both; the fresh "
        "draw has other noise for the same facts.",
        "published": _published(found),
    }
    every = rounding(found, found.summary["n_facts"]["validation"])
    beside = dict.fromkeys(MEANS, every) | {"relations": rounding(found)}
    return {name: f"{text} {beside.get(name, '')}".strip() for name, text in out.items() if text}


def funnel_sentence(found: Findings) -> str:
    """How many facts were scanned, kept, and fell where."""
    counts = found.summary["funnel"]
    if "scanned" not in counts or "kept" not in counts:
        return ""
    return f"{counts['kept']:,} facts were kept of {counts['scanned']:,} scanned" + (
        f" ({counts['records']:,} in the list)." if "records" in counts else "."
    )


def _layers(found: Findings) -> str:
    a, table = found.analysis, found.tables["layers"]
    if a.layer is None or table.empty:
        return ""
    mean = table[table.split == "discovery"].set_index("layer")["mean"]
    found_there = a.estimates["layer_rescue"]
    text = (
        f"Layer {a.layer} has the highest mean rescue on discovery ({logits(mean[a.layer])}); on validation "
        f"it rescues {interval(found_there)}, above 0 in {_share(found_there.positive_fraction)} of the facts."
    )
    validation = table[(table.split == "validation") & table["mean"].notna()].set_index("layer")["mean"]
    if len(validation) and int(validation.idxmax()) != a.layer:
        best = int(validation.idxmax())
        text += f" On validation alone layer {best} would be higher ({logits(validation[best])})."
    return text + " Bands are bootstrap intervals, layer by layer."


def _experts(a: Analysis) -> str:
    if a.choice is None or a.layer is None:
        return ""
    n = int(a.choice.experts.candidate.sum())
    text = (
        f"{len(a.choice.experts)} experts of layer {a.layer} are clean-active in some discovery fact, {n} of them in "
        f"the {a.choice.needed} of {a.choice.n} that make a candidate."
    )
    if len(a.choice.experts) > EXPERT_ROWS:
        text += f" {EXPERT_ROWS} of them are drawn, candidates first; the table has all."
    if a.expert is not None:
        ranks = a.ranks.dropna()
        text += (
            f" {expert_name(a.layer, a.expert)} is selected; among the active experts of a validation fact its rescue "
            f"is the highest in {int((ranks == 1).sum())} of {len(ranks)}, mean rank {mean_count(ranks.mean())}."
        )
    return text + " The percentage beside a name is its recurrence on discovery."


def _controls(a: Analysis) -> str:
    if a.expert is None:
        return ""
    e = a.estimates
    return (
        f"Specificity {interval(e['specificity'])} over all facts, {interval(e['specificity_active_only'])} over the "
        f"{e['specificity_active_only'].n} where it is active; gate-matched {interval(e['gate_matched_specificity'])}, "
        f"equal norm {interval(e['equal_norm_specificity'])}."
    )


def _coalition(a: Analysis) -> str:
    if a.coalition is None:
        return ""
    c = a.coalition
    if not c.reached:
        return f"No size reaches {100 * c.share:g} % of the layer patch on discovery."
    return f"{_count(c.size, 'expert')} reach{'es' if c.size == 1 else ''} {100 * c.share:g} % of the layer patch on discovery: {RULES[c.rule]}."  # noqa: E501


def _joint(a: Analysis) -> str:
    j = a.joint
    if not j.n_pairs:
        return ""
    text = (
        f"{j.n_pairs:,} pairs of {_count(len(j.layers), 'layer')} were searched, {j.n_candidates:,} recur often enough."
    )
    if j.winner is None or j.discovery is None or j.validation is None:
        return text
    share = f" ({percent(j.shrinkage / j.discovery.mean)})" if j.discovery.mean > 0 else ""
    same = "the two-stage selection too" if j.winner == (a.layer, a.expert) else "not the two-stage selection"
    return (
        f"{text} The winner, {expert_name(*j.winner)} ({same}), has {logits(j.discovery.mean)} on discovery, "
        f"where it was picked as the best of all, and {interval(j.validation)} on validation: it shrinks by "
        f"{logit(j.shrinkage)}{share}. Only the validation number is an estimate."
    )


def _stability(found: Findings) -> str:
    grid = found.analysis.grid
    if grid.empty:
        return ""
    none = int(grid.expert.isna().sum())
    what = "no expert either" if found.analysis.expert is None else "the same expert"
    text = f"{int(grid.same.sum())} of {len(grid)} selections find {what}"
    return text + (f"; {none} find no candidate." if none and found.analysis.expert is not None else ".")


def _held_out(found: Findings) -> str:
    folds = found.analysis.folds
    if folds.empty:
        return ""
    return (
        f"The expert is selected on the relations of the other folds and evaluated on those held out: "
        f"{int(folds.same.sum())} of {len(folds)} folds find the main selection's."
    )


def _relations(found: Findings) -> str:
    table = found.analysis.relations
    if table.empty:
        return ""
    few = int((table.n < 10).sum())
    text = f"{_count(len(table), 'relation')} on validation"
    return text + (f"; {few} of them have fewer than 10 facts, too few for a reading of their own." if few else ".")


def _noise(found: Findings) -> str:
    table = found.analysis.noise
    drop = table[(table.quantity == "drop") & table["mean"].notna()] if not table.empty else table
    if drop.empty:
        return ""
    listed = ", ".join(f"{logits(m)} at {typed(level)}" for level, m in zip(drop.noise, drop["mean"], strict=True))
    return f"Mean drop by noise level: {listed}. The facts are those that passed the filter at the study's own level."


def _published(found: Findings) -> str:
    table = found.tables["published"]
    if table.empty:
        return ""
    same = [str(r.quantity) for r in named_rows(table) if r.marker == SAME]
    counts = [int((table.marker == m).sum()) for m in (INSIDE, OUTSIDE)]
    which = " and ".join(same) if same else "neither layer nor expert"
    return (
        f"Of the paper's selection we find {which}. {counts[0]} of our means lie inside the published interval, "
        f"{counts[1]} outside. Source: {SOURCE}."
    )


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _share(value: float) -> str:
    return percent(value)


def _units(by_subject: bool) -> str:
    return "subjects" if by_subject else "facts"
