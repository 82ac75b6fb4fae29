"""From stored or fresh parts to a `TraceResult`: the one place where tables are put together.

A cached answer and a fresh one go through the same code. Knows pandas and the request, not torch, not the store's
file. Parts: `ends` (clean and corrupt rows), `layer` (all cells), `experts@POS` (every expert routed there).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from .requests import TraceRequest
from .results import (
    FRAME_COLUMNS,
    MIN_DROP,
    NEXT_TOKEN_COLUMNS,
    ROUTING_COLUMNS,
    TraceResult,
    complete,
    provenance_from_dict,
)  # fmt: skip

_TYPES = {
    "kind": "str", "layer": "Int64", "pos": "Int64", "expert": "Int64", "clean_active": "boolean",
    "router_weight_clean": "float64", "router_weight_corrupt": "float64", "true_logit": "float64",
    "foil_logit": "float64", "direct": "float64",
}  # fmt: skip

ENDS = "ends"
LAYER = "layer"


def experts_part(pos: int) -> str:
    """Name of the row set with the expert patches at token index `pos`."""
    return f"experts@{pos}"


def position_of(part: str) -> int:
    """The token index of an `experts_part`."""
    return int(part.removeprefix("experts@"))


def parts_of(request: TraceRequest, n_tokens: int) -> list[str]:
    """The row sets that answer a request about a prompt of `n_tokens`."""
    if request.experts == "none":
        positions: Sequence[int] = ()
    elif request.experts == "last":
        positions = (n_tokens - 1,)
    elif request.experts == "all":
        positions = range(n_tokens)
    else:
        positions = request.experts  # type: ignore[assignment]
    return [ENDS, LAYER, *(experts_part(pos) for pos in positions)]


def assemble(
    request: TraceRequest,
    provenance: dict[str, Any],
    *,
    draws: Sequence[Sequence[pd.DataFrame]],
    run_infos: Sequence[dict[str, Any]],
    routings: Sequence[pd.DataFrame],
    ranks: Sequence[int],
    cached: bool,
) -> TraceResult:
    """Put one answer together.

    `draws[j]`: the row sets of draw j. `run_infos`, `routings`, `ranks`: of the clean run, then of each corrupt one;
    an info has `log_normaliser` (log Σ exp of the logits) and `top` ([[token id, piece, probability], ...]).
    """
    prov = provenance_from_dict(provenance)
    frame = long_frame(request.fact.case_id, prov.tokens, prov.token_ids, draws)
    names = [("clean", None), *(("corrupt", j) for j in range(len(draws)))]
    routing = pd.concat(
        [table.assign(run=run, draw=_draw(draw)) for (run, draw), table in zip(names, routings, strict=True)],
        ignore_index=True,
    )[ROUTING_COLUMNS].astype({"near_tie": "boolean", "draw": "Int64"})
    top = [
        (run, draw, rank + 1, *entry)
        for (run, draw), info in zip(names, run_infos, strict=True)
        for rank, entry in enumerate(info["top"])
    ]
    next_tokens = pd.DataFrame(top, columns=NEXT_TOKEN_COLUMNS).astype({"draw": "Int64"})
    logits = frame.loc[frame.kind.isin(["clean", "corrupt"]), "true_logit"].tolist()  # in the order of `names`
    runs = pd.DataFrame({
        "run": [run for run, _ in names],
        "draw": pd.array([draw for _, draw in names], dtype="Int64"),
        "p_true": [math.exp(v - info["log_normaliser"]) for v, info in zip(logits, run_infos, strict=True)],
        "rank_true": list(ranks),
    })  # fmt: skip
    return TraceResult(request, prov, frame, routing, next_tokens, runs, cached)


def _draw(draw: int | None) -> Any:
    return pd.NA if draw is None else draw


def long_frame(
    case_id: int, tokens: list[str], ids: list[int], draws: Sequence[Sequence[pd.DataFrame]]
) -> pd.DataFrame:
    """The long table (`FRAME_COLUMNS`): clean row once, then each draw's corrupt row and patches. Every draw's row sets
    have a clean row, a corrupt row, and the columns of `_TYPES`."""
    frame = pd.concat([part for parts in draws for part in parts], ignore_index=True).astype(_TYPES)
    draw = np.repeat(np.arange(len(draws)), [sum(map(len, parts)) for parts in draws])
    contrast = (frame.true_logit - frame.foil_logit).to_numpy()
    ends = {kind: np.empty(len(draws)) for kind in ("clean", "corrupt")}
    for kind, values in ends.items():
        at = (frame.kind == kind).to_numpy()
        values[draw[at]] = contrast[at]
    frame = complete(frame, clean_contrast=ends["clean"][draw], corrupt_contrast=ends["corrupt"][draw])
    frame["draw"] = draw
    clean = frame.kind == "clean"
    mean_rescue = frame.loc[clean, "rescue"].mean()  # the mean drop: the clean run is the same in every draw
    mean_restoration = 1.0 if mean_rescue >= MIN_DROP else np.nan
    frame = frame[~clean | (frame.draw == 0)].copy()
    clean = frame.kind == "clean"
    frame["draw"] = frame["draw"].astype("Int64")
    frame.loc[clean, "draw"] = pd.NA
    frame.loc[clean, ["rescue", "restoration"]] = [mean_rescue, mean_restoration]
    order = {"clean": 0, "corrupt": 1, "layer": 2, "expert": 3, "shared": 4}
    frame["_kind"] = frame.kind.map(order)
    frame = frame.sort_values(["_kind", "draw", "layer", "pos", "expert"], na_position="last", kind="stable")
    frame["case_id"] = case_id
    at = frame.pos.to_numpy(dtype="float64", na_value=np.nan)
    frame["token"] = [None if math.isnan(p) else tokens[int(p)] for p in at]
    frame["token_id"] = pd.array([pd.NA if math.isnan(p) else ids[int(p)] for p in at], dtype="Int64")
    return frame[FRAME_COLUMNS].reset_index(drop=True)
