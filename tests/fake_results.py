"""Made-up `TraceResult`s with the real schema, for tests of charts, exports and pages. No model behind them.

The numbers are smooth functions of layer and position plus seeded noise; contrasts, rescues and restorations are
computed by `core.results.complete`, so they hang together as the engine's do.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd

from core.requests import Fact, ModelSpec, TraceRequest
from core.results import FRAME_COLUMNS, Provenance, TraceResult, complete

FRANCE = Fact(
    prompt="The capital of {} is", subject="France", true="Paris", foil="Rome", case_id=17, relation="capital"
)
TOKENS = ["The", " capital", " of", " Fr", "ance", " is"]
SUBJECT = [3, 4]


def fake_result(
    *,
    request: TraceRequest | None = None,
    n_layers: int = 6,
    n_experts: int = 8,
    top_k: int = 2,
    dense: tuple[int, ...] = (),
    shared: bool = False,
    tokens: list[str] | None = None,
    subject: list[int] | None = None,
    clean: float = 6.0,
    drop: float = 5.0,
    seed: int = 0,
    cached: bool = False,
    noise_floor: float | None = None,
) -> TraceResult:
    """A result for `request` (default: France, 2 draws). `drop` below 0.05 makes every restoration missing."""
    request = request or TraceRequest(fact=FRANCE, draws=2)
    tokens = tokens or TOKENS
    subject = subject if subject is not None else SUBJECT
    last = len(tokens) - 1
    ids = list(range(100, 100 + len(tokens)))
    rng = np.random.default_rng(seed)
    moe = [layer for layer in range(n_layers) if layer not in dense]
    wanted = {"last": (last,), "all": tuple(range(len(tokens))), "none": ()}
    positions = wanted[request.experts] if isinstance(request.experts, str) else request.experts
    routing = _routing(rng, moe, len(tokens), n_experts, top_k, request.draws, min(subject))
    weights = {
        (run, draw, layer, pos): dict(zip(rows.expert, rows.router_weight, strict=True))
        for (run, draw, layer, pos), rows in routing.groupby(["run", "draw", "layer", "pos"], dropna=False)
    }
    weights = {(r, -1 if pd.isna(d) else int(d), la, p): w for (r, d, la, p), w in weights.items()}
    true0, foil0 = 12.0, 12.0 - clean
    frames = [_table([_row(request.fact.case_id, "clean", true0, foil0)])]
    frames[0] = frames[0].assign(contrast=clean, rescue=drop, restoration=1.0 if drop >= 0.05 else np.nan)
    for draw in range(request.draws):
        true_c = true0 - 0.7 * drop
        foil_c = true_c - (clean - drop)
        rows = [_row(request.fact.case_id, "corrupt", true_c, foil_c, draw=draw)]
        for layer in moe:
            for pos in range(len(tokens)):
                at = {"draw": draw, "layer": layer, "pos": pos, "token_id": ids[pos], "token": tokens[pos]}
                size = _effect(layer / max(n_layers - 1, 1), pos, subject[-1], last) * drop
                live = pos >= min(subject)
                gain = (size + rng.normal(0, 0.1)) if live else 0.0
                rows.append(_row(request.fact.case_id, "layer", true_c + 0.6 * gain, foil_c - 0.4 * gain, **at))
                if pos not in positions:
                    continue
                w0, w1 = weights["clean", -1, layer, pos], weights["corrupt", draw, layer, pos]
                for expert in sorted(set(w0) | set(w1)):
                    part = gain * w0.get(expert, 0.0) + (rng.normal(0, 0.05) if live else 0.0)
                    rows.append(
                        _row(
                            request.fact.case_id, "expert", true_c + 0.6 * part, foil_c - 0.4 * part, **at,
                            expert=expert, clean_active=expert in w0, router_weight_clean=w0.get(expert, 0.0),
                            router_weight_corrupt=w1.get(expert, 0.0), direct=0.3 * part if pos == last else 0.0,
                        )
                    )  # fmt: skip
                if shared:
                    direct = 0.05 * gain if pos == last else 0.0
                    rows.append(
                        _row(request.fact.case_id, "shared", true_c + 0.1 * gain, foil_c, **at, direct=direct)
                    )
        frames.append(complete(_table(rows), clean_contrast=clean, corrupt_contrast=true_c - foil_c))
    frame = pd.concat(frames, ignore_index=True)[FRAME_COLUMNS]
    runs = pd.DataFrame(
        [{"run": "clean", "draw": pd.NA, "p_true": 0.91, "rank_true": 1}]
        + [{"run": "corrupt", "draw": d, "p_true": 0.04 + 0.01 * d, "rank_true": 7} for d in range(request.draws)]
    ).astype({"draw": "Int64"})
    provenance = _provenance(request, n_layers, moe, n_experts, top_k, shared, ids, tokens, subject)
    if noise_floor is not None:
        provenance = dataclasses.replace(provenance, noise_floor=noise_floor, noise_floor_largest=2 * noise_floor)
    return TraceResult(
        request=request,
        provenance=provenance,
        frame=frame,
        routing=routing,
        next_tokens=_next_tokens(request.draws),
        runs=runs,
        cached=cached,
    )


def _effect(depth: float, pos: int, last_subject: int, last: int) -> float:
    """An early site at the last subject token, a late one at the last token."""
    if pos == last_subject:
        return 0.5 * float(np.exp(-((depth - 0.1) ** 2) / 0.05))
    if pos == last:
        return 0.4 * float(np.exp(-((depth - 0.85) ** 2) / 0.03))
    return -0.05


def _row(case_id: int, kind: str, true_logit: float, foil_logit: float, **more) -> dict:
    return dict.fromkeys(FRAME_COLUMNS, pd.NA) | {
        "case_id": case_id, "kind": kind, "true_logit": true_logit, "foil_logit": foil_logit,
        "contrast": np.nan, "rescue": np.nan, "restoration": np.nan,
        "router_weight_clean": np.nan, "router_weight_corrupt": np.nan, "direct": np.nan,
    } | more  # fmt: skip


def _table(rows: list[dict]) -> pd.DataFrame:
    types = {"draw": "Int64", "layer": "Int64", "pos": "Int64", "token_id": "Int64", "expert": "Int64"}
    return pd.DataFrame(rows).astype(types | {"clean_active": "boolean", "token": "string"})


def _routing(rng, moe, n_tokens, n_experts, top_k, draws, first_subject) -> pd.DataFrame:
    rows = []
    for layer in moe:
        for pos in range(n_tokens):
            scores = rng.normal(size=n_experts)
            for run, draw in [("clean", pd.NA)] + [("corrupt", d) for d in range(draws)]:
                now = scores if run == "clean" or pos < first_subject else scores + rng.normal(0, 0.5, n_experts)
                order = np.argsort(-now)
                chosen = order[:top_k]
                share = np.exp(now[chosen]) / np.exp(now[chosen]).sum()
                margin = float(now[order[top_k - 1]] - now[order[top_k]]) if n_experts > top_k else np.nan
                near = bool(margin < 0.02)
                for slot, (expert, weight) in enumerate(zip(chosen, share, strict=True)):
                    rows.append((run, draw, layer, pos, slot, int(expert), float(weight), margin, near))
    columns = ["run", "draw", "layer", "pos", "slot", "expert", "router_weight", "margin", "near_tie"]
    return pd.DataFrame(rows, columns=columns).astype({"draw": "Int64"})


def _next_tokens(draws: int) -> pd.DataFrame:
    clean = [(" Paris", 0.91), (" Lyon", 0.03), (" Rome", 0.02), (" <b>", 0.01), (" the", 0.01)]
    corrupt = [(" London", 0.31), (" Rome", 0.22), (" Madrid", 0.09), (" Paris", 0.05), (" a", 0.02)]
    rows = [("clean", pd.NA, i + 1, 200 + i, t, p) for i, (t, p) in enumerate(clean)]
    for draw in range(draws):
        rows += [("corrupt", draw, i + 1, 300 + i, t, p) for i, (t, p) in enumerate(corrupt)]
    columns = ["run", "draw", "rank", "token_id", "token", "probability"]
    return pd.DataFrame(rows, columns=columns).astype({"draw": "Int64"})


def _replacements(request) -> list[str]:
    if request.corruption == "noise":
        return []
    return list(request.replacement) or [f"Land {draw}" for draw in range(request.draws)]


def _provenance(request, n_layers, moe, n_experts, top_k, shared, ids, tokens, subject) -> Provenance:
    model: ModelSpec = request.model
    return Provenance(
        model=model.name, fingerprint="f" * 16, revision=model.revision, dtype="float32", device="cpu",
        versions={"python": "3.11", "torch": "2.13.0", "transformers": "5.23.0"},
        implementation={"attention": "sdpa", "experts": "eager"}, created="2026-01-01T00:00:00+00:00",
        noise_sigma=0.31, n_layers=n_layers, moe_layers=moe, n_experts=n_experts, top_k=top_k, has_shared=shared,
        token_ids=ids, tokens=tokens, subject_positions=subject, true_id=200, foil_id=202,
        true_token=" Paris", foil_token=" Rome",
        replacements=_replacements(request), replaced_ids=[ids] * len(_replacements(request)),
    )  # fmt: skip
