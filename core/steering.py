"""Scaling what one expert contributes in the clean run, and what the model then says: the kind `steering`.

At layer l the block output y becomes y + (s − 1) · c at the chosen positions, c what the expert contributes in that run
itself: s = 0 takes it out (protocol.md, "knockout", zero mode), 1 changes nothing, −1 turns it round. Where: at every
position (in the continuation also at the tokens that were added), at the prompt's last position, or at the subject's;
where the expert is not routed, nothing happens. The continuation is greedy, each step a run over the whole text.

Tables:

`tokens`, the 10 most probable next tokens: `fact` (number in the request), `case_id`, `run` (clean, scaled), `rank`,
`token_id`, `token`, `probability`.

`facts`: `fact`, `case_id`, `subject`, `prompt`, `true_token`, `foil_token`, `scaled_positions` (positions of the prompt
at which there was something to scale), `clean_true`, `clean_foil`, `clean_contrast`, `scaled_true`, `scaled_foil`,
`scaled_contrast` (logits), `clean_continuation`, `scaled_continuation` (texts).

`continuations`: `fact`, `case_id`, `run`, `step` (from 1), `token_id`, `token`, `probability` (of that token there).

Values: `factor`, `where`, `continued`, `left_out`. A continuation ends early at an end-of-text token or at the model's
longest text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from .base import BaseLayer, Run
from .budget import Budget
from .derived import DerivedRequest
from .expert_questions import ALL, LAST, SUBJECT, read, trace_settings
from .fact_batches import in_batches, questions_of
from .fact_runs import with_best_foil_of
from .head import all_logits
from .missing import Question
from .moe import MoeModel
from .one_layer import check_expert
from .patches import Own, Patch, Step
from .progress import SILENT, Progress, Share
from .prompts import PreparedFact
from .results import expert_name
from .sweep import sweep

TOP = 10
PLACE_WORDS = {ALL: "at every position", LAST: "at the prompt's last position", SUBJECT: "at the subject's positions"}
RUNS = CLEAN, SCALED = ("clean", "scaled")
TOKENS = {
    "fact": "int64", "case_id": "int64", "run": "object", "rank": "int64", "token_id": "int64", "token": "object",
    "probability": "float64",
}  # fmt: skip
CONTINUATIONS = {"step" if name == "rank" else name: kind for name, kind in TOKENS.items()}
FACTS = {
    "fact": "int64", "case_id": "int64", "subject": "object", "prompt": "object", "true_token": "object",
    "foil_token": "object", "scaled_positions": "int64", "clean_true": "float64", "clean_foil": "float64",
    "clean_contrast": "float64", "scaled_true": "float64", "scaled_foil": "float64", "scaled_contrast": "float64",
    "clean_continuation": "object", "scaled_continuation": "object",
}  # fmt: skip


@dataclass(frozen=True)
class Steering:
    """What is done: expert `expert` of `layer` times `factor`, at the positions that `where` names."""

    layer: int
    expert: int
    factor: float
    where: str

    def positions(self, fact: PreparedFact, length: int) -> range | tuple[int, ...]:
        """Positions of a text of `length` tokens that begins with the fact's prompt."""
        if self.where == ALL:
            return range(length)
        return (len(fact.input_ids) - 1,) if self.where == LAST else fact.subject_positions

    def patch(self, run: int, positions: tuple[int, ...]) -> Patch:
        """The patch of one run."""
        own = Own((self.expert,), scale=self.factor - 1)
        return Patch(run, (Step("moe", self.layer, positions, "add", own),))


@dataclass
class _Text:
    """A prompt and what one run made of it so far."""

    number: int
    fact: PreparedFact
    run: str
    ids: list[int]
    done: bool = False


def answer(
    model: MoeModel, request: DerivedRequest, *, store: Any = None, progress: Progress = SILENT
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """The tables and values above. Settings: layer, expert, factor, where, continued, special_tokens, object_tokens,
    first_token."""
    settings = read(request)
    steering = Steering(settings["layer"], settings["expert"], settings["factor"], settings["where"])
    check_expert(model, steering.layer, steering.expert)
    name = expert_name(steering.layer, steering.expert)
    questions, left_out = questions_of(model, request, **trace_settings(settings))
    rows: dict[str, list[tuple]] = {"tokens": [], "facts": [], "continuations": []}

    def work(batch: list[tuple[int, Question]], budget: Budget, progress: Progress) -> None:
        for table, found in _steered(model, batch, steering, settings["continued"], budget, progress).items():
            rows[table] += found

    in_batches(
        model, questions, work=work, progress=progress,
        label=f"scaling {name}",
        tokens=lambda q: 2 * (len(q.prepared.input_ids) + settings["continued"]),
        rows=lambda q: len(q.prepared.input_ids) + settings["continued"],
    )  # fmt: skip
    kinds = {"tokens": TOKENS, "facts": FACTS, "continuations": CONTINUATIONS}
    tables = {}
    for table, columns in kinds.items():
        frame = pd.DataFrame(rows[table], columns=list(columns)).astype(columns)
        order = [column for column in ("fact", "run", "rank", "step") if column in columns]
        tables[table] = frame.sort_values(order, ignore_index=True)
    return tables, {
        "layer": steering.layer, "expert": steering.expert, "factor": steering.factor, "where": steering.where,
        "continued": settings["continued"], "facts": len(questions), "left_out": left_out,
        "caption": [f"{name} × {steering.factor:g}, {PLACE_WORDS[steering.where]}".replace("-", "−")],
    }  # fmt: skip


def _steered(
    model: MoeModel,
    batch: list[tuple[int, Question]],
    steering: Steering,
    continued: int,
    budget: Budget,
    progress: Progress,
) -> dict[str, list[tuple]]:
    """Rows of all tables for some prompts."""
    texts = [_Text(number, q.prepared, run, list(q.prepared.input_ids)) for number, q in batch for run in RUNS]
    rows: dict[str, list[tuple]] = {"tokens": [], "facts": [], "continuations": []}
    ends = _ends(model)
    for step in range(max(continued, 1)):
        part = Share(progress, step, 1, max(continued, 1))
        open_texts = [text for text in texts if not text.done]
        if not open_texts:
            break
        if step:
            progress.pause()
        logits, scaled = _logits(model, open_texts, steering, budget, part)
        if step == 0:
            facts = _first(model, texts, logits, scaled, rows)
        if not continued:
            break
        best = logits.softmax(-1).max(-1)
        for text, probability, token in zip(open_texts, best.values.tolist(), best.indices.tolist(), strict=True):
            text.ids.append(token)
            rows["continuations"].append((
                text.number, text.fact.fact.case_id, text.run, step + 1, token, model.piece(token), probability
            ))  # fmt: skip
            text.done = token in ends or (model.max_length is not None and len(text.ids) >= model.max_length)
    said = {(text.number, text.run): _said(model, text) for text in texts}
    rows["facts"] = [(*row, said[row[0], CLEAN], said[row[0], SCALED]) for row in facts]
    return rows


def _logits(
    model: MoeModel, texts: list[_Text], steering: Steering, budget: Budget, progress: Progress
) -> tuple[torch.Tensor, list[int]]:
    """(logits of the next token of each text [n, V]; positions at which it was scaled). Equal texts share a run."""
    numbers: dict[tuple[int, ...], int] = {}
    runs = [numbers.setdefault(tuple(text.ids), len(numbers)) for text in texts]
    patches: dict[int, tuple[int, int]] = {}  # text: (number of its patch, positions)

    def plan(base: BaseLayer) -> list[Patch]:
        made: list[Patch] = []
        if base.layer == steering.layer:
            for i, (text, run) in enumerate(zip(texts, runs, strict=True)):
                routed = (base.index[run] == steering.expert).any(-1).tolist()
                here = tuple(pos for pos in steering.positions(text.fact, len(text.ids)) if routed[pos])
                if text.run == SCALED and here:
                    patches[i] = len(made), len(here)
                    made.append(steering.patch(run, here))
        return made

    outcome = sweep(
        model, model.structure, [Run(ids) for ids in numbers], plan, objects=[(0,)] * len(numbers), keep=False,
        chunk_tokens=budget.chunk_tokens, keep_final=True, progress=progress,
    )  # fmt: skip
    assert outcome.patched_final is not None
    finals = torch.stack([
        outcome.patched_final[patches[i][0]] if i in patches else outcome.final[run] for i, run in enumerate(runs)
    ])  # fmt: skip
    return all_logits(model, finals), [patches[i][1] if i in patches else 0 for i in range(len(texts))]


def _first(
    model: MoeModel, texts: list[_Text], logits: torch.Tensor, scaled: list[int], rows: dict[str, list[tuple]]
) -> list[tuple]:
    """Fill in the next tokens; rows of the table `facts` but for the continuations. `texts`: two for each fact."""
    facts = []
    for i, text in enumerate(texts):
        best = logits[i].softmax(-1).topk(min(TOP, logits.shape[1]))
        for rank, (probability, token) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True), 1):
            rows["tokens"].append((
                text.number, text.fact.fact.case_id, text.run, rank, token, model.piece(token), probability
            ))  # fmt: skip
        if text.run == SCALED:
            fact, both = text.fact, logits[i - 1 : i + 1].double()
            if fact.foil_id is None:
                fact = with_best_foil_of(model, fact, both[0])
            true, foil = both[:, fact.true_id].tolist(), both[:, fact.foil_id].tolist()
            facts.append((
                text.number, fact.fact.case_id, fact.fact.subject, fact.fact.text, fact.true_token, fact.foil_token,
                scaled[i], true[0], foil[0], true[0] - foil[0], true[1], foil[1], true[1] - foil[1],
            ))  # fmt: skip
    return facts


def _ends(model: MoeModel) -> set[int]:
    """Ids after which a text is over."""
    ends = getattr(model.config, "eos_token_id", None)
    found = {ends} if isinstance(ends, int) else set(ends or ())
    return found | {getattr(model.tokenizer, "eos_token_id", None)} - {None}


def _said(model: MoeModel, text: _Text) -> str:
    """The continuation alone, as text."""
    new = text.ids[len(text.fact.input_ids) :]
    if model.tokenizer is None:
        return " ".join(map(str, new))
    if not new:
        return ""
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    # decoders strip a leading space: decode it behind the token before
    before = model.tokenizer.decode(text.ids[: -len(new)][-1:], **options)
    return model.tokenizer.decode(text.ids[-len(new) - 1 :], **options)[len(before) :]
