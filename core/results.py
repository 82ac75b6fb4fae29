"""The answer: long tables with one row per (fact, draw, kind, layer, pos, expert), and where they come from.

The same tables feed the charts, the exports and the command line. Nothing here runs a model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from . import texts as _texts  # noqa: F401 - sets it
from .remembered import remembered
from .requests import TraceRequest

MIN_DROP = 0.05
"""Below this drop (logits) a restoration is undefined and shown as missing (protocol.md)."""
LEAST_DROP = {"contrast": MIN_DROP, "log_probability": MIN_DROP, "probability": 0.005, "rank": 1.0}
"""The same for every score that a patch may be measured by (in its own unit)."""

FRAME_COLUMNS = [
    "case_id", "kind", "draw", "layer", "pos", "token_id", "token", "expert", "clean_active",
    "router_weight_clean", "router_weight_corrupt", "true_logit", "foil_logit", "contrast", "rescue", "restoration",
    "direct",
]  # fmt: skip
"""Columns of `TraceResult.frame`. `kind`: clean, corrupt, layer, expert, shared. `draw` is missing on the clean
row, `layer`/`pos` on clean and corrupt rows, `expert` wherever no single routed expert is meant. Logits, contrast
and rescue in logits; restoration has no unit. `direct` (expert and shared rows): the part of the rescue that reaches
the logits without a later layer, in logits (direct logit attribution: norm scale and slope of a soft-cap as in the
corrupt run; 0 at other positions than the last; missing where a norm stands between the block and the stream). The
remainder, rescue − direct, is due to later layers and to the norm's rescaling."""

ROUTING_COLUMNS = ["run", "draw", "layer", "pos", "slot", "expert", "router_weight", "margin", "near_tie"]
"""Columns of `TraceResult.routing`. `run`: clean or corrupt; `margin`: score of the last chosen expert minus that
of the first not chosen, in the units of the router's own selection score (missing where the family's router does
not select by top-k); `near_tie`: the two differ by at most one bfloat16 rounding step."""

NEXT_TOKEN_COLUMNS = ["run", "draw", "rank", "token_id", "token", "probability"]
"""Columns of `TraceResult.next_tokens`: the most probable next tokens of each run, rank 1 first."""


@dataclass(frozen=True)
class Provenance:
    """Where numbers come from; stored with every row set.

    `versions`: python, torch, transformers, ... ; `implementation`: attention and experts implementation;
    `tokens`/`token_ids`: what the model saw; `noise_sigma`: std of the added noise, in embedding units (0: none).
    `noise_floor`: rescues below it (logits) are within rounding; `noise_floor_largest`: the most that rounding was
    seen to move one (see `core.noise_floor`; None in answers from before it was measured). `quantisation`: number
    formats of the weights where some are quantised. `placement`: where the layers' weights were (`memory` or `disk`);
    `bytes_read`: of weights read from the disk for this answer and those that were computed together with it.
    `replacements`: the subjects in the subject's place, one per draw, and `replaced_ids` the prompts with them; empty
    where the corruption is noise.
    """

    model: str
    fingerprint: str
    revision: str | None
    dtype: str
    device: str
    versions: dict[str, str]
    implementation: dict[str, str]
    created: str
    noise_sigma: float
    n_layers: int
    moe_layers: list[int]
    n_experts: int
    top_k: int
    has_shared: bool
    token_ids: list[int]
    tokens: list[str]
    subject_positions: list[int]
    true_id: int
    foil_id: int
    true_token: str
    foil_token: str
    notes: list[str] = field(default_factory=list)
    noise_floor: float | None = None
    noise_floor_largest: float | None = None
    quantisation: str = ""
    placement: str = "memory"
    bytes_read: int = 0
    replacements: list[str] = field(default_factory=list)
    replaced_ids: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True)
class TraceResult:
    """The answer to one `TraceRequest`. `runs` has one entry per run: clean first, then each draw's corrupt
    run, with `p_true` (probability of the true object's token) and `rank_true` (1 = most probable)."""

    request: TraceRequest
    provenance: Provenance
    frame: pd.DataFrame
    routing: pd.DataFrame
    next_tokens: pd.DataFrame
    runs: pd.DataFrame
    cached: bool = False

    @property
    @remembered
    def clean_contrast(self) -> float:
        """logit(true) − logit(foil) of the clean run."""
        return float(self.frame.loc[self.frame.kind == "clean", "contrast"].iloc[0])

    @property
    @remembered
    def corrupt_contrast(self) -> float:
        """The same of the corrupt runs, mean over draws."""
        return float(self.frame.loc[self.frame.kind == "corrupt", "contrast"].mean())

    @property
    @remembered
    def drop(self) -> float:
        """Clean minus corrupt contrast, mean over draws."""
        return self.clean_contrast - self.corrupt_contrast


def complete(
    rows: pd.DataFrame, *, clean_contrast: float | np.ndarray, corrupt_contrast: float | np.ndarray
) -> pd.DataFrame:
    """Add contrast, rescue and restoration to rows; the contrasts of each row's own draw, or one for all.

    rescue = contrast − corrupt contrast; restoration = rescue ÷ drop, missing where drop < `MIN_DROP`.
    A clean row has restoration 1 where it is defined; a corrupt one 0.
    """
    rows = rows.copy()
    drop = np.broadcast_to(np.asarray(clean_contrast) - corrupt_contrast, len(rows))
    rows["contrast"] = rows.true_logit - rows.foil_logit
    rows["rescue"] = rows.contrast - corrupt_contrast
    rows["restoration"] = rows.rescue / np.where(drop >= MIN_DROP, drop, np.nan)
    return rows


def is_defined(whole: np.ndarray | float, score: str = "contrast") -> np.ndarray:
    """Whether a restoration is defined: `whole`, the clean minus the corrupt value, is large enough to divide by.

    Ranks are better when lower.
    """
    return np.asarray(whole) * (-1 if score == "rank" else 1) >= LEAST_DROP[score]


def expert_name(layer: int, expert: int | None) -> str:
    """L44E069: the layer as it is, the expert padded to three digits; the shared expert is L44shared."""
    return f"L{layer}shared" if expert is None else f"L{layer}E{expert:03d}"


def provenance_from_dict(data: dict[str, Any]) -> Provenance:
    """Read back what `dataclasses.asdict` wrote."""
    return Provenance(**data)
