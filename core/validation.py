"""Which facts of a list a model can be asked about, and why not the others: a derived answer, kind `validation`.

First what the tokenizer says (subject, objects), then, where it is asked for, the contrasts of the clean and of the
corrupt run, held against the study's filters. Facts that fail are rows of the table, so none is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from .asking import prepare_for
from .derived import DerivedRequest
from .errors import InputError
from .progress import SILENT, Progress, Share
from .prompts import PreparedFact, check_distinct, check_objects, object_token, subject_span
from .requests import Fact, ModelSpec, TraceRequest

if TYPE_CHECKING:
    import torch

    from .moe import MoeModel

KIND = "validation"
USABLE = "usable"
OUTCOMES = {
    USABLE: "usable",
    "subject": "the subject is not in the prompt, or several times",
    "no_foil": "there is no foil",
    "objects": "true object and foil are empty or the same",
    "prompt": "the prompt's tokens do not fit",
    "true_token": "the true object is not a single token",
    "foil_token": "the foil is not a single token",
    "same_token": "true object and foil begin with the same token",
    "other": "the model cannot take it",
    "clean_contrast": "the clean contrast is below the minimum",
    "drop": "the drop is below the minimum",
}
"""What becomes of a fact, and what that means."""
COLUMNS = (
    "case_id", "subject", "relation", "true", "foil", "outcome", "reason", "clean_contrast", "corrupt_contrast", "drop",
)  # fmt: skip
"""Of the table `facts`. `reason`: a sentence where it is not usable; contrasts in logits, missing where the fact was
not measured; `foil`: the model's choice where it is automatic and was measured."""
_BATCH_TOKENS = 4096


def ask(
    model: ModelSpec,
    facts: Sequence[Fact],
    *,
    measure: bool = True,
    min_clean_contrast: float = 1.0,
    min_drop: float = 0.5,
    noise: float = 3.0,
    draws: int = 1,
    seed: int = 0,
    special_tokens: str = "auto",
    object_tokens: str = "space",
) -> DerivedRequest:
    """The request. `measure`: also the contrasts, with the filters of protocol.md's "The study"."""
    tokens = {"special_tokens": special_tokens, "object_tokens": object_tokens}
    if not measure:
        return DerivedRequest.of(KIND, model, facts=facts, measure=False, **tokens)
    numbers = {"min_clean_contrast": float(min_clean_contrast), "min_drop": float(min_drop), "noise": float(noise)}
    return DerivedRequest.of(KIND, model, facts=facts, measure=True, draws=draws, seed=seed, **numbers, **tokens)


def answer(
    model: MoeModel, request: DerivedRequest, *, store: Any = None, progress: Progress = SILENT
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """Tables `facts` (`COLUMNS`) and `counts` (outcome, meaning, facts); values: `usable`, `facts`, `left_out` (empty).

    Reads nothing from the store: contrasts alone cost less than looking for whole traces.
    """
    asked = request.get()
    facts = request.facts
    outcomes: list[dict[str, Any]] = []
    ready: list[tuple[int, TraceRequest, PreparedFact]] = []
    share = 0.1 if asked["measure"] else 1.0
    for place, fact in enumerate(facts):
        if place % 64 == 0:
            progress.update(share * place, len(facts), "tokens")
            progress.check()
        question = _question(fact, model.spec, asked)
        outcome, reason, prepared = tokens_of(model, question)
        outcomes.append({"outcome": outcome, "reason": reason})
        if prepared is not None:
            ready.append((place, question, prepared))
    if asked["measure"]:
        rest = Share(progress, share * len(facts), (1 - share) * len(facts), len(facts), "clean and corrupt runs")
        for place, values in _measured(model, ready, rest):
            outcomes[place] |= values | _filtered(values, asked)
    rows = [_row(fact, found) for fact, found in zip(facts, outcomes, strict=True)]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    table = table.astype(dict.fromkeys(("clean_contrast", "corrupt_contrast", "drop"), "float64"))
    counts = table.outcome.value_counts()
    listed = [name for name in OUTCOMES if name == USABLE or name in counts]
    summary = pd.DataFrame({
        "outcome": listed, "meaning": [OUTCOMES[name] for name in listed],
        "facts": [int(counts.get(name, 0)) for name in listed],
    })  # fmt: skip
    values = {"facts": len(facts), "usable": int(counts.get(USABLE, 0)), "left_out": []}
    return {"facts": table, "counts": summary}, values


def tokens_of(model: MoeModel, question: TraceRequest) -> tuple[str, str, PreparedFact | None]:
    """(outcome, reason, the fact as the tokenizer sees it or None)."""
    fact = question.fact
    options = {"special_tokens": question.special_tokens, "object_tokens": question.object_tokens}
    outcome = "subject"
    try:
        subject_span(fact)
        outcome = "no_foil" if fact.foil is None else "objects"
        check_objects(fact)
        outcome = "true_token"
        true = object_token(model.tokenizer, fact.text, fact.true, role="true", **options)
        if not fact.foil_auto:
            outcome = "foil_token"
            foil = object_token(model.tokenizer, fact.text, fact.foil or "", role="foil", **options)
            outcome = "same_token"
            check_distinct(fact, true, foil)
        outcome = "other"
        return USABLE, "", prepare_for(model, question)
    except InputError as error:
        return "prompt" if error.field == "prompt" and outcome != "subject" else outcome, error.what, None


def _question(fact: Fact, spec: ModelSpec, asked: dict[str, Any]) -> TraceRequest:
    settings = {name: asked[name] for name in ("noise", "draws", "seed") if name in asked}
    return TraceRequest(
        fact, spec, special_tokens=asked["special_tokens"], object_tokens=asked["object_tokens"], **settings
    )


def _measured(
    model: MoeModel, ready: Sequence[tuple[int, TraceRequest, PreparedFact]], progress: Progress
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(place, contrasts) of every fact that can be run, prompts of similar length together."""
    from .budget import Budget

    budget = Budget.measure(model)
    per_token = 6 * model.hidden * model.dtype.itemsize  # states before and after a layer, the block's in and out
    most = _BATCH_TOKENS * (1 if model.device.type == "cpu" else 4)
    most = min(most, max(budget.kept_bytes // per_token, 1))
    order = sorted(ready, key=lambda item: len(item[2].input_ids))
    whole = sum(map(_tokens, order))
    done = 0
    for batch in _batches(order, most):
        tokens = sum(map(_tokens, batch))
        yield from _contrasts(model, batch, budget.chunk_tokens, Share(progress, done, tokens, whole))
        done += tokens
        progress.pause()


def _tokens(item: tuple[int, TraceRequest, PreparedFact]) -> int:
    """Of all runs of a fact."""
    return len(item[2].input_ids) * (1 + item[1].draws)


def _batches(items: Sequence[Any], most: int) -> Iterator[list[Any]]:
    batch: list[Any] = []
    tokens = 0
    for item in items:
        if batch and tokens + _tokens(item) > most:
            yield batch
            batch, tokens = [], 0
        batch.append(item)
        tokens += _tokens(item)
    if batch:
        yield batch


def _contrasts(
    model: MoeModel, batch: Sequence[tuple[int, TraceRequest, PreparedFact]], chunk_tokens: Any, progress: Progress
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The same of one batch, from one sweep without any patch."""
    from .fact_runs import runs_of
    from .sweep import listed, sweep

    runs, owners = [], []
    for number, (_, question, prepared) in enumerate(batch):
        mine = runs_of(model, question, prepared)[0]
        runs += mine
        owners += [number] * len(mine)
    foils: list[int] = []

    def objects(final: torch.Tensor) -> list[tuple[int, int]]:
        foils[:] = _foils(model, [prepared for _, _, prepared in batch], owners, final)
        return [(batch[number][2].true_id, foils[number]) for number in owners]

    outcome = sweep(
        model, model.structure, runs, listed(()), objects=objects, chunk_tokens=chunk_tokens, keep=False,
        progress=progress,
    )  # fmt: skip
    logits = outcome.runs.double().numpy()
    contrasts = logits[:, 0] - logits[:, 1]
    for number, (place, _, prepared) in enumerate(batch):
        clean, *corrupt = (float(contrasts[i]) for i, owner in enumerate(owners) if owner == number)
        mean = sum(corrupt) / len(corrupt)
        values = {"clean_contrast": clean, "corrupt_contrast": mean, "drop": clean - mean}
        if prepared.foil_id is None:
            values["foil"] = model.piece(foils[number]).strip()
        yield place, values


def _foils(model: MoeModel, facts: Sequence[PreparedFact], owners: Sequence[int], final: torch.Tensor) -> list[int]:
    """The foil of each fact; an automatic one from its clean run, which is the first that the fact owns."""
    from .head import all_logits

    out = []
    for number, fact in enumerate(facts):
        if fact.foil_id is None:
            logits = all_logits(model, final[[owners.index(number)]])[0]
            logits[fact.true_id] = float("-inf")
            out.append(int(logits.argmax()))
        else:
            out.append(fact.foil_id)
    return out


def _filtered(values: dict[str, Any], asked: dict[str, Any]) -> dict[str, str]:
    for name, what in (("clean_contrast", "clean contrast"), ("drop", "drop")):
        least = asked[f"min_{name}"]
        if not values[name] >= least:
            return {"outcome": name, "reason": f"The {what} is {values[name]:+.2f} logits, below {least:g}."}
    return {}


def _row(fact: Fact, found: dict[str, Any]) -> dict[str, Any]:
    own = {"case_id": fact.case_id, "subject": fact.subject, "relation": fact.relation, "true": fact.true}
    return dict.fromkeys(COLUMNS) | own | {"foil": fact.foil} | found
