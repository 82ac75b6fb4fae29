"""Which experts every token of many prompts goes to, and with which router weight: clean runs and corrupt ones.

A sweep without patches, some prompts at a time, of which only indices and weights are kept. Facts are prompts with a
subject; a plain prompt has none, hence no corrupt run. Knows nothing of statistics (`core.routing`) or pages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .errors import InputError, OutOfMemory
from .facts import bundled
from .progress import SILENT, Progress, Share
from .prompts import PreparedFact, check_length, encode, piece, subject_positions, subject_span
from .replacing import with_replacements
from .requests import Fact, TraceRequest
from .roles import NO_SUBJECT, ROLES, roles_of
from .routing import TOKEN_COLUMNS, RoutedTokens

if TYPE_CHECKING:  # these load torch, which reading a stored answer does without
    from .base import BaseLayer, Run
    from .moe import MoeModel

MOST_SLOTS = 48_000_000
"""Most routed slots (tokens × MoE layers × top-k) of one answer: about 250 MB at five bytes each."""
_MOST_TOKENS = 16_384  # in one sweep
_KEPT_PER_TOKEN = 8  # hidden states that a sweep holds of each token at a time
RUNS = ("clean", "corrupt")
ALL_ROLES = (*ROLES, NO_SUBJECT)


@dataclass(frozen=True)
class PlacedPrompt:
    """One prompt as token ids. `subject`: its positions, none for a plain prompt; `replaced`: the token ids of the
    corrupt runs where another subject stands in the subject's place (else they have noise)."""

    fact: Fact
    ids: tuple[int, ...]
    subject: tuple[int, ...] = ()
    replaced: tuple[tuple[int, ...], ...] = ()


def plain(text: str, number: int = 0) -> Fact:
    """A prompt without subject and objects; `number` counts it, as a case_id does a fact."""
    return Fact(prompt=text, subject="", true="", case_id=number)


def place(model: MoeModel, request: TraceRequest) -> PlacedPrompt:
    """The request's prompt as the model's tokenizer sees it. Raises `InputError` where that cannot be.

    Objects do not matter: routing up to the last token does not depend on them.
    """
    fact, tokenizer = request.fact, model.tokenizer
    span = subject_span(fact) if fact.subject else None
    ids, spans, _ = encode(tokenizer, fact.text, special_tokens=request.special_tokens)
    check_length(len(ids), model.max_length)
    at: tuple[int, ...] = ()
    replaced: tuple[tuple[int, ...], ...] = ()
    if span is not None:
        tokens = tuple(piece(tokenizer, i) for i in ids)
        at = subject_positions(fact.text, tokens, spans, *span)
        if request.corruption == "replace":
            seen = PreparedFact(fact, ids, tokens, spans, at, true_id=0, foil_id=None, true_token="", foil_token="")
            replaced = with_replacements(tokenizer, request, seen, bundled()).replaced_ids
    beyond = [i for each in (ids, *replaced) for i in each if i >= model.vocabulary]
    if beyond:
        raise InputError(
            f"Token {beyond[0]} of the prompt is beyond the model's vocabulary of {model.vocabulary}.",
            "The tokenizer does not belong to the model, or the text holds one of its added tokens.",
            field="prompt",
        )
    return PlacedPrompt(fact, ids, at, replaced)


def collect(
    model: MoeModel,
    prompts: Sequence[PlacedPrompt],
    *,
    noise: float = 3.0,
    draws: int = 1,
    seed: int = 0,
    progress: Progress = SILENT,
) -> RoutedTokens:
    """The routed experts and router weights of every position of every prompt: its clean run, then those of each draw.

    `tokens.fact` numbers the prompts in their order. `noise` × std of the embedding table at the subject's embeddings,
    generator seeded with seed + case_id, `draws` times; where a prompt has `replaced` ids, those are its corrupt runs.
    Weights are fp32. Raises `InputError` where the answer would be too large, `OutOfMemory` where not even one prompt
    fits.
    """
    ids = [_ids_of(prompt, draws) for prompt in prompts]
    costs = [sum(map(len, each)) for each in ids]
    _check_size(model, costs)
    parts: dict[int, _Part] = {}
    left = sorted(range(len(prompts)), key=lambda i: len(prompts[i].ids))  # rows of one length run together
    done, total, most = 0, sum(costs), _tokens_at_once(model)
    while left:
        batch = left[: _batch([costs[i] for i in left], most)]
        runs = [run for i in batch for run in _runs(model, prompts[i], noise, draws, seed)]
        cost = sum(costs[i] for i in batch)
        found = _swept(model, runs, Share(progress, done, cost, total, "routing"))
        if found is None:  # out of memory
            if len(batch) == 1:
                raise OutOfMemory("Not even one prompt fits into the memory.")
            most = max(1, cost // 2)
            continue
        ends = np.cumsum([costs[i] for i in batch])[:-1]
        for i, index, weight in zip(batch, *(np.split(values, ends) for values in found), strict=True):
            parts[i] = _Part(index, weight)
        done, left = done + cost, left[len(batch) :]
        progress.update(done, total, "routing")
        progress.pause()
    width = max((part.index.shape[2] for part in parts.values()), default=0)
    empty, n_experts = (0, len(model.moe_layers), width), model.n_experts
    small = np.uint8 if n_experts < 256 else np.int16
    ordered = [parts[i] for i in range(len(parts))]
    index = [np.zeros(empty, small), *(_wide(part.index, width, n_experts).astype(small) for part in ordered)]
    weight = [np.zeros(empty, np.float32), *(_wide(part.weight, width, 0.0) for part in ordered)]
    return RoutedTokens(
        tokens=token_table(prompts, ids, model.piece),
        index=np.concatenate(index),
        weight=np.concatenate(weight),
        layers=tuple(model.moe_layers),
        n_experts=n_experts,
    )


def token_table(
    prompts: Sequence[PlacedPrompt], runs: Sequence[Sequence[Sequence[int]]], piece_of: Callable[[int], str]
) -> pd.DataFrame:
    """The tokens (`core.routing.TOKEN_COLUMNS`) of every prompt's runs: `runs[i]` are the token ids of prompt i's clean
    run, then of each corrupt one. Text columns are categorical."""
    flat = [(i, number, ids) for i, each in enumerate(runs) for number, ids in enumerate(each)]
    lengths = np.array([len(ids) for _, _, ids in flat], dtype=np.int64)

    def spread(values: Sequence[Any], dtype: Any = object) -> np.ndarray:
        return np.repeat(np.array(values, dtype=dtype), lengths)

    facts = [prompts[i].fact for i, _, _ in flat]
    roles = [role for i, _, ids in flat for role in roles_of(len(ids), prompts[i].subject)]
    ids = np.array([i for _, _, each in flat for i in each], dtype=np.int32)
    known, where = np.unique(ids, return_inverse=True)
    run = spread([number for _, number, _ in flat], np.int16)
    return pd.DataFrame({
        "fact": spread([i for i, _, _ in flat], np.int32),
        "case_id": spread([fact.case_id for fact in facts], np.int64),
        "relation": pd.Categorical(spread([fact.relation for fact in facts])),
        "subject": pd.Categorical(spread([fact.subject or None for fact in facts])),
        "run": pd.Categorical.from_codes((run > 0).astype(np.int8), RUNS),
        "draw": pd.arrays.IntegerArray(np.maximum(run - 1, 0), run == 0),
        "pos": np.concatenate([np.zeros(0, np.int16), *(np.arange(n, dtype=np.int16) for n in lengths)]),
        "role": pd.Categorical(roles, categories=ALL_ROLES),
        "token_id": ids,
        "token": pd.Categorical(np.array([piece_of(int(i)) for i in known], dtype=object)[where]),
    })[TOKEN_COLUMNS]  # fmt: skip


@dataclass(frozen=True)
class _Part:
    """Of one prompt's runs, one behind the other: `index`, `weight` [tokens, layers, k]."""

    index: np.ndarray
    weight: np.ndarray


def _runs(model: MoeModel, prompt: PlacedPrompt, noise: float, draws: int, seed: int) -> list[Run]:
    from .base import Run
    from .corruption import draw_noise

    if prompt.replaced:
        return [Run(prompt.ids), *(Run(ids) for ids in prompt.replaced)]
    if not prompt.subject:
        return [Run(prompt.ids)]
    drawn = draw_noise(
        seed=seed, case_id=prompt.fact.case_id, draws=draws, n_subject=len(prompt.subject), hidden=model.hidden,
        sigma=noise * model.embedding_std,
    )  # fmt: skip
    return [Run(prompt.ids), *(Run(prompt.ids, one, prompt.subject) for one in drawn)]


def _ids_of(prompt: PlacedPrompt, draws: int) -> list[tuple[int, ...]]:
    """Token ids of the clean run and of each corrupt one, as in `_runs`."""
    return [prompt.ids, *(prompt.replaced or [prompt.ids] * (draws if prompt.subject else 0))]


def _batch(costs: Sequence[int], most: int) -> int:
    """How many of the first prompts to take: at most `most` tokens of them, but one."""
    fits = int(np.searchsorted(np.cumsum(costs), most, side="right"))
    return max(1, fits)


def _tokens_at_once(model: MoeModel) -> int:
    from .budget import Budget

    states = _KEPT_PER_TOKEN * (model.n_layers if model.whole else 1)  # a whole pass keeps those of all layers
    per_token = max(1, states * model.hidden * model.dtype.itemsize)
    return max(1, min(_MOST_TOKENS, Budget.measure(model).kept_bytes // per_token))


def _check_size(model: MoeModel, costs: Sequence[int]) -> None:
    tokens, per_token = sum(costs), len(model.moe_layers) * model.top_k
    if tokens * per_token > MOST_SLOTS:
        raise InputError(
            f"{len(costs):,} prompts have {tokens:,} tokens in their runs, each with {per_token} routed experts: "
            f"more than the {MOST_SLOTS:,} that are kept of one question.",
            f"Choose at most about {len(costs) * MOST_SLOTS // (tokens * per_token):,} prompts, or fewer draws.",
            field="facts",
        )


def _swept(model: MoeModel, runs: Sequence[Run], progress: Progress) -> tuple[np.ndarray, np.ndarray] | None:
    """(index, weight) [tokens of all runs, layers, k] of one sweep, or None where memory ran out."""
    import torch

    from .budget import Budget
    from .room import give_back, ran_out
    from .sweep import sweep

    index: list[np.ndarray] = []
    weight: list[np.ndarray] = []

    def note(base: BaseLayer) -> tuple[()]:
        if base.layer in model.blocks:
            index.append(torch.cat([base.index[i] for i in range(len(runs))]).cpu().numpy())
            weight.append(torch.cat([base.weight[i] for i in range(len(runs))]).float().cpu().numpy())
        return ()

    try:
        chunk = Budget.measure(model).chunk_tokens
        sweep(
            model, model.structure, runs, note, objects=[(0,)] * len(runs), chunk_tokens=chunk, keep=False,
            progress=progress,
        )  # fmt: skip
    except (MemoryError, RuntimeError, OutOfMemory) as error:
        if not ran_out(error):
            raise
    else:
        width = max(part.shape[1] for part in index)
        return (
            np.stack([_wide(part, width, model.n_experts) for part in index], axis=1),
            np.stack([_wide(part, width, 0.0) for part in weight], axis=1),
        )
    give_back()
    return None


def _wide(values: np.ndarray, width: int, filler: float) -> np.ndarray:
    """With so many slots: layers may have different top-k."""
    missing = width - values.shape[-1]
    return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, missing)], constant_values=filler) if missing else values

