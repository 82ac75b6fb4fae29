"""How large an expert's output is and how far it turns the MoE-block output, beside every other expert of its layer:
the kind `expert_size`.

Measured at every token of the clean runs, at every expert that is routed there. With y the block output, c the expert's
contribution and g its router weight:

- `output_norm`: ‖Expert(h)‖ = ‖c‖ ÷ g, in the space of the block output (missing where g is 0; in a family whose router
  weight multiplies the expert's input, ‖c‖)
- `contribution_norm`: ‖c‖
- `magnitude_ratio`: ‖y‖ ÷ ‖y − c‖, above 1 where the expert makes the block output longer
- `cosine`: between y and y − c, 1 where the expert turns nothing; `angle`: the same in degrees
- `router_weight`: g

Tables:

`sizes`, a row per expert of the layer and measure: `expert`, `measure`, `tokens` (it is routed at), and of their
distribution `mean`, `low` (5 %), `quartile` (25 %), `median`, `upper_quartile` (75 %), `high` (95 %); missing where the
expert is never routed.

`tokens`, one row per token that the expert asked for is routed at: `fact` (number in the request), `case_id`,
`subject`, `pos`, `role` (see `core.roles`), `token_id`, `token`, and the measures.

Values: `left_out`; `ranks`: {measure: [rank of the expert by its median, 1 the largest, of how many routed experts]}.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch

from .base import BaseLayer, Run
from .budget import Budget
from .derived import DerivedRequest
from .expert_questions import read, trace_settings
from .fact_batches import in_batches, questions_of
from .missing import Question
from .moe import MoeModel, contributions
from .one_layer import check_expert, look_at
from .progress import SILENT, Progress
from .results import expert_name
from .roles import roles_of

MEASURES = ("output_norm", "contribution_norm", "magnitude_ratio", "cosine", "angle", "router_weight")
_QUANTILES = {"low": 0.05, "quartile": 0.25, "median": 0.5, "upper_quartile": 0.75, "high": 0.95}
SIZES = {"expert": "int64", "measure": "object", "tokens": "int64", "mean": "float64"} | dict.fromkeys(
    _QUANTILES, "float64"
)
TOKENS = {
    "fact": "int64", "case_id": "int64", "subject": "object", "pos": "int64", "role": "object", "token_id": "int64",
    "token": "object",
} | dict.fromkeys(MEASURES, "float64")  # fmt: skip


def answer(
    model: MoeModel, request: DerivedRequest, *, store: Any = None, progress: Progress = SILENT
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """The tables and values above. Settings: layer, expert, special_tokens, object_tokens, first_token."""
    settings = read(request)
    layer, expert = settings["layer"], settings["expert"]
    check_expert(model, layer, expert)
    questions, left_out = questions_of(model, request, **trace_settings(settings))
    parts: list[_Part] = []

    def work(batch: list[tuple[int, Question]], budget: Budget, progress: Progress) -> None:
        runs = [Run(question.prepared.input_ids) for _, question in batch]
        found: list[_Part] = []
        look_at(model, runs, layer, lambda base: found.append(_measured(base, batch)), room=budget.chunk_tokens,
                progress=progress)  # fmt: skip
        parts.extend(found)

    in_batches(
        model, questions, work=work, progress=progress, label=f"how large {expert_name(layer, expert)} is",
        tokens=lambda q: len(q.prepared.input_ids), rows=lambda q: 0,
    )  # fmt: skip
    part = _joined(parts)
    sizes = _sizes(part, model.n_experts)
    return {"sizes": sizes, "tokens": _tokens(model, part, dict(questions), expert)}, {
        "layer": layer, "expert": expert, "facts": len(questions), "left_out": left_out, "ranks": _ranks(sizes, expert),
        "caption": [f"experts of layer {layer} at every token of the clean runs of {len(questions)} facts"],
    }  # fmt: skip


class _Part:
    """Routed slots: `at` [n, 2] (number of the fact, position), `expert` [n], `measures` [n, len(MEASURES)]."""

    def __init__(self, at: np.ndarray, expert: np.ndarray, measures: np.ndarray) -> None:
        self.at, self.expert, self.measures = at, expert, measures


def _joined(parts: list[_Part]) -> _Part:
    return _Part(
        np.concatenate([np.zeros((0, 2), np.int64), *(part.at for part in parts)]),
        np.concatenate([np.zeros(0, np.int64), *(part.expert for part in parts)]),
        np.concatenate([np.zeros((0, len(MEASURES)), np.float32), *(part.measures for part in parts)]),
    )


def _measured(base: BaseLayer, batch: list[tuple[int, Question]]) -> _Part:
    """Every routed slot of a batch's runs."""
    runs = range(len(batch))
    places = np.array([(number, pos) for number, question in batch for pos in range(len(question.prepared.input_ids))])
    index, out = torch.cat([base.index[run] for run in runs]), []
    x, weight, y = (torch.cat([values[run] for run in runs]) for values in (base.x, base.weight, base.y))
    tail = base.structure.tail.get(base.layer, False)
    given = torch.cat([base.block_input[run] for run in runs]) if tail else None
    done = 0

    def go_on() -> None:
        nonlocal done
        while done < len(index):
            some = slice(done, done + max(1, base.room.tokens // index.shape[1]))
            block = base.model.blocks[base.layer]
            c = contributions(block, x[some], index[some], weight[some], None if given is None else given[some])
            out.append(measures(c.float(), weight[some].float(), y[some].float(), block.pattern.weight_on_input).cpu())
            done = some.stop

    base.room.within(go_on)
    k, flat = index.shape[1], index.flatten().cpu().numpy().astype(np.int64)
    real = flat < base.model.n_experts  # some families mark an unused slot with an index past the last expert
    return _Part(places.repeat(k, 0)[real], flat[real], torch.cat(out).flatten(0, 1).numpy()[real])


def measures(c: torch.Tensor, weight: torch.Tensor, y: torch.Tensor, weight_on_input: bool) -> torch.Tensor:
    """The measures of contributions [N, k, d] with router weights [N, k] to block outputs [N, d]: [N, k, 6], fp32."""
    norm, rest = c.norm(dim=-1), y[:, None] - c
    whole, without = y.norm(dim=-1, keepdim=True), rest.norm(dim=-1)
    output = norm if weight_on_input else torch.where(weight != 0, norm / weight.abs(), torch.nan)
    cosine = ((y[:, None] * rest).sum(-1) / (whole * without)).clamp(-1, 1)
    # an angle as small as rounding cannot be had from its cosine: half of it from the chord of two unit vectors
    chord = (y / whole)[:, None] - rest / without[..., None]
    angle = 2 * torch.asin((chord.norm(dim=-1) / 2).clamp(max=1)) * (180 / torch.pi)
    return torch.stack([output, norm, whole / without, cosine, angle, weight], -1)


def _sizes(part: _Part, n_experts: int) -> pd.DataFrame:
    order = part.expert.argsort(kind="stable")
    ends = np.searchsorted(part.expert[order], np.arange(1, n_experts))
    rows = []
    for expert, values in enumerate(np.split(part.measures[order].astype(np.float64), ends)):
        for measure, column in zip(MEASURES, values.T, strict=True):
            column = column[np.isfinite(column)]
            found = [np.nan] * 6 if not len(column) else [column.mean(), *np.quantile(column, [*_QUANTILES.values()])]
            rows.append((expert, measure, len(values), *found))
    return pd.DataFrame(rows, columns=list(SIZES)).astype(SIZES)


def _tokens(model: MoeModel, part: _Part, questions: dict[int, Question], expert: int) -> pd.DataFrame:
    """The rows of one expert, in the order of the request's facts."""
    mine = np.flatnonzero(part.expert == expert)
    mine = mine[np.lexsort((part.at[mine, 1], part.at[mine, 0]))]
    rows, roles = [], {}
    for (number, pos), values in zip(part.at[mine].tolist(), part.measures[mine].tolist(), strict=True):
        fact = questions[number].prepared
        if number not in roles:
            roles[number] = roles_of(len(fact.input_ids), fact.subject_positions)
        rows.append((
            number, fact.fact.case_id, fact.fact.subject, pos, roles[number][pos], fact.input_ids[pos],
            fact.tokens[pos], *values,
        ))  # fmt: skip
    return pd.DataFrame(rows, columns=list(TOKENS)).astype(TOKENS)


def _ranks(sizes: pd.DataFrame, expert: int) -> dict[str, list[int]]:
    """{measure: [rank by the median, 1 the largest; number of experts that are routed at all]}; none if it is not."""
    out = {}
    for measure, some in sizes[sizes["median"].notna()].groupby("measure"):
        medians = some.set_index("expert")["median"]
        if expert in medians.index:
            out[str(measure)] = [int((medians > medians[expert]).sum()) + 1, len(medians)]
    return out
