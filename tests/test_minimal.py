"""The minimal set against a brute-force greedy search by plain hooked forwards; its rules, its limits, its command."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from test_interventions import CLEAN, CORRUPT, SUBJECT, Bench

from core import cli, minimal
from core.corruption import draw_noise
from core.errors import Cancelled, InputError
from core.minimal import CANDIDATE_COLUMNS, CURVE_COLUMNS, Candidate, Search, minimal_set
from core.progress import Progress
from core.prompts import PreparedFact
from core.requests import Fact, TraceRequest

LIMIT = 1e-4
DRAWS = 2


class ByHand:
    """Rescues of sets of expert updates, one hooked forward for each set and draw."""

    def __init__(self, bench: Bench, request: TraceRequest) -> None:
        self.bench = bench
        sigma = request.noise * bench.module.get_input_embeddings().weight.float().std().item()
        self.noises = draw_noise(
            seed=request.seed, case_id=request.fact.case_id, draws=request.draws, n_subject=len(SUBJECT),
            hidden=bench.model.hidden, sigma=sigma,
        )  # fmt: skip
        every = range(bench.model.vocabulary)
        corrupt = [self.logits(draw, CORRUPT, tokens=every) for draw in range(DRAWS)]
        lost = bench.forward(CLEAN, tokens=every) - sum(corrupt) / DRAWS
        self.objects = int(lost.argmax()), int(lost.argmin())  # with these there is most to restore
        self.clean = self.at(0, CLEAN)
        self.corrupt = [self.at(draw, CORRUPT) for draw in range(DRAWS)]
        self._updates: dict[tuple[int, Candidate], torch.Tensor] = {}

    @property
    def drop(self) -> float:
        return self.clean - float(np.mean(self.corrupt))

    def logits(self, draw: int, run: int, *changes: tuple, tokens: Sequence[int]) -> torch.Tensor:
        self.bench.noise = self.noises[draw]
        return self.bench.forward(run, *changes, tokens=tokens)

    def at(self, draw: int, run: int, *changes: tuple) -> float:
        """The contrast."""
        true, foil = self.logits(draw, run, *changes, tokens=self.objects).tolist()
        return true - foil

    def update(self, draw: int, who: Candidate) -> torch.Tensor:
        if (draw, who) not in self._updates:
            self.bench.noise = self.noises[draw]
            self._updates[draw, who] = self.bench.update(*who)
        return self._updates[draw, who]

    def rescue(self, members: list[Candidate]) -> float:
        """Mean over draws."""
        return float(np.mean([
            self.at(draw, CORRUPT, *(self.bench.write("moe", c.layer, c.pos, self.update(draw, c), add=True)
                                     for c in members)) - corrupt
            for draw, corrupt in enumerate(self.corrupt)
        ]))  # fmt: skip

    def candidates(self, layers: list[int], positions: list[int]) -> list[Candidate]:
        out = []
        for layer in layers:
            for pos in positions:
                if layer < self.bench.model.n_layers - 1 or pos == self.bench.n - 1:
                    out += [Candidate(layer, pos, e) for e in sorted(self.bench.routed(CLEAN, layer, pos))]
        return out


def question(bench: Bench, **settings: object) -> tuple[TraceRequest, PreparedFact, ByHand]:
    """The bench's tokens, with true and foil so that there is something to restore."""
    tokens = tuple(bench.ids[0].tolist())
    pieces, spans = tuple(map(str, tokens)), ((0, 1),) * len(tokens)
    request = TraceRequest(Fact("a {} b", "s", "t", "f", case_id=4), seed=7, draws=DRAWS, **settings)
    by_hand = ByHand(bench, request)
    return request, PreparedFact(request.fact, tokens, pieces, spans, SUBJECT, *by_hand.objects, "t", "f"), by_hand


def ask(bench: Bench, search: Search, **settings: object) -> tuple[minimal.MinimalResult, ByHand]:
    request, fact, by_hand = question(bench, **settings)
    return minimal_set(bench.model, request, fact, search), by_hand


@pytest.fixture(scope="module", params=["demo", "qwen2_moe", "granitemoe", "qwen3_next", "gpt_oss"])
def bench(request: pytest.FixtureRequest) -> Bench:
    return Bench(request.param)


SCOPES = [
    Search(pos="last_subject", target=50.0, max_steps=2, random_sets=2),
    Search(layer=1, target=50.0, max_steps=3, random_sets=2),
    Search(layer=3, pos="last", target=50.0, random_sets=1),
]


@pytest.mark.parametrize(
    ("bench", "search"),
    [
        *((family, SCOPES[0]) for family in ("demo", "granitemoe", "qwen3_next", "gpt_oss")),
        *((family, SCOPES[1]) for family in ("qwen2_moe", "gpt_oss")),
        *((family, SCOPES[2]) for family in ("demo", "qwen2_moe")),
    ],
    indirect=["bench"],
)
def test_the_curve_is_that_of_a_brute_force_search(bench: Bench, search: Search) -> None:
    result, by_hand = ask(bench, search)
    layers = bench.moe if search.layer is None else [search.layer]
    positions = {None: list(range(SUBJECT[0], bench.n)), "last": [bench.n - 1], "last_subject": [SUBJECT[-1]]}
    candidates = by_hand.candidates(layers, positions[search.pos])
    assert result.drop == pytest.approx(by_hand.drop, abs=LIMIT)
    single = {c: by_hand.rescue([c]) for c in candidates}
    table = result.candidates
    assert list(table.columns) == CANDIDATE_COLUMNS and table.rescue.is_monotonic_decreasing and table.considered.all()
    assert {Candidate(*key): value for *key, value in rows(table, "rescue")} == pytest.approx(single, abs=LIMIT)
    chosen: list[Candidate] = []
    for step in result.curve.itertuples():
        tried = {c: by_hand.rescue([*chosen, c]) for c in candidates if c not in chosen}
        who = Candidate(step.layer, step.pos, step.expert)
        assert tried[who] >= max(tried.values()) - LIMIT  # the best, up to what fp32 can tell
        chosen.append(who)
        assert step.size == len(chosen) and step.rescue == pytest.approx(tried[who], abs=LIMIT)
        assert step.restoration == pytest.approx(tried[who] / by_hand.drop, abs=1e-3)
        assert step.contrast == pytest.approx(tried[who] + np.mean(by_hand.corrupt), abs=LIMIT)
    assert len(chosen) == min(search.max_steps, len(candidates)) and not result.reached


def rows(table: pd.DataFrame, column: str) -> list[tuple]:
    return list(table[["layer", "pos", "expert", column]].itertuples(index=False, name=None))


def test_random_sets_are_drawn_by_the_rule_and_measured_like_the_set(bench: Bench) -> None:
    result, by_hand = ask(bench, Search(pos="last_subject", target=50.0, max_steps=2, random_sets=3))
    candidates = by_hand.candidates(bench.moe, [SUBJECT[-1]])
    rng = random.Random(7 + 4)
    for step in result.curve.itertuples():
        drawn = np.array([by_hand.rescue(rng.sample(candidates, step.size)) for _ in range(3)])
        assert step.random_sets == 3
        assert step.random_rescue == pytest.approx(drawn.mean(), abs=LIMIT)
        restored = drawn / by_hand.drop
        got = (step.random_restoration, step.random_min, step.random_max, step.random_sd)
        wanted = restored.mean(), restored.min(), restored.max(), restored.std(ddof=1)
        assert got == pytest.approx(wanted, abs=1e-3)


def test_all_updates_together_are_the_layer_patch_but_for_the_shared_expert() -> None:
    """At the cell of the last layer, the clean-active experts are the coalition clean top-k."""
    bench = Bench("granitemoe")
    result, by_hand = ask(bench, Search(layer=bench.moe[-1], pos="last", target=99.0, random_sets=0))
    delta = [by_hand.candidates([bench.moe[-1]], [bench.n - 1])]
    assert len(result.curve) == len(delta[0]) == 2
    assert result.curve.rescue.iloc[-1] == pytest.approx(by_hand.rescue(delta[0]), abs=LIMIT)
    assert result.curve.random_rescue.isna().all() and (result.curve.random_sets == 0).all()


@pytest.fixture(scope="module")
def small() -> Bench:
    return Bench("qwen2_moe")


def test_beyond_the_limit_those_with_the_largest_single_rescue_are_tried(small: Bench) -> None:
    result, by_hand = ask(small, Search(target=50.0, max_steps=4, random_sets=1, limit=5))
    candidates = by_hand.candidates(small.moe, list(range(SUBJECT[0], small.n)))
    single = {c: by_hand.rescue([c]) for c in candidates}
    considered = {Candidate(*who) for *who, yes in rows(result.candidates, "considered") if yes}
    assert len(considered) == 5 and len(result.candidates) == len(candidates) > 5
    assert min(single[c] for c in considered) >= sorted(single.values())[-5] - LIMIT
    assert {Candidate(*who) for *who, _ in rows(result.curve, "size")} <= considered
    assert any(f"Of {len(candidates)} clean-active experts the 5" in note for note in result.notes)


def test_it_stops_at_the_target(small: Bench) -> None:
    everything, _ = ask(small, Search(target=50.0, max_steps=6, random_sets=0))
    restored = everything.curve.restoration
    target = float(restored.iloc[1]) - 1e-3
    result, _ = ask(small, Search(target=target, random_sets=0))
    assert result.reached and len(result.curve) == int((restored >= target).idxmax()) + 1
    pd.testing.assert_frame_equal(result.curve, everything.curve.head(len(result.curve)))


def test_the_same_question_gives_the_same_answer(small: Bench) -> None:
    first, _ = ask(small, Search(max_steps=3))
    second, _ = ask(small, Search(max_steps=3))
    pd.testing.assert_frame_equal(first.curve, second.curve)
    assert list(first.curve.columns) == CURVE_COLUMNS


def test_of_equal_candidates_the_first_is_taken(small: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rescues that differ by less than `TIE` in the wrong order: rounding does not choose."""

    def equal(self, sets, progress):  # noqa: ANN001, ANN202
        return np.array([[len(some) + 1e-7 * sum(c.layer + c.pos + c.expert for c in some)] * DRAWS for some in sets])

    monkeypatch.setattr(minimal._Trial, "rescues", equal)
    result, by_hand = ask(small, Search(target=50.0, max_steps=4, limit=7))
    in_order = by_hand.candidates(small.moe, list(range(SUBJECT[0], small.n)))
    assert [Candidate(*who) for *who, _ in rows(result.curve, "size")] == in_order[:4]
    assert {Candidate(*who) for *who, yes in rows(result.candidates, "considered") if yes} == set(in_order[:7])


def test_without_a_drop_there_is_nothing_to_restore(small: Bench) -> None:
    result, _ = ask(small, Search(), noise=1e-5)
    assert result.drop < 0.05 and result.curve.empty and not result.reached
    assert any("nothing to restore" in note for note in result.notes)
    assert result.candidates.restoration.isna().all() and result.candidates.rescue.notna().all()


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"layer": 0}, "Layer 0 has no experts.*1, 3"),
        ({"layer": 99}, "Layer 99 has no experts"),
        ({"pos": 9}, "no position 9.*0 to 8"),
        ({"pos": 1}, "left of the subject.*2 to 8"),
        ({"target": 0.0}, "target is 0"),
        ({"target": float("nan")}, "target is nan"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"random_sets": -1}, "random_sets is -1"),
    ],
)
def test_what_cannot_be_searched_is_said(small: Bench, search: dict, message: str) -> None:
    with pytest.raises(InputError, match=f"(?s){message}"):
        ask(small, Search(**search))


def test_a_place_of_the_last_layer_that_reaches_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="last layer"):
        ask(Bench("granitemoe"), Search(layer=3, pos=4))


def test_it_can_be_cancelled_and_tells_how_far_it_is(small: Bench) -> None:
    class Watch(Progress):
        def __init__(self) -> None:
            self.seen: list[tuple[float, str]] = []

        def update(self, done: float, total: float, label: str = "") -> None:
            self.seen.append((done / total, label))

        def check(self) -> None:
            if self.seen and self.seen[-1][1] == "step 3":
                raise Cancelled("")

    request, fact, _ = question(small)
    watch = Watch()
    with pytest.raises(Cancelled):
        minimal_set(small.model, request, fact, Search(target=50.0), progress=watch)
    labels = list(dict.fromkeys(label for _, label in watch.seen))
    assert labels[-4:] == ["unpatched runs", "single experts", "step 2", "step 3"]
    assert all(0 <= share <= 1 for share, _ in watch.seen)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["minimal", "--fact", "100", "--draws", "2", "--pos", "last", "--steps", "2", "--random", "3", "--no-cache"]
    assert cli.main([*ask, "--out", str(tmp_path / "curve.parquet")]) == 0
    out = capsys.readouterr().out
    assert "16 clean-active experts of every layer" in out and "0.8 is not reached." in out
    table = pd.read_parquet(tmp_path / "curve.parquet")
    assert list(table["size"]) == [1, 2] and (table.random_sets == 3).all() and (table.target == 0.8).all()
    assert set(CURVE_COLUMNS) < set(table.columns)
    assert cli.main([*ask, "--layer", "8"]) == 2
    assert "Layer 8 has no experts" in capsys.readouterr().err
    assert cli.main([*ask[:5], "--pos", "first"]) == 2
    assert "--pos is 'first'" in capsys.readouterr().err
