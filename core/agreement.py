"""Do noise and token replacement find the same sites? Three standard deviations of noise lie off what the model was
trained on; a replaced subject does not (protocol.md, "More pitfalls").

Compares two stored answers about one fact. Pure pandas.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from .results import MIN_DROP, TraceResult
from .views import best_cell, patches, token_labels

ENOUGH = 0.5
"""A map agrees with a cell that brings back at least this share of what its own best cell does."""


@dataclass(frozen=True)
class Agreement:
    """`noise_best`, `replace_best`: (layer, pos) of the highest mean rescue under each corruption. `noise_share`: what
    the replacement's best cell restores under noise, as a share of noise's own best; `replace_share`: the other way
    round. `correlation`: Spearman's, of the rescues of all cells. `agrees`: both shares reach `ENOUGH`."""

    noise_best: tuple[int, int]
    replace_best: tuple[int, int]
    noise_share: float
    replace_share: float
    correlation: float
    sentence: str

    @property
    def agrees(self) -> bool:
        return min(self.noise_share, self.replace_share) >= ENOUGH


def agreement(noise: TraceResult, replace: TraceResult) -> Agreement | None:
    """Compare the layer patches of one fact under both corruptions. None where a drop is below `MIN_DROP`, or nothing
    in the patchable cells rescues anything: then there are no best cells to compare.

    Raises `ValueError` for answers that are not about the same prompt, or not of these two corruptions.
    """
    kinds = noise.request.corruption, replace.request.corruption
    if kinds != ("noise", "replace") or noise.provenance.token_ids != replace.provenance.token_ids:
        raise ValueError(f"two corruptions of one prompt are needed, not {kinds}")
    if min(noise.drop, replace.drop) < MIN_DROP:
        return None
    first = noise.provenance.subject_positions[0]
    tables = [patches(result, ("layer",)) for result in (noise, replace)]
    rescues = [table[table.pos >= first].set_index(["layer", "pos"]).rescue for table in tables]
    best = [best_cell(result) for result in (noise, replace)]
    if any(len(r) == 0 or r.max() <= 0 for r in rescues):
        return None
    both = pd.concat(rescues, axis=1, join="inner", keys=kinds)
    shares = [r.loc[other] / r.max() for r, other in zip(rescues, best[::-1], strict=True)]
    correlation = rank_correlation(both["noise"], both["replace"])
    labels = token_labels(noise)
    names = [f"layer {layer} at {labels[pos]}" for layer, pos in best]  # type: ignore[misc]
    if best[0] == best[1]:
        sentence = f"Noise and another subject both restore most in {names[0]}."
    elif min(shares) >= ENOUGH:
        sentence = f"Noise restores most in {names[0]}, another subject in {names[1]}; each counts under the other too."
    else:
        sentence = (
            f"Noise and another subject disagree: noise restores most in {names[0]}, another subject in {names[1]}, "
            f"and one of the two cells restores less than {ENOUGH:.0%} of the best under the other."
        )
    return Agreement(best[0], best[1], float(shares[0]), float(shares[1]), correlation, sentence)  # type: ignore[arg-type]


def rank_correlation(a: pd.Series, b: pd.Series) -> float:
    """Spearman's correlation of two columns over the rows where both are there. NaN for fewer than three such rows,
    and where one side is constant: then there is no order to compare."""
    both = pd.DataFrame({"a": a, "b": b}).dropna().rank()
    if len(both) < 3 or (both.nunique() < 2).any():
        return float("nan")
    return float(both.a.corr(both.b))
