"""Two derived questions about routing: of one set of prompts, and of two sets compared.

`routing`: where every token goes, clean and corrupt, with the statistics that take permutations. `routing_comparison`:
how far the routing of two such sets differs. Makes the requests, answers them, and reads the raw routing back out of
a result; the statistics themselves are in `core.routing`, running the model in `core.routed`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .derived import DerivedRequest, DerivedResult, derive
from .errors import InputError
from .progress import SILENT, Progress, Share
from .requests import Fact, ModelSpec, TraceRequest, digest
from .roles import ALL
from .routed import ALL_ROLES, RUNS, PlacedPrompt, collect, place, plain
from .routing import RoutedTokens, Sample, compare, information
from .routing_sets import expert_rows, frequency_table, load_table, mask_of, parts_of

if TYPE_CHECKING:
    from .moe import MoeModel

ROUTING, COMPARISON = "routing", "routing_comparison"
PERMUTATIONS = 200
CLEAN, CORRUPT = RUNS


def routing_request(
    model: ModelSpec,
    *,
    facts: Sequence[Fact] = (),
    prompts: Sequence[str] = (),
    corruption: str = "noise",
    noise: float = 3.0,
    draws: int = 1,
    seed: int = 0,
    special_tokens: str = "auto",
) -> DerivedRequest:
    """The question where the tokens of `facts`, or of plain `prompts`, are routed. Settings as in `TraceRequest`; those
    that cannot change a number (of the corruption, for plain prompts) are left out."""
    if prompts:
        return DerivedRequest.of(ROUTING, model, prompts=list(prompts), special_tokens=special_tokens)
    given: dict[str, Any] = {"draws": draws, "seed": seed, "special_tokens": special_tokens, "corruption": corruption}
    if corruption == "noise":
        given["noise"] = noise
    return DerivedRequest.of(ROUTING, model, facts=facts, **given)


def caption(request: DerivedRequest, n: int) -> str:
    """What was routed, in one line."""
    if not request.facts:
        return f"Routing of {n} plain prompt{'s' if n != 1 else ''}, every position"
    relations = sorted({fact.relation for fact in request.facts if fact.relation})
    of = f" of {relations[0] if len(relations) == 1 else f'{len(relations)} relations'}" if relations else ""
    return f"Routing of {n} fact{'s' if n != 1 else ''}{of}, every position, clean and corrupt runs"


def comparison_request(a: DerivedRequest, b: DerivedRequest) -> DerivedRequest:
    """The question how far the routing of two sets differs; both `routing` requests of one model."""
    settings = {"a": a.get(), "b": b.get(), "facts_of_a": len(a.facts)}
    return DerivedRequest.of(COMPARISON, a.model, facts=(*a.facts, *b.facts), **settings)


def sides_of(request: DerivedRequest) -> tuple[DerivedRequest, DerivedRequest]:
    """The two questions that a comparison is made of."""
    settings = request.get()
    n, sides = settings.get("facts_of_a"), [settings.get(name) for name in "ab"]
    whole = isinstance(n, int) and 0 <= n <= len(request.facts)
    if not whole or not all(isinstance(side, dict) for side in sides) or set(settings) != {"a", "b", "facts_of_a"}:
        raise InputError(
            "A comparison of two sets needs the settings a, b and facts_of_a.",
            "a and b are settings of the kind `routing`; the first facts_of_a of the facts are those of a.",
            field="settings",
        )
    return (
        DerivedRequest.of(ROUTING, request.model, facts=request.facts[:n], **settings["a"]),
        DerivedRequest.of(ROUTING, request.model, facts=request.facts[n:], **settings["b"]),
    )


def answer(
    model: MoeModel, request: DerivedRequest, *, store: Any, progress: Progress
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """The kind `routing`.

    Tables: `prompts` (one per prompt that could be taken: its number `fact`, its `place` among the request's facts or
    prompts, case_id, relation, subject, text, n_tokens),
    `tokens`, `vocabulary`, `experts`, `weights` (the raw routing, see `routed_of`), `frequency` and `load` (see
    `core.routing_sets`), `information` (per position class,
    run, layer and expert: mutual information with the relation and its permutation baseline, bits) and
    `clean_corrupt` (per position class and layer: Jensen–Shannon divergence of the clean and the corrupt runs' load).
    Values: layers, n_experts, top_k, n_prompts, left_out.
    """
    asked = _asked(request)
    places, prompts, left_out = _placed(model, request, asked, progress)
    share = Share(progress, 0, 0.9, 1)
    routed = collect(model, prompts, noise=asked.noise, draws=asked.draws, seed=asked.seed, progress=share)
    progress.update(0.9, 1, "statistics")
    tables, values = parts_of_answer(routed, [prompt.fact for prompt in prompts], places, progress=progress)
    return tables, values | {"left_out": left_out, "caption": [caption(request, len(prompts))]}


def parts_of_answer(
    routed: RoutedTokens, facts: Sequence[Fact], places: Sequence[int], *, progress: Progress = SILENT
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """The tables and values of an answer from the raw routing of `facts`, the request's numbers `places`."""
    tables = _raw_tables(routed, facts, places)
    tables["frequency"] = frequency_table(routed)
    tables["load"] = load_table(tables["frequency"])
    tables["information"] = information_table(routed, progress=progress)
    tables["clean_corrupt"] = _clean_corrupt(routed, progress)
    return tables, {
        "layers": list(routed.layers), "n_experts": routed.n_experts, "top_k": int(routed.index.shape[2]),
        "n_prompts": len(facts),
    }  # fmt: skip


def _asked(request: DerivedRequest) -> TraceRequest:
    """The settings as those of a trace (of no fact). Raises `InputError` for what cannot be a setting."""
    settings = request.get()
    unknown = sorted(set(settings) - {*_SETTINGS, "prompts"})
    if unknown:
        known = ", ".join([*_SETTINGS, "prompts"])
        raise InputError(f"Routing has no setting {unknown[0]!r}.", f"It has: {known}.", field="settings")
    prompts = settings.pop("prompts", [])
    if not isinstance(prompts, list) or any(not isinstance(each, str) or "{}" in each for each in prompts):
        raise InputError("prompts has to be a list of texts without {}.", "Write subjects out.", field="prompts")
    if prompts and request.facts:
        raise InputError("There are facts and plain prompts.", "Give one or the other.", field="prompts")
    return TraceRequest(plain(""), model=request.model, **settings)


_SETTINGS = ("corruption", "noise", "draws", "seed", "special_tokens")


def _placed(
    model: MoeModel, request: DerivedRequest, asked: TraceRequest, progress: Progress
) -> tuple[list[int], list[PlacedPrompt], list[dict[str, Any]]]:
    """The prompts as token ids with their places in the request, and those that the model cannot take with the
    reason."""
    facts = request.facts or [plain(text, i) for i, text in enumerate(request.get().get("prompts", ()))]
    places, prompts, left_out = [], [], []
    for number, fact in enumerate(facts):
        progress.check()
        try:
            prompts.append(place(model, asked.replace(fact=fact)))
            places.append(number)
        except InputError as error:
            left_out.append({"case_id": fact.case_id, "subject": fact.subject or fact.prompt[:80], "why": str(error)})
    if not prompts:
        first = f" The first: {left_out[0]['why']}" if left_out else ""
        what = f"The model can take none of the {len(facts)} prompts.{first}"
        raise InputError(what, "Choose others.", field="facts")
    return places, prompts, left_out


# -- raw routing in tables ------------------------------------------------------------------------------------------


def _raw_tables(routed: RoutedTokens, facts: Sequence[Fact], places: Sequence[int]) -> dict[str, pd.DataFrame]:
    tokens = routed.tokens
    seen = tokens.drop_duplicates("token_id")
    columns = [f"L{layer}.{slot}" for layer in routed.layers for slot in range(routed.index.shape[2])]
    flat = (len(tokens), len(columns))
    return {
        "prompts": pd.DataFrame({
            "fact": np.arange(len(facts), dtype=np.int32),
            "place": np.array(places, dtype=np.int32),
            "case_id": np.array([fact.case_id for fact in facts], dtype=np.int64),
            "relation": pd.array([fact.relation for fact in facts], dtype="str"),
            "subject": pd.array([fact.subject or None for fact in facts], dtype="str"),
            "text": pd.array([fact.text for fact in facts], dtype="str"),
            "n_tokens": np.bincount(tokens.fact[tokens.run == CLEAN], minlength=len(facts)).astype(np.int32),
        }),
        "tokens": pd.DataFrame({
            "fact": tokens.fact.to_numpy(np.int32),
            "draw": tokens.draw.fillna(-1).to_numpy(np.int16),
            "pos": tokens.pos.to_numpy(np.int16),
            "role": tokens.role.cat.codes.to_numpy(np.int8),
            "token_id": tokens.token_id.to_numpy(np.int32),
        }),
        "vocabulary": pd.DataFrame({"token_id": seen.token_id.to_numpy(np.int32), "token": seen.token.astype("str")}),
        "experts": pd.DataFrame(routed.index.reshape(flat), columns=columns),
        "weights": pd.DataFrame(routed.weight.reshape(flat), columns=columns),
    }  # fmt: skip


def routed_of(result: DerivedResult) -> RoutedTokens:
    """The raw routing of a `routing` result, as `core.routed.collect` gave it."""
    tables, values = result.tables, result.values
    tokens, prompts, words = tables["tokens"], tables["prompts"], tables["vocabulary"]
    fact, draw = tokens.fact.to_numpy(), tokens.draw.to_numpy()
    shape = (len(tokens), len(values["layers"]), values["top_k"])
    vocabulary = pd.Categorical(words.token.astype(object))
    place_of = pd.Series(np.arange(len(words)), index=words.token_id)

    def category(name: str) -> pd.Categorical:
        known = pd.Categorical(prompts[name].astype(object).where(prompts[name].notna(), None))
        return pd.Categorical.from_codes(known.codes[fact], dtype=known.dtype)

    frame = pd.DataFrame({
        "fact": fact,
        "case_id": prompts.case_id.to_numpy()[fact],
        "relation": category("relation"),
        "subject": category("subject"),
        "run": pd.Categorical.from_codes((draw >= 0).astype(np.int8), RUNS),
        "draw": pd.arrays.IntegerArray(np.maximum(draw, 0).astype(np.int16), draw < 0),
        "pos": tokens.pos.to_numpy(np.int16),
        "role": pd.Categorical.from_codes(tokens.role.to_numpy(), ALL_ROLES),
        "token_id": tokens.token_id.to_numpy(np.int32),
        "token": pd.Categorical.from_codes(
            vocabulary.codes[place_of[tokens.token_id].to_numpy()], dtype=vocabulary.dtype
        ),
    })  # fmt: skip
    return RoutedTokens(
        tokens=frame,
        index=tables["experts"].to_numpy().reshape(shape),
        weight=tables["weights"].to_numpy().reshape(shape),
        layers=tuple(values["layers"]),
        n_experts=values["n_experts"],
    )


# -- statistics that take permutations ------------------------------------------------------------------------------


def information_table(routed: RoutedTokens, *, progress: Progress, permutations: int = PERMUTATIONS) -> pd.DataFrame:
    """Mutual information between a fact's relation and whether its token (for the class `others`: one of its tokens)
    is routed to an expert; of corrupt runs the first draw. Empty where the facts have fewer than two relations."""
    parts = [pd.DataFrame(columns=INFORMATION_COLUMNS)]
    known = routed.tokens.relation.notna().to_numpy() & (routed.tokens.draw.fillna(0) == 0).to_numpy()
    for run, position_class in parts_of(routed):
        progress.check()
        mask = mask_of(routed, run, position_class) & known
        facts, row = np.unique(routed.tokens.fact[mask], return_inverse=True)
        first = routed.tokens[mask].drop_duplicates("fact").set_index("fact").relation.astype(object)
        relations = first[facts].to_numpy()
        if position_class == ALL or len(set(relations)) < 2:
            continue
        index = np.minimum(routed.index[mask].astype(np.int64), routed.n_experts)
        active = np.zeros((len(facts), len(routed.layers), routed.n_experts + 1), dtype=bool)
        for slot in range(index.shape[2]):
            active[row[:, None], np.arange(len(routed.layers))[None], index[:, :, slot]] = True
        values = information(active[..., : routed.n_experts], relations, permutations=permutations)
        found, baseline, high = (each.ravel() for each in values)
        parts.append(expert_rows(run, position_class, routed.layers, routed.n_experts).assign(
            information=found, baseline=baseline, high=high, above_baseline=found - baseline, facts=len(facts),
            relations=len(set(relations)),
        ))  # fmt: skip
    return pd.concat(parts[1:] or parts, ignore_index=True)


INFORMATION_COLUMNS = [
    "run", "position_class", "layer", "expert", "name", "information", "baseline", "high", "above_baseline", "facts",
    "relations",
]  # fmt: skip
"""Columns of the table `information`: in bits; `baseline`: mean over permutations of the relations, `high`: their 95th
percentile; `above_baseline` = information − baseline; `facts` and `relations`: how many went in."""


def _clean_corrupt(routed: RoutedTokens, progress: Progress) -> pd.DataFrame:
    """Divergence of the clean and the corrupt load; a prompt's two runs are counterparts."""
    parts = []
    for run, position_class in parts_of(routed):
        progress.check()
        if run == CORRUPT:
            units = routed.tokens.fact.to_numpy()
            sets = [Sample(routed, mask_of(routed, each, position_class), units) for each in RUNS]
            parts.append(_layers(compare(*sets, permutations=PERMUTATIONS), routed, position_class=position_class))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["position_class", *LAYER_COLUMNS])


LAYER_COLUMNS = [
    "layer", "divergence", "baseline", "high", "above_baseline", "p", "tokens_a", "tokens_b", "prompts_a", "prompts_b",
]  # fmt: skip


def _layers(found, routed: RoutedTokens, **more: Any) -> pd.DataFrame:  # noqa: ANN001 - a core.routing.Divergence
    return pd.DataFrame({
        **more, "layer": list(routed.layers), "divergence": found.total, "baseline": found.baseline,
        "high": found.high, "above_baseline": found.total - found.baseline, "p": found.p,
        "tokens_a": found.tokens[0], "tokens_b": found.tokens[1],
        "prompts_a": found.units[0], "prompts_b": found.units[1],
    })  # fmt: skip


def answer_comparison(
    model: MoeModel, request: DerivedRequest, *, store: Any, progress: Progress
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """The kind `routing_comparison`.

    Tables: `layers` (per run, position class and layer: Jensen–Shannon divergence in bits, its permutation baseline,
    95th percentile and p, tokens and prompts of both sets) and `experts` (per expert too: its part of the divergence,
    what chance gives it, its shares of the two sets' load). A fact in both sets (same case_id and subject) is its own
    counterpart where the prompts differ; a prompt that is in both belongs to both. Values: of each set
    n_prompts and left_out.
    """
    sides = [
        derive(model, side, store=store, progress=Share(progress, 0.45 * i, 0.45, 1))
        for i, side in enumerate(sides_of(request))
    ]
    routed = [routed_of(side) for side in sides]
    units = [_units(side, each, f"{name}:") for side, each, name in zip(sides, routed, "ab", strict=True)]
    shared = _same_prompts(sides, units)
    layers, experts = [], []
    there = set(parts_of(routed[1]))
    for part in [each for each in parts_of(routed[0]) if each in there]:
        progress.check()
        run, position_class = part
        sets = [Sample(each, mask_of(each, *part), names, shared) for each, names in zip(routed, units, strict=True)]
        found = compare(*sets, permutations=PERMUTATIONS)
        where = {"run": run, "position_class": position_class}
        layers.append(_layers(found, routed[0], **where))
        experts.append(expert_rows(run, position_class, routed[0].layers, routed[0].n_experts).assign(
            part=found.part.ravel(), part_baseline=found.part_baseline.ravel(), share_a=found.a.ravel(),
            share_b=found.b.ravel(),
        ))  # fmt: skip
    values = {
        f"{key}_{name}": side.values[key]
        for name, side in zip("ab", sides, strict=True)
        for key in ("n_prompts", "left_out")
    }
    tables = {"layers": pd.concat(layers, ignore_index=True), "experts": pd.concat(experts, ignore_index=True)}
    said = [f"{x}: {caption(side.request, side.values['n_prompts'])}" for x, side in zip("AB", sides, strict=True)]
    return tables, values | {"layers": list(routed[0].layers), "n_experts": routed[0].n_experts, "caption": said}


def _units(side: DerivedResult, routed: RoutedTokens, prefix: str) -> np.ndarray:
    """A name for each token's prompt by which it is found in the other set, made of a fact's case_id and subject or of
    a plain prompt's text. What a set has several times has names of its own."""
    prompts = side.tables["prompts"]
    names = [
        digest(text) if pd.isna(subject) else digest(int(case_id), subject)
        for text, case_id, subject in zip(prompts.text, prompts.case_id, prompts.subject, strict=True)
    ]
    times = Counter(names)
    names = [name if times[name] == 1 else f"{prefix}{i} {name}" for i, name in enumerate(names)]
    return np.array(names)[routed.tokens.fact.to_numpy()]


def _same_prompts(sides: Sequence[DerivedResult], units: Sequence[np.ndarray]) -> frozenset[str]:
    """The names of the units that are one and the same prompt, asked with the same settings, in both sets."""
    settings = [{**side.request.get(), "prompts": None} for side in sides]
    if settings[0] != settings[1]:
        return frozenset()
    asked = []
    for side, names in zip(sides, units, strict=True):
        _, first = np.unique(side.tables["tokens"].fact.to_numpy(), return_index=True)
        given = side.request.facts or side.request.get()["prompts"]
        prompts = [given[place] for place in side.tables["prompts"].place]
        asked.append(set(zip(names[first].tolist(), prompts, strict=True)))
    return frozenset(name for name, _ in asked[0] & asked[1])
