"""What differs between two traces, in sentences: settings first, then what came of them. Strings only."""

from __future__ import annotations

import math

from .. import views
from ..agreement import agreement
from ..formats import bound, logit, logits, number, overlap, percent, probability, restoration
from ..results import MIN_DROP, TraceResult
from ..sites import MOE, map_name
from .asked import Setting, apart
from .tables import SIDES, Compared

ONE_RUN = " It is the same run: the corruption does not touch it."
SAME = "Both sides ask the same question."
SAME_IDS = " This tokenizer gives the same token ids with and without special tokens."


def settings(compared: Compared) -> list[Setting]:
    """Every setting of the questions that differs, and what differs in how they were answered."""
    a, b = compared.a, compared.b
    rows = [Setting(name, told(a), told(b)) for name, told in _SETTINGS]
    rows = [row for row in rows if row.a != row.b]
    if {row.name for row in rows} & {"prompt", "subject"}:  # another fact has another number
        rows = [row for row in rows if row.name != "case_id"]
    marks = [r.provenance.fingerprint for r in (a, b)]
    if marks[0] != marks[1] and not {row.name for row in rows} & {"model", "revision"}:
        rows.append(Setting("the model's files", *(mark[:8] for mark in marks)))
    versions = [r.provenance.versions for r in (a, b)]
    for name in sorted(set(versions[0]) | set(versions[1])):
        left, right = (v.get(name, "none") for v in versions)
        if left != right:
            rows.append(Setting(name, left, right))
    maps = [map_name(*compared.site(side)) for side in SIDES]
    return rows if maps[0] == maps[1] else [*rows, Setting("layer × token map", *maps)]


_SETTINGS = (
    ("prompt", lambda r: f"“{r.request.fact.prompt}”"),
    ("subject", lambda r: r.request.fact.subject.strip()),
    ("true object", lambda r: r.request.fact.true.strip()),
    ("foil", lambda r: r.provenance.foil_token.strip()),
    ("case_id", lambda r: str(r.request.fact.case_id)),
    ("model", lambda r: r.request.model.name),  # an answer is stored under the name that it was first asked by
    ("revision", lambda r: r.request.model.revision or "the default one"),
    ("dtype", lambda r: r.provenance.dtype),
    ("device", lambda r: r.provenance.device),
    ("weights", lambda r: (r.provenance.quantisation or "not quantised").replace("; ", ", ")),
    ("placement", lambda r: r.provenance.placement),
    ("corruption", lambda r: views.corruption(r)),
    ("draws", lambda r: str(r.request.draws)),
    ("seed", lambda r: str(r.request.seed)),
    ("special tokens", lambda r: r.request.special_tokens),
    ("object tokens", lambda r: r.request.object_tokens),
    ("objects of several tokens", lambda r: "the first token" if r.request.first_token else "not taken"),
    ("attention", lambda r: str(r.provenance.implementation.get("attention", ""))),
    ("experts implementation", lambda r: str(r.provenance.implementation.get("experts", ""))),
)


def sentences(compared: Compared, *, maps: bool = True) -> list[str]:
    """What changed, a sentence each: settings, contrasts and drop, best cells, the maps' order, routing. `maps`: False
    as long as what the maps show is not there."""
    of_maps = [_best(compared), _order(compared)] if maps else []
    out = [changed(compared), _numbers(compared), *of_maps, routing(compared)]
    return [sentence for sentence in out if sentence]


def changed(compared: Compared) -> str:
    """Which settings differ."""
    found = settings(compared)
    if not found:
        same = apart(compared.a.request, compared.b.request)
        return f"Asked differently, but the same computation: {_listed(same)}." if same else SAME
    listed = _listed(found)
    special = any(s.name == "special tokens" for s in found) and compared.alignment.same_tokens
    return f"From a to b: {listed}.{SAME_IDS if special else ''}"


def _listed(found: list[Setting]) -> str:
    return "; ".join(f"{s.name} {s.a} → {s.b}" for s in found)


def _numbers(compared: Compared) -> str:
    a, b = compared.a, compared.b
    parts = []
    for name, values in (("Clean contrast", (a.clean_contrast, b.clean_contrast)), ("drop", (a.drop, b.drop))):
        left, right = (logits(value) for value in values)
        parts.append(f"{name} {left} → {right} ({logits(values[1] - values[0])})")
    floors = [r.provenance.noise_floor for r in (a, b) if r.provenance.noise_floor]
    near = max(floors, default=0.0)
    moved = max(abs(b.clean_contrast - a.clean_contrast), abs(b.drop - a.drop))
    note = f" That is within the noise floor of {bound(near)} logits." if 0 < moved < near else ""
    if moved == 0 and settings(compared):
        note = " Nothing changed there."
    return f"{', '.join(parts)} logits.{note}"


def alone(side: str, result: TraceResult, mapped: TraceResult | None) -> list[str]:
    """What there is to say of one side as long as the other has no answer. `mapped`: with the cells that its map shows,
    None as long as they are not there."""
    values = (("clean contrast", result.clean_contrast), ("drop", result.drop))
    told = ", ".join(f"{name} {logits(value)}" for name, value in values)
    out = [f"So far only {side} has an answer: {told} logits."]
    if mapped is not None and (name := best(mapped)):
        out.append(f"It restores most in {name} ({_restored(mapped)}).")
    return out


def best(result: TraceResult) -> str:
    """The best cell in words: `layer 3 at ·is (5)`; empty without cells."""
    found = views.best_cell(result)
    return "" if found is None else f"layer {found[0]} at {views.token_labels(result)[found[1]]}"


def map_note(compared: Compared) -> str:
    """What both maps patch, as the beginning of a sentence; empty where it is the MoE output of one layer, or where it
    differs, which is a setting."""
    site, other = compared.site("a"), compared.site("b")
    return "" if site == (MOE, 1) or site != other else f"Patching {map_name(*site)}: "


def _best(compared: Compared) -> str:
    start = map_note(compared)
    sentence = _best_cells(compared)
    return start + _lower(sentence) if start and sentence.startswith("The ") else start + sentence if sentence else ""


def _best_cells(compared: Compared) -> str:
    results = compared.mapped("a"), compared.mapped("b")
    if _two_corruptions(compared):
        noise, replace = sorted(results, key=lambda r: r.request.corruption)
        if (found := agreement(noise, replace)) is not None:
            return found.sentence
    names = [best(result) for result in results]
    if not all(names):
        return ""
    told = [f"{name} ({_restored(result)})" for name, result in zip(names, results, strict=True)]
    cells = [views.best_cell(result) for result in results]
    one = not compared.no_cells and cells[0][0] == cells[1][0]  # type: ignore[index]
    if one and compared.alignment.partner("a", cells[0][1]) == cells[1][1]:  # type: ignore[index]
        return f"The same cell restores most: a in {told[0]}, b in {told[1]}."
    return f"a restores most in {told[0]}, b in {told[1]}."


def _restored(result: TraceResult) -> str:
    cells = views.patches(result, ("layer",))
    top = cells.loc[cells.rescue.idxmax()]
    if math.isnan(top.restoration):
        return f"rescue {logits(top.rescue)}, drop below {MIN_DROP:g}"
    return f"restoration {restoration(top.restoration)}"


def _two_corruptions(compared: Compared) -> bool:
    kinds = {compared.side(side).request.corruption for side in SIDES}
    one_site = compared.site("a") == compared.site("b")
    return len(kinds) == 2 and one_site and compared.alignment.same_tokens and not compared.no_cells


def _order(compared: Compared) -> str:
    if compared.no_cells:
        return f"No difference map: {_lower(compared.no_cells)}"
    correlation, n = compared.correlation
    if math.isnan(correlation):
        return ""
    return f"The rescues of {n} cells are in an order that correlates by {overlap(correlation)} (Spearman)."


def routing(compared: Compared) -> str:
    """How far the clean runs go to the same experts."""
    if compared.no_routing:
        return f"Routing is not compared: {_lower(compared.no_routing)}"
    cells = compared.routing
    same, n = int(cells.same.sum()), len(cells)
    start = f"The clean runs go to the same set of experts in {same} of {n} (layer, position) pairs"
    if same == n:
        return f"{start}.{ONE_RUN if _one_clean_run(compared) else ''}"
    return f"{start} ({percent(same / n)}; mean Jaccard {overlap(cells.jaccard.mean())})."


def _one_clean_run(compared: Compared) -> bool:
    """Whether both sides have the very same clean run."""
    marks = [(p.fingerprint, p.dtype, p.quantisation) for p in (compared.a.provenance, compared.b.provenance)]
    return compared.alignment.same_tokens and marks[0] == marks[1]


def _lower(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]


def numbers(compared: Compared) -> tuple[list[str], list[list[str]], list[str]]:
    """(headings, rows, what each row means) of the table of numbers: of a, of b, and b − a."""
    results = compared.a, compared.b
    values = [(r.clean_contrast, r.corrupt_contrast, r.drop, *views.p_true(r)) for r in results]
    spreads = [_over_draws(r) for r in results]
    rows = []
    for i, name in enumerate(QUANTITIES):
        form = probability if name.startswith("P(") else logits
        a, b = (f"{form(value[i])}{spread.get(name, '')}" for value, spread in zip(values, spreads, strict=True))
        rows.append([name, a, b, number(values[1][i] - values[0][i], 3, True)])
    return ["", "a", "b", "b − a"], rows, list(QUANTITIES.values())


def _over_draws(result: TraceResult) -> dict[str, str]:
    """How far the draws lie apart, as it stands behind a mean: the sample standard deviation. Empty of one draw."""
    if result.request.draws == 1:
        return {}
    contrast = result.frame[result.frame.kind == "corrupt"].contrast.std()
    p_true = result.runs[result.runs.run == "corrupt"].p_true.std()
    told = {"corrupt contrast": contrast, "drop": contrast, "P(true), corrupt": p_true}
    return {name: f" (sd {logit(value)})" for name, value in told.items()}


QUANTITIES = {
    "clean contrast": "logit(true object) − logit(foil) at the last position of the prompt as it is.",
    "corrupt contrast": "The same with the subject corrupted; mean over the draws, with their standard deviation.",
    "drop": "Clean minus corrupt contrast: what there is to restore. It spreads as the corrupt contrast.",
    "P(true), clean": "Probability of the true object's token in the clean run.",
    "P(true), corrupt": "The same in the corrupt runs; mean over the draws, with their standard deviation.",
}
"""Rows of the table of numbers, and what they mean."""
