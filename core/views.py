"""What the pictures and tables show: a `TraceResult` turned into plain tables, one per picture.

Pure pandas: no charts, no pages, no model. Charts draw these tables, downloads write them, and tests compare them
with the long frame. All columns are plain numbers, booleans and strings (missing: NaN), ready for any reader.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from .formats import bound, logits, typed, weight
from .links import SHARED
from .remembered import remembered
from .results import MIN_DROP, Provenance, TraceResult, expert_name

PAPER_CLEAN, PAPER_DROP = 1.0, 0.5
"""The paper's filter: a fact counts with a clean contrast and a drop of at least this (protocol.md, "The study")."""

BOTH, CLEAN_ONLY, CORRUPT_ONLY, NOT_ROUTED = "clean and corrupt", "clean only", "corrupt only", "not routed"
SHARED_INDEX = -1
"""Stands for the shared expert in the integer column `expert`."""

MEASURES = [
    "restoration", "rescue", "rescue_sd", "rescue_min", "rescue_max", "draws", "contrast",
    "true_logit", "foil_logit", "true_shift", "foil_shift",
]  # fmt: skip
"""Columns that every table of patches has. `true_shift`, `foil_shift`: the patched run's logit minus the corrupt
run's, mean over draws, so that rescue = true_shift − foil_shift. `rescue_sd` is missing for one draw."""


def token_label(token: str, pos: int) -> str:
    """A short unique name of a position: the piece (a space shown as ·) and the index."""
    shown = visible(token)
    return f"{shown if len(shown) <= 16 else shown[:15] + '…'} ({pos})"


def visible(token: str) -> str:
    """A token's piece with its blanks made visible."""
    shown = token.replace(" ", "·").replace("Ġ", "·").replace("▁", "·").replace("\n", "↵").replace("\t", "→")
    return "".join(c if c.isprintable() else "�" for c in shown) or "∅"


def token_labels(result: TraceResult) -> list[str]:
    """One `token_label` per position."""
    return [token_label(token, pos) for pos, token in enumerate(result.provenance.tokens)]


def last_pos(result: TraceResult) -> int:
    """The last prompt position."""
    return len(result.provenance.tokens) - 1


def expert_positions(result: TraceResult) -> list[int]:
    """The positions at which this result has expert patches."""
    frame = result.frame
    return sorted(int(pos) for pos in frame.loc[frame.kind.isin(["expert", "shared"]), "pos"].unique())


def filter_problems(result: TraceResult) -> list[str]:
    """Sentences about what of the paper's filter this fact fails; empty when it passes."""
    out = []
    if result.clean_contrast < PAPER_CLEAN:
        out.append(f"clean contrast {logits(result.clean_contrast)} is below {PAPER_CLEAN:g}")
    if result.drop < PAPER_DROP:
        out.append(f"drop {logits(result.drop)} is below {PAPER_DROP:g}")
    return out


VISIBLE_ROUNDING = 1e-3
"""What rounding moves by so much (logits) or more could be mistaken for an effect: it is said beside the figures."""


def rounding(where: Provenance) -> str:
    """What the noise floor says, in words; empty where it was not measured."""
    if where.noise_floor is None or where.noise_floor_largest is None:
        return ""
    return (
        f"rounding in {where.dtype} moves 95 % of rescues by less than {bound(where.noise_floor)} logits "
        f"(at most {bound(where.noise_floor_largest)} seen)"
    )


def corruption(result: TraceResult) -> str:
    """How the corrupt runs came about, in words."""
    request, names = result.request, result.provenance.replacements
    if request.corruption == "noise":
        return f"noise {typed(request.noise)}"
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    how = "" if request.replacement else " (chosen)"
    return f"subject replaced by {shown}{how}"


def patches(result: TraceResult, kinds: tuple[str, ...], pos: int | None = None) -> pd.DataFrame:
    """`patches_of` some kinds, at one position or at all."""
    found = patches_of(result, kinds)
    return found if pos is None else found[found.pos == pos].reset_index(drop=True)


@remembered
def patches_of(result: TraceResult, kinds: tuple[str, ...]) -> pd.DataFrame:
    """Patches of some kinds, draws aggregated: layer, pos, kind, expert, router weights, `MEASURES` and `direct`.

    Means run over all draws of the request. A draw without a row is one in which the expert is routed neither in
    the clean nor in the corrupt run: its update is zero there, so it counts with rescue 0. restoration is mean
    rescue ÷ mean drop.
    """
    frame = result.frame
    corrupt = frame[frame.kind == "corrupt"]
    n = len(corrupt)
    rows = frame[frame.kind.isin(kinds)]
    draw = pd.Index(_numbers(corrupt.draw)).get_indexer(_numbers(rows.draw))
    shifts = {
        which: rows[f"{which}_logit"].to_numpy(float) - corrupt[f"{which}_logit"].to_numpy(float)[draw]
        for which in ("true", "foil")
    }
    keys = {name: _numbers(rows[name]).astype(int) for name in ("layer", "pos")}
    keys["kind"] = rows.kind.map({kind: i for i, kind in enumerate(kinds)}).to_numpy(int)
    keys["expert"] = np.nan_to_num(_numbers(rows.expert), nan=SHARED_INDEX).astype(int)
    group = np.zeros(len(rows), int)
    for values in keys.values():
        group = group * (int(values.max(initial=0)) + 2) + values + 1
    group = pd.factorize(group)[0]
    first = np.unique(group, return_index=True)[1]
    measured = pd.DataFrame(
        {
            "router_weight_corrupt": _numbers(rows.router_weight_corrupt),
            "rescue": _numbers(rows.rescue),
            "square": _numbers(rows.rescue) ** 2,
            "true_shift": shifts["true"],
            "foil_shift": shifts["foil"],
            "direct": _numbers(rows.direct),
        }
    )
    sums = measured.groupby(group).sum()  # one call for all columns is several times as fast as one for each
    rescues = measured.rescue.groupby(group)
    counts = np.bincount(group, minlength=len(first))
    with_direct = np.bincount(group, weights=measured.direct.notna(), minlength=len(first))
    weight = pd.Series(_numbers(rows.router_weight_clean)).groupby(group).mean()
    partial = counts < n
    out = pd.DataFrame({name: values[first] for name, values in keys.items()})
    out["kind"] = rows.kind.iloc[first].reset_index(drop=True)
    out["clean_active"] = (rows.clean_active.astype("boolean").fillna(False).to_numpy(bool))[first]
    out["router_weight_clean"] = weight.to_numpy()
    out["router_weight_corrupt"] = sums.router_weight_corrupt / n
    out["rescue"] = sums.rescue / n
    variance = (sums.square - n * out.rescue**2) / (n - 1) if n > 1 else pd.Series(np.nan, index=out.index)
    out["rescue_sd"] = np.sqrt(variance.clip(lower=0))
    for name, found, end in (("min", rescues.min(), np.minimum), ("max", rescues.max(), np.maximum)):
        out[f"rescue_{name}"] = np.where(partial, end(found, 0.0), found)
    out["true_shift"], out["foil_shift"] = sums.true_shift / n, sums.foil_shift / n
    out["direct"] = (sums.direct / n).where(with_direct == counts)
    out["true_logit"] = corrupt.true_logit.mean() + out.true_shift
    out["foil_logit"] = corrupt.foil_logit.mean() + out.foil_shift
    out["contrast"] = out.true_logit - out.foil_logit
    out["draws"] = n
    out["restoration"] = out.rescue / result.drop if result.drop >= MIN_DROP else np.nan
    keep = ["layer", "pos", "kind", "expert", "clean_active", "router_weight_clean", "router_weight_corrupt"]
    return out[[*keep, *MEASURES, "direct"]]


def _numbers(column: pd.Series) -> np.ndarray:
    """A column as floats, NaN where missing."""
    return column.to_numpy(dtype=float, na_value=np.nan)


@remembered
def layer_cells(result: TraceResult) -> pd.DataFrame:
    """The layer × token map: one row per (MoE layer, position), with token, label, `subject`, margins, experts.

    `margin_clean`, `margin_corrupt` (smallest over draws), `near_tie_clean`, `near_tie_corrupt` (in any draw);
    `experts_clean`: the routed experts with their weights, heaviest first.
    """
    cells = patches(result, ("layer",)).drop(columns=["kind", "expert", "clean_active", "direct"])
    cells = cells.drop(columns=["router_weight_clean", "router_weight_corrupt"])
    labels, tokens = token_labels(result), result.provenance.tokens
    cells.insert(2, "token", [tokens[p] for p in cells.pos])
    cells.insert(3, "label", [labels[p] for p in cells.pos])
    cells["subject"] = cells.pos.isin(result.provenance.subject_positions)
    cells = cells.merge(margins(result), on=["layer", "pos"], how="left")
    for name in ("near_tie_clean", "near_tie_corrupt"):
        cells[name] = cells[name].astype("boolean").fillna(False).astype(bool)
    clean = result.routing[result.routing.run == "clean"].sort_values("router_weight", ascending=False)
    text = [f"E{e:03d} {weight(w)}" for e, w in zip(clean.expert, clean.router_weight, strict=True)]
    listed = clean.assign(text=text).groupby(["layer", "pos"]).text.agg(", ".join).rename("experts_clean")
    return cells.merge(listed.reset_index(), on=["layer", "pos"], how="left").sort_values(
        ["layer", "pos"], ignore_index=True
    )


@remembered
def margins(result: TraceResult) -> pd.DataFrame:
    """Routing margins per (layer, pos): clean, and the smallest of the corrupt draws; near ties of each."""
    routing = result.routing.astype({"margin": float})
    grouped = routing.groupby(["run", "layer", "pos"]).agg(margin=("margin", "min"), near_tie=("near_tie", "any"))
    grouped = grouped.reset_index()
    parts = []
    for run in ("clean", "corrupt"):
        part = grouped[grouped.run == run].drop(columns="run")
        parts.append(part.rename(columns={"margin": f"margin_{run}", "near_tie": f"near_tie_{run}"}))
    return parts[0].merge(parts[1], on=["layer", "pos"], how="outer")


@remembered
def expert_grid(result: TraceResult, pos: int) -> pd.DataFrame:
    """The layer × expert map of one position: every expert of every MoE layer, and the shared one where there is one.

    `status` says where the expert is routed (`BOTH`, `CLEAN_ONLY`, ...), `corrupt_draws` in how many corrupt draws;
    measures are missing where it is not routed. `share`: rescue ÷ the layer patch's rescue at the same cell.
    `column`: the expert's index as text, or `shared`.
    """
    prov = result.provenance
    found = patches(result, ("expert", "shared"), pos).drop(columns=["pos", "kind"])
    experts = list(range(prov.n_experts)) + ([SHARED_INDEX] if prov.has_shared else [])
    grid = pd.MultiIndex.from_product([prov.moe_layers, experts], names=["layer", "expert"]).to_frame(index=False)
    grid = grid.merge(found, on=["layer", "expert"], how="left")
    routing = result.routing[result.routing.pos == pos]
    clean = routing[routing.run == "clean"].groupby(["layer", "expert"]).router_weight.first()
    corrupt = routing[routing.run == "corrupt"].groupby(["layer", "expert"]).router_weight.agg(["sum", "size"])
    n = result.request.draws
    index = pd.MultiIndex.from_frame(grid[["layer", "expert"]])
    grid["router_weight_clean"] = clean.reindex(index).fillna(0.0).to_numpy(dtype=float)
    grid["router_weight_corrupt"] = (corrupt["sum"].reindex(index).fillna(0.0) / n).to_numpy(dtype=float)
    grid["corrupt_draws"] = corrupt["size"].reindex(index).fillna(0).to_numpy(dtype=int)
    in_clean = clean.reindex(index).notna().to_numpy()
    in_corrupt = grid.corrupt_draws.to_numpy() > 0
    grid["clean_active"] = in_clean
    grid["status"] = np.select(
        [in_clean & in_corrupt, in_clean, in_corrupt], [BOTH, CLEAN_ONLY, CORRUPT_ONLY], default=NOT_ROUTED
    )
    shared = grid.expert == SHARED_INDEX
    grid.loc[shared, "status"] = "always on"
    grid.loc[shared, ["router_weight_clean", "router_weight_corrupt"]] = np.nan
    grid["column"] = [SHARED if e == SHARED_INDEX else str(e) for e in grid.expert]
    grid["name"] = [
        expert_name(la, None if e == SHARED_INDEX else e) for la, e in zip(grid.layer, grid.expert, strict=True)
    ]
    layer = patches(result, ("layer",), pos).set_index("layer").rescue
    whole = layer.reindex(grid.layer).to_numpy(dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        grid["share"] = np.where(np.abs(whole) >= 0.01, grid.rescue / whole, np.nan)
    return grid.merge(margins(result)[lambda m: m.pos == pos].drop(columns="pos"), on="layer", how="left")


@remembered
def active_experts(result: TraceResult, layer: int, pos: int) -> pd.DataFrame:
    """One cell's experts that are routed in the clean or in a corrupt run (and the shared one), best rescue first."""
    grid = expert_grid(result, pos)
    rows = grid[(grid.layer == layer) & (grid.status != NOT_ROUTED)]
    columns = ["name", "expert", "status", "router_weight_clean", "router_weight_corrupt", "corrupt_draws"]
    rows = rows[[*columns, "share", *MEASURES, "direct"]]
    return rows.sort_values("rescue", ascending=False, ignore_index=True, kind="stable")


@remembered
def routing_strip(result: TraceResult, layer: int) -> pd.DataFrame:
    """Tokens × experts at one layer: one row per (position, expert) routed in the clean or in a corrupt run.

    `change`: `BOTH`, `CLEAN_ONLY` (in no corrupt draw) or `CORRUPT_ONLY`; `corrupt_draws` of `draws`; router weights
    (corrupt: mean over all draws, 0 where not routed); margins and near ties of the position.
    """
    n = result.request.draws
    rows = result.routing[result.routing.layer == layer]
    clean = rows[rows.run == "clean"].groupby(["pos", "expert"]).router_weight.first().rename("router_weight_clean")
    corrupt = rows[rows.run == "corrupt"].groupby(["pos", "expert"]).router_weight.agg(["sum", "size"])
    out = pd.concat([clean, corrupt], axis=1).fillna(0.0).reset_index()
    out["router_weight_corrupt"] = out["sum"].astype(float) / n
    out["corrupt_draws"] = out["size"].astype(int)
    out["draws"] = n
    in_clean, in_corrupt = out.router_weight_clean > 0, out.corrupt_draws > 0
    out["change"] = np.select([in_clean & in_corrupt, in_clean], [BOTH, CLEAN_ONLY], default=CORRUPT_ONLY)
    out["name"] = [expert_name(layer, int(e)) for e in out.expert]
    labels, tokens = token_labels(result), result.provenance.tokens
    out["token"] = [tokens[p] for p in out.pos]
    out["label"] = [labels[p] for p in out.pos]
    out = out.merge(margins(result)[lambda m: m.layer == layer].drop(columns="layer"), on="pos", how="left")
    return out.drop(columns=["sum", "size"]).sort_values(["pos", "expert"], ignore_index=True)


def best_cell(result: TraceResult) -> tuple[int, int] | None:
    """(layer, pos) of the highest mean rescue, None without cells."""
    cells = patches(result, ("layer",))
    if cells.empty:
        return None
    best = cells.loc[cells.rescue.idxmax()]
    return int(best.layer), int(best.pos)


def next_tokens(result: TraceResult, top: int = 5) -> dict[str, list[tuple[str, float]]]:
    """(token, probability) of both runs, most probable first. Corrupt: mean over draws of the listed probabilities."""
    out = {}
    for run in ("clean", "corrupt"):
        rows = result.next_tokens[result.next_tokens.run == run]
        n = 1 if run == "clean" else result.request.draws
        by_token = rows.groupby(["token_id", "token"], sort=False).probability.sum() / n
        by_token = by_token.sort_values(ascending=False, kind="stable").head(top)
        out[run] = [(str(token), float(p)) for (_, token), p in by_token.items()]
    return out


def p_true(result: TraceResult) -> tuple[float, float]:
    """Probability of the true object's token in the clean run, and in the corrupt runs (mean over draws)."""
    by_run = result.runs.groupby("run").p_true.mean()
    return float(by_run["clean"]), float(by_run["corrupt"])
