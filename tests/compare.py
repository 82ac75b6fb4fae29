"""Holds a frame of the engine against the oracle, row by row, and builds the facts that both get.

The oracle knows the rules of protocol.md, the frame is the engine's; here is only the bookkeeping between them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from core.prompts import PreparedFact
from core.requests import Fact
from tests import oracle

TOLERANCE = 1e-4
"""Largest allowed difference of a true or foil logit, in logits; and of a rescue, relative to the rescues' range."""

MIN_DROP = 0.05
PATCHES = ("layer", "expert", "shared")


@dataclass(frozen=True)
class Setting:
    """Noise of one comparison (protocol.md): level × std of the embedding table, generator seed + case_id."""

    noise: float = 3.0
    draws: int = 2
    seed: int = 7


def random_fact(
    case_id: int, *, length: int = 9, subject: tuple[int, ...] = (2, 3), vocabulary: int = 256, seed: int = 0
) -> PreparedFact:
    """A fact of random token ids; true and foil are two further ids. Ids 0, 1, 2 (pad, BOS, EOS) do not occur."""
    generator = torch.Generator("cpu").manual_seed(1000 * seed + case_id)
    ids = (torch.randperm(vocabulary - 3, generator=generator) + 3)[: length + 2].tolist()
    return prepared_fact(case_id, ids[:length], subject, true_id=ids[length], foil_id=ids[length + 1])


def prepared_fact(
    case_id: int, ids: list[int], subject: tuple[int, ...], *, true_id: int, foil_id: int
) -> PreparedFact:
    """What a tokenizer would have made of a fact with these token ids."""
    words = [f"w{i}" for i in ids]
    ends = np.cumsum([len(w) + 1 for w in words])
    text = " ".join(words)
    fact = Fact(
        prompt=text,
        subject=" ".join(words[p] for p in subject),
        true=f"w{true_id}",
        foil=f"w{foil_id}",
        case_id=case_id,
    )
    return PreparedFact(
        fact=fact,
        input_ids=tuple(ids),
        tokens=tuple(words),
        spans=tuple((int(e) - len(w) - 1, int(e) - 1) for w, e in zip(words, ends, strict=True)),
        subject_positions=tuple(subject),
        true_id=true_id,
        foil_id=foil_id,
        true_token=f"w{true_id}",
        foil_token=f"w{foil_id}",
    )


def oracle_of(model: torch.nn.Module, fact: PreparedFact, setting: Setting) -> oracle.Oracle:
    """The oracle for the same question."""
    noise = oracle.make_noise(
        model,
        draws=setting.draws,
        n_subject=len(fact.subject_positions),
        seed=setting.seed,
        case_id=fact.fact.case_id,
        level=setting.noise,
    )
    case = oracle.Case(torch.tensor(fact.input_ids), fact.subject_positions, fact.true_id, fact.foil_id, noise)
    return oracle.Oracle(model, case)


def rows_of(frame: pd.DataFrame) -> dict[tuple, dict[str, Any]]:
    """The frame's rows by the oracle's keys (kind, draw, layer, pos, expert), missing values as None."""
    rows = {}
    for row in frame.to_dict("records"):
        parts = (row["draw"], row["layer"], row["pos"], row["expert"])
        key = (row["kind"], *(None if pd.isna(part) else int(part) for part in parts))
        assert key not in rows, f"row {key} occurs twice"
        rows[key] = row
    return rows


def distance(row: dict[str, Any], logits: oracle.Logits) -> float:
    """Larger of the differences of the true and the foil logit."""
    return max(abs(row["true_logit"] - logits[0]), abs(row["foil_logit"] - logits[1]))


@dataclass(frozen=True)
class Agreement:
    """How far a frame is from the oracle. `logits`: largest error of a true or foil logit; `rescue`: largest error of
    a rescue; `spread`: range of the oracle's rescues; `median`: median |rescue| of the oracle's cells from the first
    subject position on; `worst`: key of the worst row; `n`: rows compared; `missing`: keys that the frame lacks."""

    logits: float
    rescue: float
    spread: float
    median: float
    worst: tuple
    n: int
    missing: list[tuple]

    @property
    def relative(self) -> float:
        """Largest error of a rescue ÷ range of the rescues."""
        return self.rescue / self.spread


def compare(
    frame: pd.DataFrame, wanted: dict[tuple, oracle.Logits], *, first_subject: int, but: Iterable[tuple] = ()
) -> Agreement:
    """Measures how far the frame's rows are from the oracle's, and counts those that it lacks.

    A row of the frame that the oracle does not have is an expert that is routed in neither run: it must equal the
    corrupt run. Rows with keys in `but` are left out.
    """
    got = {key: row for key, row in rows_of(frame).items() if key not in set(but)}
    wanted = {key: logits for key, logits in wanted.items() if key not in set(but)}
    corrupt = {key[1]: value for key, value in wanted.items() if key[0] == "corrupt"}
    logits_error, rescue_error, worst = 0.0, 0.0, ()
    rescues, cells = [], []
    for key, row in got.items():
        kind, draw, _, pos, _ = key
        if key not in wanted:
            assert kind == "expert", f"the frame has a row {key} that should not be there"
        true, foil = wanted.get(key, corrupt.get(draw))
        error = distance(row, (true, foil))
        if not error <= logits_error:  # also True for a NaN
            logits_error, worst = error, key
        if kind in PATCHES:
            rescue = (true - foil) - (corrupt[draw][0] - corrupt[draw][1])
            rescue_error = max(rescue_error, abs(row["rescue"] - rescue))
            rescues.append(rescue)
            if kind == "layer" and pos >= first_subject:
                cells.append(abs(rescue))
    return Agreement(
        logits=logits_error,
        rescue=rescue_error,
        spread=max(rescues) - min(rescues),
        median=float(np.median(cells)) if cells else math.nan,
        worst=worst,
        n=len(got),
        missing=sorted((key for key in wanted if key not in got), key=str),
    )


def assert_agrees(frame: pd.DataFrame, wanted: dict[tuple, oracle.Logits], *, first_subject: int) -> Agreement:
    """`compare`: no row missing, all within `TOLERANCE` in logits and relative to the range of the rescues."""
    found = compare(frame, wanted, first_subject=first_subject)
    assert not found.missing, f"the frame lacks {len(found.missing)} rows, such as {found.missing[:3]}"
    assert found.logits <= TOLERANCE, found
    assert found.relative <= TOLERANCE, found
    return found


def assert_derived_columns(frame: pd.DataFrame, asked: oracle.Oracle) -> None:
    """contrast, rescue, restoration, router weights and token ids of every row, from the oracle's records."""
    wanted_clean = frame.loc[frame.kind == "clean", "contrast"].item()
    corrupt = frame[frame.kind == "corrupt"].set_index("draw").contrast.to_dict()
    for (kind, draw, layer, pos, expert), row in rows_of(frame).items():
        assert row["contrast"] == np.float64(row["true_logit"] - row["foil_logit"])
        if kind == "clean":
            continue
        drop = wanted_clean - corrupt[draw]
        rescue = row["contrast"] - corrupt[draw]
        assert math.isclose(row["rescue"], rescue, abs_tol=1e-6)
        if drop < MIN_DROP:
            assert pd.isna(row["restoration"])
        else:
            assert math.isclose(row["restoration"], rescue / drop, rel_tol=1e-5, abs_tol=1e-5)
        if pos is not None:
            assert row["token_id"] == asked.case.input_ids[pos].item()
        if kind == "expert":
            before, after = asked.corrupt_runs[draw][layer], asked.clean_run[layer]
            assert math.isclose(row["router_weight_clean"], after.router_weight(pos, expert), abs_tol=1e-5)
            assert math.isclose(row["router_weight_corrupt"], before.router_weight(pos, expert), abs_tol=1e-5)
            assert bool(row["clean_active"]) == (expert in after.active(pos))
