"""The facts behind an average: one row per fact with what one patch did to it. Pandas only."""

from __future__ import annotations

import pandas as pd

from . import rows as table
from . import values
from .findings import Findings

SHOWN = ["scan_index", "case_id", "relation", "subject", "prompt", "true", "foil", "split", "clean_contrast", "drop"]
"""Columns that say which fact it is and how strong it is; prompt, true and foil where the facts are known."""


def behind(found: Findings, *, layer: int | None, expert: int | None) -> pd.DataFrame:
    """`SHOWN`, `pos` (the last prompt position), `layer_rescue` of the layer patch at `layer`, and of the patch of
    `expert` there: `expert_rescue` (0 where it is not clean-active), `clean_active`, `router_weight`. Logits, means
    over draws, both halves; strongest patch first. Missing where not measured."""
    facts = found.tables["facts"]
    out = facts[[name for name in SHOWN if name in facts]].set_index("scan_index", drop=False)
    main = found.rows[(found.rows.kind == table.LAYER) & (found.rows.stage == table.MAIN)]
    out["pos"] = main.drop_duplicates("scan_index").set_index("scan_index").pos.reindex(out.index).astype("Int64")
    if layer is not None:
        out["layer_rescue"] = values.per_fact(found.rows, table.LAYER, layer=layer).reindex(out.index)
    if layer is not None and expert is not None:
        experts = values.expert_table(found.rows, layer=layer)
        known = expert in experts.rescue
        measured = out.index.isin(experts.measured)
        rescue = experts.rescue[expert] if known else pd.Series(0.0, index=out.index[measured])
        out["expert_rescue"] = rescue.reindex(out.index)
        active = experts.active[expert] if known else pd.Series(False, index=out.index)
        out["clean_active"] = active.reindex(out.index).astype("boolean").where(measured)
        out["router_weight"] = experts.weight[expert].reindex(out.index) if known else float("nan")
    by = next((name for name in ("expert_rescue", "layer_rescue") if name in out), "scan_index")
    return out.sort_values(by, ascending=by == "scan_index", kind="stable", na_position="last").reset_index(drop=True)
