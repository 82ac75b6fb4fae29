"""The numbers of two traces side by side: cell by cell, expert by expert, and where their tokens were routed.

Pure pandas. Differences are b − a; a value that is missing on either side makes the difference missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from .. import views
from ..agreement import rank_correlation
from ..cells.tables import at_site
from ..derived import DerivedResult
from ..remembered import remembered
from ..results import TraceResult, expert_name
from ..sites import MOE
from .align import Alignment, align

SIDES = ("a", "b")
COMPARED = ("rescue", "restoration")
"""Measures of a cell that are subtracted."""
BOTH, ONLY_A, ONLY_B = "on both sides", "in a only", "in b only"


@dataclass(frozen=True, eq=False)
class Compared:
    """Two results. `same_model`: their models count as versions of one, whatever their names; `at_a`, `at_b`: the
    answers of the kind `site_map` that the layer × token maps show, None: the layer patches of the trace itself.

    Tables are made when they are first asked for. `no_cells`, `no_experts`: why cells, or experts, cannot be
    subtracted; empty where they can.
    """

    a: TraceResult
    b: TraceResult
    same_model: bool = False
    at_a: DerivedResult | None = None
    at_b: DerivedResult | None = None

    def side(self, name: str) -> TraceResult:
        """The result of side `a` or `b`."""
        return self.a if name == "a" else self.b

    def at(self, name: str) -> DerivedResult | None:
        """Where the map of side `a` or `b` comes from, if not from the trace itself."""
        return self.at_a if name == "a" else self.at_b

    def site(self, name: str) -> tuple[str, int]:
        """(site, window) of the layer × token map of side `a` or `b`."""
        at = self.at(name)
        return (MOE, 1) if at is None else (at.values["site"], at.values["window"])

    def mapped(self, name: str) -> TraceResult:
        """The result of side `a` or `b` with the cells that its layer × token map shows."""
        return self._mapped[name]

    @cached_property
    def _mapped(self) -> dict[str, TraceResult]:
        pairs = {"a": (self.a, self.at_a), "b": (self.b, self.at_b)}
        return {name: trace if at is None else at_site(trace, at) for name, (trace, at) in pairs.items()}

    @cached_property
    def layers(self) -> list[int]:
        """The layers that both maps have."""
        there = set(self.mapped("b").provenance.moe_layers)
        return [layer for layer in self.mapped("a").provenance.moe_layers if layer in there]

    @cached_property
    def alignment(self) -> Alignment:
        """Which tokens correspond."""
        return align(self.a, self.b)

    @cached_property
    def no_cells(self) -> str:
        """Why the layer × token maps cannot be subtracted."""
        left, right = self.a.provenance, self.b.provenance
        if left.n_layers != right.n_layers:
            return f"One model has {left.n_layers} layers, the other {right.n_layers}, so the layers do not correspond."
        one_site = self.site("a") == self.site("b")
        if one_site and self.mapped("a").provenance.moe_layers != self.mapped("b").provenance.moe_layers:
            return "The models have what is patched in different layers, so their layers do not correspond."
        if not self.layers:
            return "The two maps have no layer in common."
        return self.alignment.why_not

    @cached_property
    def no_experts(self) -> str:
        """Why experts of the two sides cannot be compared."""
        left, right = self.a.provenance, self.b.provenance
        shapes = [(p.n_layers, p.moe_layers, p.n_experts, p.has_shared) for p in (left, right)]
        if shapes[0] != shapes[1]:
            return "The models have other layers or other numbers of experts, so no expert corresponds to another."
        if left.model != right.model and left.fingerprint != right.fingerprint and not self.same_model:
            return "The experts of two different models do not correspond: their indices mean nothing to each other."
        return ""

    @property
    def could_be_versions(self) -> bool:
        """Whether only the names say that these are two models: their shapes are the same."""
        left, right = self.a.provenance, self.b.provenance
        shapes = [(p.n_layers, p.moe_layers, p.n_experts, p.top_k, p.has_shared) for p in (left, right)]
        different = left.model != right.model and left.fingerprint != right.fingerprint
        return different and shapes[0] == shapes[1]

    @cached_property
    def no_routing(self) -> str:
        """Why the routing of the two sides cannot be compared."""
        return self.no_experts or self.alignment.why_not

    @cached_property
    def cells(self) -> pd.DataFrame:
        """One row per layer and column of the shared axis: `pos_a`, `pos_b`, tokens, `subject`, and of each measure
        `_a`, `_b` and `_difference` (b − a). Empty where cells do not correspond."""
        if self.no_cells:
            return pd.DataFrame(columns=["layer", "column", "label", "pos_a", "pos_b", *_measured(COMPARED)])
        found = {side: views.layer_cells(self.mapped(side)).set_index(["layer", "pos"]) for side in SIDES}
        rows = [
            (layer, i, c.label, c.subject, c.a, c.b)
            for layer in self.layers
            for i, c in enumerate(self.alignment.columns)
        ]
        out = pd.DataFrame(rows, columns=["layer", "column", "label", "subject", "pos_a", "pos_b"])
        for side in SIDES:
            at = pd.MultiIndex.from_arrays([out.layer, out[f"pos_{side}"].astype("Int64")])
            table = found[side].reindex(at)
            out[f"token_{side}"] = table.token.to_numpy()
            for name in (*COMPARED, "contrast"):
                out[f"{name}_{side}"] = table[name].to_numpy(dtype=float)
        return _with_differences(out, COMPARED)

    @remembered
    def experts(self, pos_a: int, pos_b: int) -> pd.DataFrame:
        """Every expert of every layer at a position of each side, whose expert patches the results have to hold.

        `where`: on which side it is routed at all (clean or corrupt run); measures are missing where it is not.
        """
        keep = ["layer", "expert", "column", "name", "status", "router_weight_clean", *COMPARED]
        index = ["layer", "expert", "column", "name"]
        left, right = (views.expert_grid(r, pos)[keep] for r, pos in ((self.a, pos_a), (self.b, pos_b)))
        out = left.merge(right, on=index, suffixes=("_a", "_b"))
        routed = [(out[f"status_{side}"] != views.NOT_ROUTED).to_numpy() for side in SIDES]
        names = [BOTH, ONLY_A, ONLY_B]
        out["where"] = np.select([routed[0] & routed[1], *routed], names, default=views.NOT_ROUTED)
        return _with_differences(out, COMPARED)

    @cached_property
    def routing(self) -> pd.DataFrame:
        """One row per layer and corresponding position: the experts of the two clean runs.

        `same`: the same set; `jaccard`: |both| ÷ |either|; `both`, `only_a`, `only_b`: names. Empty where routing
        cannot be compared.
        """
        columns = ["layer", "column", "label", "pos_a", "pos_b", "same", "jaccard", "both", "only_a", "only_b"]
        if self.no_routing:
            return pd.DataFrame(columns=columns)
        chosen = {side: _clean_sets(self.side(side)) for side in SIDES}
        rows = []
        for layer in self.a.provenance.moe_layers:
            for i, c in enumerate(self.alignment.columns):
                if c.a is None or c.b is None:
                    continue
                left, right = chosen["a"][layer, c.a], chosen["b"][layer, c.b]
                parts = [_names(layer, some) for some in (left & right, left - right, right - left)]
                jaccard = len(left & right) / len(left | right)
                rows.append((layer, i, c.label, c.a, c.b, left == right, jaccard, *parts))
        return pd.DataFrame(rows, columns=columns)

    @cached_property
    def routing_layers(self) -> pd.DataFrame:
        """Per layer: `positions` compared, `same` (share with the same set of experts), `jaccard` (mean)."""
        grouped = self.routing.groupby("layer", sort=True)
        out = grouped.agg(positions=("same", "size"), same=("same", "mean"), jaccard=("jaccard", "mean"))
        return out.astype({"positions": int, "same": float, "jaccard": float}).reset_index()

    @cached_property
    def correlation(self) -> tuple[float, int]:
        """(Spearman's correlation of the rescues, number of cells) over the corresponding cells from the subject on:
        before it nothing is corrupted, so nothing can be rescued."""
        starts = [min(self.side(side).provenance.subject_positions) for side in SIDES]
        cells = self.cells
        if cells.empty:
            return float("nan"), 0
        cells = cells[(cells.pos_a >= starts[0]) & (cells.pos_b >= starts[1])]
        return rank_correlation(cells.rescue_a, cells.rescue_b), int(cells.rescue_difference.notna().sum())


def _clean_sets(result: TraceResult) -> dict[tuple[int, int], frozenset[int]]:
    rows = result.routing[result.routing.run == "clean"]
    grouped = rows.groupby(["layer", "pos"]).expert
    return {(int(layer), int(pos)): frozenset(map(int, group)) for (layer, pos), group in grouped}


def _names(layer: int, experts: frozenset[int]) -> str:
    return ", ".join(expert_name(layer, expert) for expert in sorted(experts))


def _measured(names: tuple[str, ...]) -> list[str]:
    return [f"{name}_{end}" for name in names for end in (*SIDES, "difference")]


def _with_differences(table: pd.DataFrame, names: tuple[str, ...]) -> pd.DataFrame:
    return table.assign(**{f"{name}_difference": table[f"{name}_b"] - table[f"{name}_a"] for name in names})
