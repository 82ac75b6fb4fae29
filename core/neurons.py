"""The neurons of one gated (GLU) expert over a set of facts: signs of their two pre-activations, input–output cosines,
and what each writes to true − foil. The kind `expert_neurons`.

A gated expert is Expert(h) = Σ_j a_j · w_out,j + b with a_j = f(w_gate,j · h, w_in,j · h), for example
silu(gate) × in (`core.gated` reads it from the weights and checks it). "in" is what checkpoints call the up projection.

Tables:

`neurons`, one row per neuron: `neuron`; `tokens` (the expert's, in the clean runs); `gate_pos_in_pos`,
`gate_pos_in_neg`, `gate_neg_in_pos`, `gate_neg_in_neg`: in which share of them the pre-activations (biases included)
have these signs (0 counts as negative; missing for no tokens); `in_out_cosine`, `gate_out_cosine`, `gate_in_cosine`:
between its weights as they stand (Gerstner & Schütze 2025, "Understanding gated neurons in transformers from their
input-output functionality": a positive in–out cosine enriches the stream with what the neuron finds there, a negative
one depletes it); `output_norm` ‖w_out,j‖; `mean_activation` (of a_j) and `mean_size` (of |g · a_j| · ‖w_out,j‖, g the
router weight) over the tokens; `size_rank` by it, 1 the largest; `write`: the direct part (logits) of g · a_j · w_out,j
at the last position on the clean contrast, mean over the facts where the expert is clean-active there; `write_rank` by
its size.

`examples`, for the strongest neurons (12 by write, 12 by size) up to 5 tokens of each sign combination, the largest
|a_j| first (of prompts that begin alike only the first counts): `neuron`, `gate_sign`, `in_sign` (1 or −1), `rank`,
`fact` (number in the request), `case_id`, `subject`, `prompt`, `pos`, `token_id`, `token`, `gate`, `in`
(pre-activations), `activation` (a_j).

`writes`, for each fact where the expert is clean-active at the last position the 10 neurons that write most: `fact`,
`case_id`, `subject`, `true_token`, `foil_token`, `neuron`, `rank` (by size), `write`, `direct` (of the whole expert).

Values: `available` and, where the weights cannot be read, `why`; `missing` (why there are no direct parts, or None);
`n_neurons`, `error` (largest relative difference of the contributions recomputed from the neurons, over all tokens of
the set), `active_facts`, `direct` (mean over those facts: the neurons' writes and `bias_write` add up to it),
`left_out`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch.nn.functional import cosine_similarity

from .base import BaseLayer, Run
from .budget import Budget
from .derived import DerivedRequest
from .direct import NO_FACTOR, NO_FROZEN_SCALE, contrast_directions, reach
from .expert_questions import read, trace_settings
from .fact_batches import in_batches, questions_of
from .fact_runs import Objects
from .gated import TOLERANCE, TOLERANCE_HALF, GatedExpert, NotReadable, read_expert
from .missing import Question
from .moe import MoeModel
from .one_layer import Slots, check_expert, contributed, look_at, slots_of
from .progress import SILENT, Progress
from .prompts import PreparedFact
from .results import expert_name

SIGNS = ((1, 1), (1, -1), (-1, 1), (-1, -1))
"""Sign combinations of (gate, in), in the order of the columns below."""
SHARES = ("gate_pos_in_pos", "gate_pos_in_neg", "gate_neg_in_pos", "gate_neg_in_neg")
STRONGEST, EXAMPLES, PER_FACT = 12, 5, 10
NEURONS = {"neuron": "int64", "tokens": "int64"} | dict.fromkeys(SHARES, "float64") | {
    "in_out_cosine": "float64", "gate_out_cosine": "float64", "gate_in_cosine": "float64", "output_norm": "float64",
    "mean_activation": "float64", "mean_size": "float64", "size_rank": "Int64", "write": "float64",
    "write_rank": "Int64",
}  # fmt: skip
EXAMPLE_COLUMNS = {
    "neuron": "int64", "gate_sign": "int64", "in_sign": "int64", "rank": "int64", "fact": "int64", "case_id": "int64",
    "subject": "object", "prompt": "object", "pos": "int64", "token_id": "int64", "token": "object",
    "gate": "float64", "in": "float64", "activation": "float64",
}  # fmt: skip
WRITES = {
    "fact": "int64", "case_id": "int64", "subject": "object", "true_token": "object", "foil_token": "object",
    "neuron": "int64", "rank": "int64", "write": "float64", "direct": "float64",
}  # fmt: skip
_PROBED = 8
_NUMBERS = 2**22  # activations at a time


def answer(
    model: MoeModel, request: DerivedRequest, *, store: Any = None, progress: Progress = SILENT
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """The tables and values above. Settings: layer, expert, special_tokens, object_tokens, first_token."""
    settings = read(request)
    layer, expert = settings["layer"], settings["expert"]
    check_expert(model, layer, expert)
    questions, left_out = questions_of(model, request, **trace_settings(settings))
    gathered = _Gathered(model, layer, expert)
    in_batches(
        model, questions, work=gathered.add, progress=progress, label=f"the neurons of {expert_name(layer, expert)}",
        tokens=lambda q: len(q.prepared.input_ids), rows=lambda q: 0,
    )  # fmt: skip
    tables, values = gathered.answer(dict(questions))
    caption = [f"neurons of {expert_name(layer, expert)} at its tokens in the clean runs of {len(questions)} facts"]
    return tables, {
        "layer": layer, "expert": expert, "facts": len(questions), "left_out": left_out, "caption": caption, **values
    }  # fmt: skip


class _Tally:
    """What is counted over the tokens of an expert with m neurons."""

    def __init__(self, m: int, device: torch.device) -> None:
        self.n, self.error, self.size = 0, 0.0, 1e-30
        self.places: list[tuple[int, int]] = []  # (number of the fact, position) of every token, as they came
        self.seen: set[int] = set()
        self.counts = torch.zeros(4, m, dtype=torch.long, device=device)
        self.activation, self.sizes = (torch.zeros(m, dtype=torch.double, device=device) for _ in range(2))
        # the tokens with the largest |activation| of each combination: [4, EXAMPLES, m]; `token`: the number of the
        # token in the order of their coming, −1 for none; `values`: gate, in, activation
        self.token = torch.full((4, EXAMPLES, m), -1, dtype=torch.long, device=device)
        self.values = torch.zeros(3, 4, EXAMPLES, m, device=device)

    def add(
        self,
        gate: torch.Tensor,
        into: torch.Tensor,
        activation: torch.Tensor,
        by_norm: torch.Tensor,
        places: Sequence[tuple[int, int]],
        beginnings: Sequence[tuple[int, ...]],
    ) -> None:
        """Pre-activations, activations and |g · activation| · ‖w_out‖ of n more tokens, each [n, m]; the number of
        each one's fact and its position; the token ids up to it: where two are the same, so are all their values, and
        only the first is an example."""
        new = []
        for beginning in map(hash, beginnings):
            new.append(beginning not in self.seen)
            self.seen.add(beginning)
        fresh = torch.tensor(new, device=gate.device)[:, None]
        token = torch.arange(self.n, self.n + len(gate), device=gate.device)[:, None].expand(gate.shape)
        for at, (gate_sign, in_sign) in enumerate(SIGNS):
            here = ((gate > 0) == (gate_sign > 0)) & ((into > 0) == (in_sign > 0))
            self.counts[at] += here.sum(0)
            tokens = torch.cat([self.token[at], torch.where(here & fresh, token, -1)])
            values = torch.cat([self.values[:, at], torch.stack([gate, into, activation])], 1)
            best = torch.where(tokens >= 0, values[2].abs(), -1.0).topk(EXAMPLES, dim=0).indices
            self.token[at] = tokens.gather(0, best)
            self.values[:, at] = values.gather(1, best.expand(3, *best.shape))
        self.activation += activation.double().sum(0)
        self.sizes += by_norm.double().sum(0)
        self.places += places
        self.n += len(gate)


class _Batch(NamedTuple):
    """The tally with a batch in it; of each run that is routed to the expert at its last position: g · activations
    [m], g (or 1, see `GatedExpert.strength`), contribution [d]."""

    tally: _Tally
    last: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


class _Gathered:
    """Everything that the batches have shown so far."""

    def __init__(self, model: MoeModel, layer: int, expert: int) -> None:
        self._model, self._layer, self._expert = model, layer, expert
        self._factor = reach(model.structure, model.n_layers)[layer]
        self._limit = TOLERANCE if model.dtype == torch.float32 else TOLERANCE_HALF
        self._weights: GatedExpert | None = None
        self._tally: _Tally | None = None
        self._why = ""
        self._written: torch.Tensor | None = None
        self._bias = self._direct = 0.0
        self._rows: list[tuple] = []
        self._active = 0

    # ---- batches

    def add(self, batch: list[tuple[int, Question]], budget: Budget, progress: Progress) -> None:
        """Look at a batch of facts."""
        if self._why:
            return
        facts = [question.prepared for _, question in batch]
        objects = Objects(self._model, [(fact, [run]) for run, fact in enumerate(facts)])
        found: list[_Batch] = []
        try:
            outcome = look_at(
                self._model, [Run(fact.input_ids) for fact in facts], self._layer,
                lambda base: found.append(self._look(base, batch)), room=budget.chunk_tokens, objects=objects,
                progress=progress,
            )  # fmt: skip
        except NotReadable as reason:
            self._why = str(reason)
            return
        assert outcome is not None
        (seen,), runs = found, sorted(found[0].last)
        along = contrast_directions(self._model, outcome.final[runs], [objects.ids[run] for run in runs], self._factor)
        writes = [self._writes(seen.last[run], direction) for run, direction in zip(runs, along, strict=True)]
        # nothing is kept before this point, where the whole batch went well
        self._tally = seen.tally
        for run, written in zip(runs, writes, strict=True):
            self._add_writes(batch[run][0], objects.facts[run], *written)

    def _look(self, base: BaseLayer, batch: list[tuple[int, Question]]) -> _Batch:
        """See `core.one_layer.look_at`."""
        if self._weights is None:
            self._weights = self._read(base)
        m, device = len(self._weights.out_rows), self._weights.out_rows.device
        seen = _Batch(_Tally(m, device) if self._tally is None else copy.deepcopy(self._tally), {})
        slots = slots_of(base, range(len(batch)), self._expert)
        step = max(1, min(base.room.tokens, _NUMBERS // m))
        for at in range(0, len(slots), step):
            self._count(base, slots[at : at + step], batch, seen)
        return seen

    def _read(self, base: BaseLayer) -> GatedExpert:
        """The expert's weights, checked on some of the first run's tokens, whoever they were routed to."""
        given = base.block_input[0][:_PROBED] if 0 in base.block_input else None
        return read_expert(self._model, self._layer, self._expert, base.x[0][:_PROBED], given)

    def _count(self, base: BaseLayer, slots: Slots, batch: list[tuple[int, Question]], seen: _Batch) -> None:
        """Some tokens of the expert."""
        weights, tally = self._weights, seen.tally
        assert weights is not None
        gate, into = weights.pre_activations(slots.x, slots.weight)
        activation, strength = weights.activate(gate, into), weights.strength(slots.weight)
        scaled = activation * strength[:, None]
        want, got = contributed(base, slots, self._expert), weights.contribution(slots.x, slots.weight)
        tally.error = max(tally.error, float((got - want).norm(dim=-1).max()))
        tally.size = max(tally.size, float(want.norm(dim=-1).max()))
        if tally.error > self._limit * tally.size:
            raise NotReadable(
                f"What its neurons give is not what the expert contributes (relative difference "
                f"{tally.error / tally.size:.0e}, allowed {self._limit:.0e})."
            )
        at = list(zip(slots.run.tolist(), slots.pos.tolist(), strict=True))
        ids = [batch[run][1].prepared.input_ids for run, _ in at]
        tally.add(
            gate, into, activation, scaled.abs() * weights.out_rows.norm(dim=-1),
            places=[(batch[run][0], pos) for run, pos in at],
            beginnings=[mine[: pos + 1] for mine, (_, pos) in zip(ids, at, strict=True)],
        )  # fmt: skip
        for row, (run, pos) in enumerate(at):
            if pos == len(ids[row]) - 1:
                seen.last[run] = scaled[row].clone(), strength[row].clone(), want[row].clone()

    def _writes(
        self, last: tuple[torch.Tensor, torch.Tensor, torch.Tensor], along: torch.Tensor
    ) -> tuple[torch.Tensor, float, float]:
        """Direct parts of one fact: of each neuron [m], of the bias, of the whole contribution.

        `last`: of the last position; `along` [d]: see `core.direct.contrast_directions`.
        """
        weights, (scaled, strength, contribution) = self._weights, last
        assert weights is not None
        along = along.to(scaled.device)
        bias = 0.0 if weights.out_bias is None else float(strength * (weights.out_bias @ along))
        return (scaled * (weights.out_rows @ along)).cpu(), bias, float(contribution @ along)

    def _add_writes(self, number: int, fact: PreparedFact, writes: torch.Tensor, bias: float, direct: float) -> None:
        """One fact where the expert is clean-active at the last position."""
        self._written = writes.double() + (0 if self._written is None else self._written)
        self._bias += bias
        self._direct += direct
        self._active += 1
        best = writes.abs().topk(min(PER_FACT, len(writes))).indices.tolist() if bool(writes.isfinite().all()) else []
        for rank, neuron in enumerate(best, 1):
            self._rows.append((
                number, fact.fact.case_id, fact.fact.subject, fact.true_token, fact.foil_token, neuron, rank,
                float(writes[neuron]), direct,
            ))  # fmt: skip

    # ---- the answer

    def answer(self, questions: dict[int, Question]) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
        """Tables and values, but for those that every kind has. `questions`: by number."""
        weights, tally = self._weights, self._tally
        if weights is None or tally is None or self._why:
            why = self._why or "There is no fact to look at."
            kinds = {"neurons": NEURONS, "examples": EXAMPLE_COLUMNS, "writes": WRITES}
            return {name: _table([], columns) for name, columns in kinds.items()}, {"available": False, "why": why}
        finite = self._written is not None and bool(self._written.isfinite().all())
        missing = NO_FACTOR if self._factor is None else None if finite or not self._active else NO_FROZEN_SCALE
        neurons = self._neurons(weights, tally)
        known = finite and self._active
        values = {
            "available": True, "why": "", "missing": missing, "n_neurons": len(neurons),
            "error": tally.error / tally.size, "active_facts": self._active,
            "direct": self._direct / self._active if known else None,
            "bias_write": self._bias / self._active if known else None,
        }  # fmt: skip
        best = neurons[["write_rank", "size_rank"]].min(axis=1) <= STRONGEST
        examples = self._examples(tally, neurons.neuron[best.fillna(False)].tolist(), questions)
        return {"neurons": neurons, "examples": examples, "writes": _table(sorted(self._rows), WRITES)}, values

    def _neurons(self, weights: GatedExpert, tally: _Tally) -> pd.DataFrame:
        m, n = len(weights.out_rows), tally.n
        out, comparable = weights.raw_rows, weights.raw_rows.shape[1] == weights.in_rows.shape[1]
        missing = torch.full((m,), torch.nan)
        write = missing if self._written is None else self._written / self._active
        columns = {
            "neuron": range(m), "tokens": n,
            **{name: counts / n if n else missing for name, counts in zip(SHARES, tally.counts.cpu(), strict=True)},
            "in_out_cosine": cosine_similarity(weights.in_rows, out) if comparable else missing,
            "gate_out_cosine": cosine_similarity(weights.gate_rows, out) if comparable else missing,
            "gate_in_cosine": cosine_similarity(weights.gate_rows, weights.in_rows),
            "output_norm": weights.out_rows.norm(dim=-1),
            "mean_activation": tally.activation / n if n else missing,
            "mean_size": tally.sizes / n if n else missing, "write": write,
        }  # fmt: skip
        table = pd.DataFrame({k: v.cpu().double().numpy() if torch.is_tensor(v) else v for k, v in columns.items()})
        for rank, by in (("size_rank", table.mean_size), ("write_rank", table.write.abs())):
            table[rank] = by.rank(ascending=False, method="first").astype("Int64")
        return table[list(NEURONS)].astype(NEURONS)

    def _examples(self, tally: _Tally, neurons: Sequence[int], questions: dict[int, Question]) -> pd.DataFrame:
        rows = []
        for neuron in neurons:
            for at, signs in enumerate(SIGNS):
                found = zip(tally.token[at, :, neuron].tolist(), tally.values[:, at, :, neuron].T.tolist(), strict=True)
                for rank, (token, values) in enumerate(found, 1):
                    if token >= 0:
                        number, pos = tally.places[token]
                        fact = questions[number].prepared
                        rows.append((
                            neuron, *signs, rank, number, fact.fact.case_id, fact.fact.subject, fact.fact.text, pos,
                            fact.input_ids[pos], fact.tokens[pos], values[0], values[1], values[2],
                        ))  # fmt: skip
        return _table(rows, EXAMPLE_COLUMNS)


def _table(rows: Sequence[tuple], columns: dict[str, str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(columns)).astype(columns)
