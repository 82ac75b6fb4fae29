"""The method in words and formulas, and one fact's own numbers put into them: what the Method page says.

The formulas are those of Lu, Modarressi, Liu and Schütze (arXiv 2606.03780); what is ours is marked (X). Strings made
from a `TraceResult`; no page, no model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import pandas as pd

from . import views
from .formats import number
from .results import MIN_DROP, TraceResult, expert_name

PAPER = "https://arxiv.org/abs/2606.03780"


@dataclass(frozen=True)
class Step:
    """One step of the worked example. `words`: plain text; `formula`: lines of LaTeX; `worked`: the same with this
    fact's numbers."""

    title: str
    words: str
    formula: tuple[str, ...] = ()
    worked: tuple[str, ...] = ()


    @property
    def text(self) -> str:
        """The step where no formula can be set: words, formulas and numbers in one line of plain text."""
        lines = [*self.formula, *self.worked]
        return f"{self.words} {'; '.join(map(readable, lines))}." if lines else self.words


def readable(latex: str) -> str:
    """One of the formulas here as plain text."""
    out = re.sub(r"\\frac\{(.+?)\}\{(.+?)\}(?= |$)", r"\1 ÷ \2", re.sub(r"\\text\{([^{}]*)\}", r"\1", latex))
    for sign, plain in _SIGNS.items():
        out = out.replace(sign, plain)
    return " ".join(re.sub(r"[{}]", "", out).replace("-", "−").split())


_SIGNS = {
    r"\tilde h": "h̃", r"\varepsilon": "ε", r"\sim": "~", r"\mathcal N": "N", r"\sigma^2": "σ²", r"\Delta": "Δ",
    r"\delta": "δ", r"\cdot": "·", r"\sum": "Σ", r"\quad": " ",
}  # fmt: skip


@dataclass(frozen=True)
class Spot:
    """Where the example looks: the cell of the highest layer patch at the last position, its strongest expert."""

    layer: int
    pos: int
    layer_rescue: float
    expert: int | None
    expert_rescue: float
    singles: float


def spot(result: TraceResult) -> Spot:
    """The layer of the highest rescue at the last position, and its strongest clean-active expert (None: no rows).

    `singles`: sum of the rescues of all experts patched alone there.
    """
    pos = views.last_pos(result)
    cells = views.patches(result, ("layer",), pos)
    best = cells.loc[cells.rescue.idxmax()]
    layer = int(best.layer)
    experts = views.patches(result, ("expert", "shared"), pos)
    experts = experts[experts.layer == layer]
    routed = experts[(experts.kind == "expert") & experts.clean_active]
    if routed.empty:
        return Spot(layer, pos, float(best.rescue), None, float("nan"), float(experts.rescue.sum()))
    strongest = routed.loc[routed.rescue.idxmax()]
    return Spot(
        layer, pos, float(best.rescue), int(strongest.expert), float(strongest.rescue), float(experts.rescue.sum())
    )


def worked_example(result: TraceResult) -> list[Step]:
    """The steps from the prompt to the experts, with this result's numbers (means over its draws)."""
    clean, corrupt = _run(result.frame, "clean"), _run(result.frame, "corrupt")
    drop = result.drop
    request = result.request
    steps = [
        Step(
            "Clean run",
            "The prompt as it is. The contrast is the true object's logit minus the foil's, at the last position.",
            (r"\Delta_\text{clean} = \text{logit}(\text{true}) - \text{logit}(\text{foil})",),
            (f"{_n(clean.true_logit)} - {_p(clean.foil_logit)} = {_n(result.clean_contrast)}",),
        ),
        Step(
            "Corrupt run",
            *_corruption(result),
            (f"{_n(corrupt.true_logit)} - {_p(corrupt.foil_logit)} = {_n(result.corrupt_contrast)}",),
        ),
        Step(
            "Drop",
            "What the corruption takes away, and so what there is to restore. "
            f"Below {MIN_DROP:g} logits no restoration is defined.",
            (r"\text{drop} = \Delta_\text{clean} - \Delta_\text{corrupt}",),
            (f"{_n(result.clean_contrast)} - {_p(result.corrupt_contrast)} = {_n(drop)}",),
        ),
    ]
    at = spot(result)
    steps.append(
        Step(
            f"Layer patch at layer {at.layer}, last position",
            "In the corrupt run, the MoE block's output at one layer and one token is replaced by the clean run's. "
            "Rescue is what that brings back, in logits; restoration is its share of the drop. The heat map of layer "
            f"and token shows it for every cell; layer {at.layer} is the highest at the last token.",
            (
                r"y_{l,t} := y^\text{clean}_{l,t}",
                r"\text{rescue} = \Delta_\text{patched} - \Delta_\text{corrupt}, \quad "
                r"\text{restoration} = \frac{\text{rescue}}{\text{drop}}",
            ),
            (
                f"{_n(result.corrupt_contrast + at.layer_rescue)} - {_p(result.corrupt_contrast)} = "
                f"{_n(at.layer_rescue)}",
                _share(at.layer_rescue, drop),
            ),
        )
    )
    if at.expert is None:
        return steps
    name = expert_name(at.layer, at.expert)
    steps += [
        Step(
            f"Expert patch of {name}",
            "Only one expert's clean update is put back; everything else of the block stays as in the corrupt run. Its "
            "contribution is the router weight times the expert's output, and 0 where it is not routed. The layers "
            f"above run freely. {name} is the strongest of the experts that the clean run routes to here.",
            (
                r"y_{l,t} := y^\text{corrupt}_{l,t} + \delta_e",
                r"\delta_e = c^\text{clean}_e - c^\text{corrupt}_e, \quad c_e = g_e \cdot \text{Expert}_e(h)",
            ),
            (
                rf"\text{{rescue}} = {_n(at.expert_rescue)}",
                rf"\text{{of the layer patch: }} {_share(at.expert_rescue, at.layer_rescue)}",
            ),
        ),
        Step(
            "All experts, one by one, against the layer",
            "Patched one by one, the experts need not add up to the layer patch: the layers above are not linear. A "
            "large difference says that experts work together; the coalition patches ask for that.",
            (r"\sum_e \text{rescue}(e) \quad \text{against} \quad \text{rescue}(\text{layer})",),
            (rf"{_n(at.singles)} \quad \text{{against}} \quad {_n(at.layer_rescue)}",),
        ),
    ]
    if request.draws > 1:
        steps.append(Step("Draws", f"All numbers are means over {request.draws} draws."))
    return steps


def _corruption(result: TraceResult) -> tuple[str, tuple[str, ...]]:
    request = result.request
    if request.corruption == "replace":
        return (
            "Another subject of as many tokens stands in the subject's place, so that the model no longer knows whom "
            "the prompt is about.",
            (r"\Delta_\text{corrupt} = \text{logit}(\text{true}) - \text{logit}(\text{foil})",),
        )
    sigma = result.provenance.noise_sigma
    return (
        "Gaussian noise is added to the input embeddings of the subject's tokens: the model no longer knows whom the "
        f"prompt is about. Its standard deviation is the noise level, {request.noise:g}, times that of the embedding "
        f"table: σ = {sigma:.3g}. The generator is seeded with seed + case_id = "
        f"{request.seed} + {request.fact.case_id}.",
        (
            r"\tilde h_t = h_t + \varepsilon_t \text{ for the subject's } t, \quad "
            r"\varepsilon_t \sim \mathcal N(0, \sigma^2)",
        ),
    )


def _run(frame: pd.DataFrame, kind: str) -> pd.Series:
    return frame.loc[frame.kind == kind, ["true_logit", "foil_logit"]].mean()


def _n(value: float) -> str:
    return number(value, 3).replace("−", "-").replace("–", r"\text{missing}")


def _p(value: float) -> str:
    """A number behind a minus sign."""
    return _n(value) if value >= 0 else f"({_n(value)})"


def _share(part: float, whole: float) -> str:
    return rf"\frac{{{_n(part)}}}{{{_n(whole)}}} = {_n(part / whole)}" if abs(whole) >= MIN_DROP else r"\text{missing}"


QUANTITIES = (
    ("contrast", "logit(true) − logit(foil) at the last prompt position, raw logits"),
    ("clean run", "the prompt as it is"),
    ("corrupt run", "noise on the subject's input embeddings (or another subject in its place)"),
    ("drop", "clean minus corrupt contrast"),
    ("router weight g", "what the block really multiplies the expert's output with; 0 where it is not routed"),
    ("contribution c", "router weight × expert output"),
    ("update δ", "clean minus corrupt contribution"),
    ("rescue", "contrast of the patched run − corrupt contrast, in logits"),
    ("restoration", f"rescue ÷ drop; of several draws or facts, mean rescue ÷ mean drop; missing below {MIN_DROP:g}"),
    ("clean-active", "the expert is routed at this layer and token in the clean run"),
)
"""Name and definition of what stands on the pages, in short."""

INTERVENTIONS = (
    ("layer patch", "corrupt", "the MoE block's clean output is put back at one layer and token"),
    ("expert patch", "corrupt", "one expert's update is added to the corrupt output; routing there is not recomputed"),
    ("coalition patch", "corrupt", "the updates of several experts together: clean top-k, routing union, any chosen"),
    ("equal-norm pair", "corrupt", "two updates scaled to the smaller norm, so that size does not decide"),
    ("attention, layer-output, residual patch (X)", "corrupt", "the same at the other sites of the layer"),
    ("window patch (X)", "corrupt", "layer patches on several neighbouring layers; restored values replace"),
    ("noising (X)", "clean", "the mirror image: the corrupt value is put in; shows what is needed"),
    ("knockout (X)", "clean", "the expert's contribution is subtracted (zero) or its choice forbidden (reroute)"),
    ("direct logit attribution (X)", "–", "the part of an expert patch that reaches the logits without a later layer"),
)
"""Name, the run that it is done in, what is done."""

STUDY = (
    "Facts are scanned in a fixed random order and kept when both objects are single tokens, the clean contrast is at "
    "least 1.0 and the drop at least 0.5, until there are enough.",
    "They are split into discovery and validation facts. Whatever is chosen is chosen on discovery; every number that "
    "is reported comes from validation.",
    "The layer is the one with the highest mean rescue at the last position on discovery.",
    "Candidates are the experts of that layer that are clean-active in enough discovery facts (half of them in the "
    "paper); the one with the highest mean rescue is selected, facts where it is not active counting 0.",
    "Controls on validation: other active experts at random, the one of nearest router weight, and equal-norm pairs. "
    "Specificity is the selected expert's rescue minus its controls'.",
    "Coalitions: clean top-k, routing union and the smallest one that reaches 80 % of the layer patch, against random "
    "ones of its size.",
    "Intervals are 95 % percentile bootstrap (5,000 resamples), tests two-sided sign flips (10,000 samples).",
    "Robustness: other splits, thresholds, relations held out, noise levels, a fresh draw of noise, and a search over "
    "all layers at once with its shrinkage.",
)
"""The study's steps."""

CARE = (
    "Routing is discrete: where the last chosen and the first not chosen expert are almost tied, rounding flips the "
    "choice and moves every figure. Near ties are marked.",
    "Three standard deviations of noise lie off the model's distribution: check with another subject in its place.",
    "Special tokens change conclusions (with its BOS, Mixtral selects another expert than without): the setting is "
    "shown with every result.",
    "In bfloat16 one fact's rescue carries about 0.1 to 0.6 logits of rounding; the noise floor of the loaded model "
    "stands beside its numbers. 32-bit floats on the CPU are the reference.",
    "Rescue shows what suffices, knockout what is needed. Later layers compensate, so look at both.",
    "One fact is an anecdote. For a claim, run a study.",
)
"""What to keep in mind."""
