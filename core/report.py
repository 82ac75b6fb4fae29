"""Results in words, for the terminal: contrasts, drop, best cells, best experts. Plain text out, nothing printed.

Numbers over draws and over facts are mean rescue ÷ mean drop (protocol.md), never means of ratios.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .console import visible
from .named_rows import named_rows
from .results import LEAST_DROP, MIN_DROP, TraceResult, expert_name, is_defined
from .views import PAPER_CLEAN, PAPER_DROP, corruption, filter_problems, patches, rounding

if TYPE_CHECKING:
    from .minimal import MinimalResult
    from .patching import PatchResult

BEST = 5
MAX_FACT_LINES = 30


def summary(result: TraceResult, *, best: int = BEST) -> str:
    """One result: what was asked, both contrasts, the drop, the best cells and experts by rescue."""
    where, request, fact = result.provenance, result.request, result.request.fact
    draws = f"{request.draws} draw{'s' if request.draws > 1 else ''}"
    lines = [
        f"{_prompt(result)} → {where.true_token!r} (true), {where.foil_token!r} (foil)",
        f"case_id {fact.case_id} · model {where.model}, {where.dtype} on {where.device} · "
        f"{visible(corruption(result))} · {draws} · seed {request.seed}"
        + (" · from the store" if result.cached else ""),
        "",
        f"clean contrast    {_signed(result.clean_contrast)}   {_run(result, 'clean')}",
        f"corrupt contrast  {_signed(result.corrupt_contrast)}   {_run(result, 'corrupt')}",
        f"drop              {_signed(result.drop)}   logits{', mean over draws' if request.draws > 1 else ''}",
    ]
    if where.noise_floor is not None:
        lines.append(f"noise floor        {where.noise_floor:.2g}   {rounding(where)}")
    if result.drop < (where.noise_floor or 0):
        lines.append("The drop is within rounding: nothing below says anything about this fact.")
    if where.quantisation:
        lines.append(f"weights            {where.quantisation}")
    problems = filter_problems(result)
    if problems:
        lines.append(f"This fact fails the paper's filter: {'; '.join(problems)}.")
    if result.drop < MIN_DROP:
        lines.append(f"The drop is below {MIN_DROP}: restoration is undefined, cells are ranked by rescue.")
    cells = _best(patches(result, ("layer",)), best)
    rows = [
        [f"L{c.layer}", _position(result, c.pos), _ratio(c.restoration), _signed(c.rescue), _spread(c)]
        for c in named_rows(cells)
    ]
    lines += [
        "",
        *_block("Best cells (layer patch)", ["layer", "position", "restoration", "rescue"], rows, request.draws),
    ]
    experts = _best(patches(result, ("expert", "shared")), best)
    rows = [
        [
            expert_name(e.layer, None if e.kind == "shared" else e.expert),
            _position(result, e.pos),
            _ratio(e.restoration),
            _signed(e.rescue),
            _spread(e),
            "" if e.kind == "shared" else f"{e.router_weight_clean:.2f} → {e.router_weight_corrupt:.2f}",
        ]
        for e in named_rows(experts)
    ]
    if rows:
        headings = ["expert", "position", "restoration", "rescue", "router weight, clean → corrupt"]
        lines += ["", *_block("Best experts (expert patch)", headings, rows, request.draws)]
    lines += [f"Note: {visible(note).rstrip('.')}." for note in where.notes]
    return "\n".join(lines)


def summary_many(results: Sequence[TraceResult], *, best: int = BEST) -> str:
    """Many results: a line for each (the first `MAX_FACT_LINES`), then means over all of them."""
    headings = ["case_id", "prompt", "true", "foil", "clean", "corrupt", "drop", "best cell", "restoration"]
    rows = []
    for result in results[:MAX_FACT_LINES]:
        cell = next(named_rows(_best(patches(result, ("layer",)), 1)), None)
        rows.append(
            [
                str(result.request.fact.case_id),
                _shorten(_prompt(result), 56),
                _object(result.provenance.true_token, result.request.fact.true),
                _object(result.provenance.foil_token, result.request.fact.foil),
                _signed(result.clean_contrast),
                _signed(result.corrupt_contrast),
                _signed(result.drop),
                f"L{cell.layer} {_position(result, cell.pos)}" if cell else "",
                _ratio(cell.restoration) if cell else "",
            ]
        )
    lines = columns(headings, rows)
    if len(results) > MAX_FACT_LINES:
        lines.append(f"… and {len(results) - MAX_FACT_LINES} more; all rows are in the table (--out).")
    if any(cell.endswith("*") for row in rows for cell in row[2:4]):
        lines.append("  * the first token of an object of several tokens")
    n = len(results)
    rows_of_all = _stacked(results)
    ends = rows_of_all[rows_of_all.kind.isin(["clean", "corrupt"])].groupby(["fact", "kind"]).contrast.mean().unstack()
    drops = ends.clean - ends.corrupt
    clean, corrupt, drop = ends.clean.mean(), ends.corrupt.mean(), drops.mean()
    lines += ["", f"Over {n} facts: clean contrast {_signed(clean)}, corrupt {_signed(corrupt)}, drop {_signed(drop)}"]
    if floor := rounding(results[0].provenance):
        lines.append(f"Noise floor of a single rescue: {floor}.")
    failing = int(((ends.clean < PAPER_CLEAN) | (drops < PAPER_DROP)).sum())
    if failing:
        lines.append(
            f"{failing} of them {'fail' if failing > 1 else 'fails'} the paper's filter "
            f"(clean contrast ≥ {PAPER_CLEAN:g}, drop ≥ {PAPER_DROP:g})."
        )

    def restored(rescue: float) -> str:
        return _ratio(rescue / drop if drop >= MIN_DROP else math.nan)

    runs = n * results[0].request.draws
    sites = _best(_sites(rows_of_all, runs), best)
    rows = [[f"L{s.layer}", s.site, restored(s.rescue), _signed(s.rescue)] for s in named_rows(sites)]
    lines += ["", "Best sites (layer patch; mean rescue ÷ mean drop)"]
    lines += columns(["layer", "position", "restoration", "rescue"], rows)
    experts = _best(_experts(rows_of_all, runs), best)
    if len(experts):
        rows = [
            [expert_name(e.layer, e.expert), restored(e.rescue), _signed(e.rescue), f"{e.active}/{n}"]
            for e in named_rows(experts)
        ]
        lines += ["", "Best experts at the last position (facts without the expert count 0)"]
        lines += columns(["expert", "restoration", "rescue", "clean-active"], rows)
    return "\n".join(lines)


def _stacked(results: Sequence[TraceResult]) -> pd.DataFrame:
    """The frames of all results in one; `fact`: index of the result, `last`, `last_subject`: whether pos is that."""
    columns = ["kind", "draw", "layer", "pos", "expert", "clean_active", "contrast", "rescue"]
    lengths = [len(r.frame) for r in results]
    out = pd.concat([r.frame[columns] for r in results], ignore_index=True)
    out["fact"] = np.repeat(np.arange(len(results)), lengths)
    last = np.repeat([len(r.provenance.tokens) - 1 for r in results], lengths)
    last_subject = np.repeat([max(r.provenance.subject_positions) for r in results], lengths)
    pos = out.pos.astype("Float64").fillna(-1).astype(int).to_numpy()
    out["last"], out["last_subject"] = pos == last, pos == last_subject
    return out


def _sites(rows: pd.DataFrame, runs: int) -> pd.DataFrame:
    """Mean rescue over `runs` (facts × draws) of the layer patch at the last subject token and at the last token."""
    layer = rows[rows.kind == "layer"]
    parts = []
    for column, site in (("last_subject", "last subject token"), ("last", "last token")):
        sums = layer[layer[column]].groupby("layer").rescue.sum() / runs
        parts.append(sums.reset_index().assign(site=site))
    return pd.concat(parts, ignore_index=True)


def _experts(rows: pd.DataFrame, runs: int) -> pd.DataFrame:
    """Per expert at the last position: sum of rescues ÷ `runs` (facts × draws); `active`: facts where clean-active.

    A run without a row for an expert has it routed neither in its clean nor in its corrupt run: its rescue is 0.
    """
    experts = rows[(rows.kind == "expert") & rows["last"]]
    grouped = experts.groupby(["layer", "expert"])
    out = (grouped.rescue.sum() / runs).reset_index()
    active = experts[experts.clean_active.astype("boolean").fillna(False).astype(bool)]
    counts = active.groupby(["layer", "expert"]).fact.nunique().rename("active").reset_index()
    return out.merge(counts, on=["layer", "expert"], how="left").fillna({"active": 0}).astype({"active": int})


def _best(rows: pd.DataFrame, n: int) -> pd.DataFrame:
    return rows.sort_values("rescue", ascending=False, kind="stable").head(n)


def _object(token: str, whole: str | None) -> str:
    """The object's token, starred where it is only the first one of the object."""
    return repr(token) + ("" if whole is None or token.strip() == whole.strip() else "*")


def _prompt(result: TraceResult) -> str:
    """The prompt with the subject in brackets."""
    from .prompts import subject_span

    fact = result.request.fact
    start, end = subject_span(fact)
    return visible(f"{fact.text[:start]}[{fact.text[start:end]}]{fact.text[end:]}")


def _run(result: TraceResult, run: str) -> str:
    rows = result.runs[result.runs.run == run]
    p, mean = float(rows.p_true.mean()), len(rows) > 1
    rank = f"rank {rows.rank_true.mean():.1f}" if mean else f"rank {int(rows.rank_true.iloc[0])}"
    top = result.next_tokens[(result.next_tokens.run == run) & (result.next_tokens["rank"] == 1)]
    first = ", ".join(dict.fromkeys(repr(str(t)) for t in top.token.head(3)))
    return f"P(true) {p:.3g}, {rank}" + (f"; most probable: {first}" if first else "")


def _position(result: TraceResult, pos: int) -> str:
    token = result.provenance.tokens[pos]
    role = ""
    if pos == len(result.provenance.tokens) - 1:
        role = " (last)"
    elif pos == max(result.provenance.subject_positions):
        role = " (last subject)"
    elif pos in result.provenance.subject_positions:
        role = " (subject)"
    return f"{pos} {_shorten(repr(token), 24)}{role}"


def _block(title: str, headings: list[str], rows: list[list[str]], draws: int) -> list[str]:
    """A titled table; the column with the spread over draws (the fifth) only where there are several."""
    headings = [*headings[:4], "over draws", *headings[4:]]
    if draws == 1:
        headings, rows = headings[:4] + headings[5:], [r[:4] + r[5:] for r in rows]
    return [title, *columns(headings, rows)]


def patches_summary(results: Sequence[PatchResult]) -> str:
    """Interventions: one line per patch, means over draws and facts (restoration: ratio of means)."""
    table = pd.concat([result.frame.assign(fact=i) for i, result in enumerate(results)], ignore_index=True)
    score = results[0].score
    shown = score.replace("_", "-")
    ends = table[table.name.isin(["clean", "corrupt"])].groupby("name")[score].mean()
    per_draw = table[table.name == "corrupt"].set_index(["fact", "draw"])[score]
    clean = table[table.name == "clean"].set_index("fact")[score]
    n, draws = len(results), results[0].request.draws
    number = _signed if score == "contrast" else "{:.4g}".format
    how = visible(corruption(results[0])) if n == 1 else results[0].request.corruption
    lines = [
        f"{n} fact{'s' if n > 1 else ''} · {how} · {draws} draw{'s' if draws > 1 else ''} · clean {shown} "
        f"{number(ends['clean'])}, corrupt {number(ends['corrupt'])}",
        "",
    ]
    rows = []
    for name, some in table[~table.name.isin(["clean", "corrupt"])].groupby("name", sort=False):
        run = some.run.iloc[0]
        base = clean.loc[some.fact].to_numpy()
        if run == "corrupt":
            base = base - per_draw.loc[list(zip(some.fact, some.draw, strict=True))].to_numpy()
        whole = base.mean()
        divides = is_defined(whole, score) if run == "corrupt" else abs(whole) >= LEAST_DROP[score]
        ratio = some.rescue.mean() / whole if divides else math.nan
        means = [number(some[score].mean()), number(some.rescue.mean()), _ratio(ratio)]
        rows.append([visible(str(name)), run, *means])
    lines += columns(["patch", "run", shown, "rescue", "restoration"], rows)
    if floor := rounding(results[0].provenance):
        lines.append(f"  Noise floor of a single rescue: {floor}.")
    if score == "rank":
        lines.append("  Rank 1 is the most probable token: a negative rescue lifts the true object.")
    if (table[~table.name.isin(["clean", "corrupt"])].run == "clean").any():
        lines.append(f"  Patches of the clean run: rescue is the change of its {shown}, restoration that ÷ {shown}.")
    return "\n".join(lines)


def minimal_summary(results: Sequence[MinimalResult]) -> str:
    """Minimal sets: each fact's curve, beside random sets of the same sizes."""
    blocks = []
    for result in results:
        where, request, curve = result.provenance, result.request, result.curve
        draws = f"{request.draws} draw{'s' if request.draws > 1 else ''}"
        n, tried = len(result.candidates), int(result.candidates.considered.sum())
        lines = [
            f"{_prompt(result)} → {where.true_token!r} (true), {where.foil_token!r} (foil)",
            f"case_id {request.fact.case_id} · {visible(corruption(result))} · {draws} · drop {_signed(result.drop)} · "
            f"{n} clean-active experts of {result.scope}" + (f", {tried} tried" if tried < n else ""),
        ]
        headings = ["size", "joins", "position", "restoration", "rescue", "random sets", "sd", "min", "max"]
        rows = [
            [
                str(r.size), r.name, _position(result, r.pos), _ratio(r.restoration), _signed(r.rescue),
                _ratio(r.random_restoration), "–" if math.isnan(r.random_sd) else f"{r.random_sd:.3f}",
                _ratio(r.random_min), _ratio(r.random_max),
            ]
            for r in named_rows(curve)
        ]  # fmt: skip
        lines += columns(headings, rows) if rows else []
        if result.reached:
            lines.append(f"{len(curve)} expert{'s' if len(curve) > 1 else ''} restore {result.target:g} of the drop.")
        elif rows:
            lines.append(f"{result.target:g} is not reached.")
        blocks.append("\n".join([*lines, *result.notes]))
    return "\n\n".join(blocks)


def columns(headings: list[str], rows: list[list[str]]) -> list[str]:
    """A table of texts as lines of equal columns."""
    table = [headings, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(headings))]
    return ["  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in table]


def _spread(row) -> str:
    return "" if row.draws == 1 else f"{_signed(row.rescue_min)} to {_signed(row.rescue_max)}"


def _signed(value: float) -> str:
    return f"{value:+.3f}"


def _ratio(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:+.3f}"


def _shorten(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
