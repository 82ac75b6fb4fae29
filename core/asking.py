"""From a request to token ids for one loaded model: the step before any run, and every reason why it fails."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from .errors import InputError
from .facts import bundled
from .prompts import PreparedFact, prepare
from .replacing import with_replacements
from .requests import Fact, TraceRequest

if TYPE_CHECKING:  # it loads torch, which an answer from the store does without
    from .moe import MoeModel


def prepare_for(model: MoeModel, request: TraceRequest, *, pool: Iterable[Fact] | None = None) -> PreparedFact:
    """The request's fact as the model's tokenizer sees it. Raises `InputError` naming the field that is wrong.

    `pool`: the facts whose subjects may stand in for this one's; the bundled ones if not given.
    """
    prepared = prepare(
        model.tokenizer,
        request.fact,
        special_tokens=request.special_tokens,
        object_tokens=request.object_tokens,
        first_token=request.first_token,
        max_length=model.max_length,
    )
    if request.corruption == "replace":
        prepared = with_replacements(model.tokenizer, request, prepared, bundled() if pool is None else pool)
    check_tokens(model, request, prepared)
    return prepared


def check_tokens(model: MoeModel, request: TraceRequest, prepared: PreparedFact) -> None:
    """What only the token ids show: positions beyond the prompt, tokens beyond the model's vocabulary."""
    ids, experts = prepared.input_ids, request.experts
    beyond = [] if isinstance(experts, str) else [pos for pos in experts if not 0 <= pos < len(ids)]
    if beyond:
        raise InputError(
            f"Experts are asked for at position {beyond[0]}, but the prompt has {len(ids)} tokens.",
            f"Positions go from 0 to {len(ids) - 1}.",
            field="experts",
        )
    replaced = prepared.replaced_ids
    if request.corruption == "replace" and [len(ids)] * request.draws != [len(other) for other in replaced]:
        raise InputError(
            f"{request.draws} replaced prompts of {len(ids)} tokens are needed, but there are {len(replaced)}.",
            "Give `replaced_ids` of the prompt's length, one for each draw.",
            field="replacement",
        )
    more = (i for other in replaced for i in other)
    unknown = [i for i in (*ids, *more, prepared.true_id, prepared.foil_id or 0) if i >= model.vocabulary]
    if unknown:
        raise InputError(
            f"Token {unknown[0]} of the fact is beyond the model's vocabulary of {model.vocabulary}.",
            "The tokenizer does not belong to the model, or the text holds one of its added tokens.",
            field="prompt",
        )
