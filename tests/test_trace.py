"""Tracing through the store: what is reused, what is computed, and that a reused answer is the same answer."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path

import accelerate
import pandas as pd
import pytest
import tiny_models
import torch
from compare import random_fact

from cache.store import Store
from core import checks, fact_runs, missing, trace
from core.budget import Budget
from core.memory import AllocationWatch, bytes_per_token
from core.moe import MoeModel
from core.prompts import PreparedFact
from core.requests import Fact, TraceRequest
from core.results import MIN_DROP, TraceResult, complete

N_TOKENS = 9


def a_fact(*, case_id: int = 5, true_id: int = 17, foil_id: int | None = 33, auto: bool = False) -> PreparedFact:
    ids = tuple(int(i) for i in torch.randint(3, 200, (N_TOKENS,), generator=torch.Generator().manual_seed(1)))
    fact = Fact("a {} b", "s", "t", None if auto else "f", case_id=case_id, foil_auto=auto)
    pieces = tuple(map(str, ids))
    return PreparedFact(fact, ids, pieces, tuple((i, i + 1) for i in ids), (2, 3), true_id, foil_id, "t", "f")


@pytest.fixture(scope="module")
def model() -> MoeModel:
    return MoeModel(tiny_models.build("qwen2_moe"), fingerprint="test")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store.duckdb") as store:
        yield store


@contextlib.contextmanager
def counted(model: MoeModel) -> Iterator[dict[str, int]]:
    """Counts the tokens that each layer's block is given, most over the layers, while inside."""
    seen = dict.fromkeys(model.blocks, 0)

    def count(layer: int):  # noqa: ANN202
        def hook(module, args, output):  # noqa: ANN001, ANN202
            seen[layer] += args[0].reshape(-1, args[0].shape[-1]).shape[0]

        return hook

    handles = [block.module.register_forward_hook(count(layer)) for layer, block in model.blocks.items()]
    result: dict[str, int] = {}
    try:
        yield result
    finally:
        for handle in handles:
            handle.remove()
        result["tokens"] = max(seen.values())
        result["first"] = seen[min(seen)]


def same(a: pd.DataFrame, b: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(a, b)


def test_the_same_question_again_runs_nothing(model: MoeModel, store: Store) -> None:
    (first,) = trace.trace_prepared(model, [a_fact()], draws=2, store=store)
    with counted(model) as work:
        (again,) = trace.trace_prepared(model, [a_fact()], draws=2, store=store)
    assert work["tokens"] == 0
    assert (first.cached, again.cached) == (False, True)
    for name in ("frame", "routing", "next_tokens", "runs"):
        same(getattr(first, name), getattr(again, name))
    assert first.provenance == again.provenance


def test_another_positions_experts_reuse_the_clean_and_corrupt_runs(model: MoeModel, store: Store) -> None:
    trace.trace_prepared(model, [a_fact()], store=store)
    with counted(model) as work:
        (second,) = trace.trace_prepared(model, [a_fact()], experts=(4,), store=store)
    # nothing has joined at the first MoE layer: it sees no token of a clean or corrupt pass, only the two places
    # (clean and corrupt, position 4) whose shared expert is asked for
    assert work["first"] == 2
    fresh = trace.trace_prepared(model, [a_fact()], experts=(4,))[0]
    pd.testing.assert_frame_equal(second.frame, fresh.frame, atol=2e-5, rtol=0)


def test_more_draws_compute_only_the_new_ones(model: MoeModel, store: Store) -> None:
    (two,) = trace.trace_prepared(model, [a_fact()], draws=2, store=store)
    with counted(model) as all_five:
        trace.trace_prepared(model, [a_fact()], draws=5)
    with counted(model) as three_more:
        (five,) = trace.trace_prepared(model, [a_fact()], draws=5, store=store)
    assert three_more["tokens"] < 0.75 * all_five["tokens"]
    old = five.frame[five.frame.draw.isin([0, 1])].reset_index(drop=True)
    same(old, two.frame[two.frame.draw.notna()].reset_index(drop=True))


def test_another_foil_shares_the_runs_but_no_rows(model: MoeModel, store: Store) -> None:
    trace.trace_prepared(model, [a_fact()], store=store)
    runs_before = store.usage().runs.sum()
    (other,) = trace.trace_prepared(model, [a_fact(foil_id=40)], store=store)
    assert store.usage().runs.sum() == runs_before
    (fresh,) = trace.trace_prepared(model, [a_fact(foil_id=40)])
    pd.testing.assert_frame_equal(other.frame, fresh.frame, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    "change",
    [{"noise": 2.9}, {"seed": 1}, {"experts": "none"}, {"experts": "all"}],
    ids=lambda change: next(iter(change)),
)
def test_another_setting_is_another_answer(model: MoeModel, store: Store, change: dict) -> None:
    trace.trace_prepared(model, [a_fact()], store=store)
    (changed,) = trace.trace_prepared(model, [a_fact()], store=store, **change)
    assert changed.cached == (change == {"experts": "none"})  # fewer experts are there already
    (fresh,) = trace.trace_prepared(model, [a_fact()], **change)
    pd.testing.assert_frame_equal(changed.frame, fresh.frame, atol=2e-5, rtol=0)


def test_seed_and_case_id_count_only_together(model: MoeModel, store: Store) -> None:
    (first,) = trace.trace_prepared(model, [a_fact(case_id=7)], seed=3, store=store)
    (second,) = trace.trace_prepared(model, [a_fact(case_id=3)], seed=7, store=store)
    assert second.cached and set(second.frame.case_id) == {3}
    same(first.frame.drop(columns="case_id"), second.frame.drop(columns="case_id"))


def test_half_precision_answers_are_stored_bit_for_bit(store: Store) -> None:
    model = MoeModel(tiny_models.build("qwen3_moe").to(torch.bfloat16), fingerprint="half")
    trace.trace_prepared(model, [a_fact()], store=store)
    (later,) = trace.trace_prepared(model, [a_fact()], experts=(5,), store=store)
    (fresh,) = trace.trace_prepared(model, [a_fact()], experts=(5,))
    ends = later.frame.kind.isin(["clean", "corrupt"])
    same(later.frame[ends], fresh.frame[ends])


def test_an_evicted_run_is_computed_again(model: MoeModel, tmp_path: Path) -> None:
    with Store.open(tmp_path / "small.duckdb", limit_bytes=1) as store:
        (first,) = trace.trace_prepared(model, [a_fact()], store=store)
        trace.trace_prepared(model, [a_fact(true_id=18, case_id=900)], store=store)  # drives the first one out
        (again,) = trace.trace_prepared(model, [a_fact()], store=store)
    assert not again.cached
    pd.testing.assert_frame_equal(first.frame, again.frame, atol=2e-5, rtol=0)


def test_the_automatic_foil_is_the_most_probable_other_token(model: MoeModel, store: Store) -> None:
    ids = torch.tensor([a_fact().input_ids])
    with torch.no_grad():
        order = model.model(input_ids=ids).logits[0, -1].argsort(descending=True).tolist()
    for true_id in order[:2]:
        wanted = next(i for i in order if i != true_id)
        question = a_fact(true_id=true_id, foil_id=None, auto=True)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(fact_runs, "with_foil", lambda p, tok, foil: _with_foil(p, foil))
            (result,) = trace.trace_prepared(model, [question], store=store)
        assert result.provenance.foil_id == wanted


def _with_foil(prepared: PreparedFact, foil: int) -> PreparedFact:
    return dataclasses.replace(prepared, foil_id=foil, foil_token=str(foil))


def test_p_true_and_top_tokens_are_those_of_plain_forwards(model: MoeModel) -> None:
    (result,) = trace.trace_prepared(model, [a_fact()], draws=1)
    with torch.no_grad():
        probabilities = model.model(input_ids=torch.tensor([a_fact().input_ids])).logits[0, -1].softmax(-1)
    clean = result.runs[result.runs.run == "clean"].iloc[0]
    assert clean.p_true == pytest.approx(probabilities[17].item(), rel=1e-4)
    assert clean.rank_true == (probabilities > probabilities[17]).sum().item() + 1
    top = result.next_tokens[result.next_tokens.run == "clean"]
    assert top.token_id.head(5).tolist() == probabilities.topk(5).indices.tolist()
    assert top.probability.head(5).tolist() == pytest.approx(probabilities.topk(5).values.tolist(), rel=1e-4)


def test_batches_respect_the_memory_and_change_no_number(model: MoeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = [a_fact(case_id=i, true_id=17 + i) for i in range(4)]
    together = trace.trace_prepared(model, facts, draws=2, experts="all")
    sweeps = []
    sweep = missing.sweep

    def spy(*args, **kwargs):  # noqa: ANN002, ANN003, ANN202
        outcome = sweep(*args, **kwargs)
        sweeps.append(([run.known is None for run in args[2]], len(outcome.patched)))
        return outcome

    monkeypatch.setattr(missing, "sweep", spy)
    monkeypatch.setattr(Budget, "measure", classmethod(lambda cls, model: Budget(chunk_tokens=16, kept_bytes=20_000)))
    apart = trace.trace_prepared(model, facts, draws=2, experts="all")
    assert sum(sum(fresh) for fresh, _ in sweeps) == 4 * 3  # every run computed once, in however many sweeps
    assert len(sweeps) > 8  # even one answer is split
    biggest = max(Budget.part_bytes(model, facts[0], part) for part in ("layer", "experts@2"))
    rows_bytes = max(n for _, n in sweeps) * model.hidden * 4  # each row keeps at least one position
    assert rows_bytes <= max(20_000, biggest)
    for a, b in zip(together, apart, strict=True):
        pd.testing.assert_frame_equal(a.frame, b.frame, atol=2e-5, rtol=0)


def test_the_row_estimate_covers_what_a_sweep_keeps(model: MoeModel) -> None:
    fact = a_fact()
    estimate = Budget.answer_bytes(model, TraceRequest(fact.fact, draws=2, experts="all"), fact)
    with AllocationWatch() as watch:
        trace.trace_prepared(model, [fact], draws=2, experts="all")
    assert watch.peak < 3 * estimate + 40 * N_TOKENS * model.structure.bytes_per_token


def test_bytes_per_token_is_measured() -> None:
    assert bytes_per_token(lambda n: torch.zeros(n, 256) + 1) == pytest.approx(2 * 256 * 4)


def test_a_model_is_left_as_it_was(model: MoeModel) -> None:
    def state() -> list:
        return [
            (name, sorted(m.__dict__.get("_forward_hooks", {})), sorted(m._forward_pre_hooks), "forward" in m.__dict__)
            for name, m in model.model.named_modules()
        ]

    before, attention = state(), model.implementation()
    trace.trace_prepared(model, [a_fact()], draws=2)
    checks.check_weights(model)
    assert state() == before and model.implementation() == attention


def test_threads_share_a_model(store: Store) -> None:
    """Three at once on one model: every answer is the one that a thread alone gets, and nothing is left behind."""
    model = MoeModel(tiny_models.build("mixtral"), fingerprint="shared")
    model.structure  # noqa: B018 - probed once, before
    facts = [random_fact(i, length=7 + i % 3) for i in range(9)]
    alone = [trace.trace_prepared(model, [fact])[0] for fact in facts]
    found: dict[int, TraceResult] = {}
    errors: list[BaseException] = []

    def work(which: int) -> None:
        try:
            for i in range(which, len(facts), 3):
                found[i] = trace.trace_prepared(model, [facts[i]], store=store)[0]
        except BaseException as error:  # noqa: BLE001 - a thread's error must reach the test
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for i, want in enumerate(alone):
        pd.testing.assert_frame_equal(found[i].frame, want.frame, atol=2e-5, rtol=0)
        pd.testing.assert_frame_equal(found[i].runs, want.runs, atol=1e-5, rtol=1e-4)
        assert found[i].provenance.implementation == want.provenance.implementation
    assert not [name for name, module in model.model.named_modules() if "forward" in module.__dict__]


def test_automatic_foils_of_many_facts_take_one_pass(model: MoeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = []
    for i in range(4):
        fact = random_fact(i)
        fact = dataclasses.replace(fact, foil_id=None, fact=dataclasses.replace(fact.fact, foil=None, foil_auto=True))
        facts.append(fact)
    sweeps = []
    sweep = missing.sweep

    def spy(*args, **kwargs):  # noqa: ANN002, ANN003, ANN202
        sweeps.append(sum(run.known is None for run in args[2]))
        return sweep(*args, **kwargs)

    monkeypatch.setattr(missing, "sweep", spy)
    monkeypatch.setattr(fact_runs, "with_foil", lambda p, tok, foil: _with_foil(p, foil))
    trace.trace_prepared(model, facts)
    assert sweeps == [8]  # four clean runs and four corrupt ones


def test_an_offloaded_model_gives_the_same_numbers() -> None:
    """With accelerate's hooks, weights (the unembedding's too) on the meta device between uses."""
    want = trace.trace_prepared(MoeModel(tiny_models.build("deepseek_v3")), [a_fact()], draws=2)[0]
    module = tiny_models.build("deepseek_v3")
    accelerate.cpu_offload(module, execution_device=torch.device("cpu"))
    assert module.lm_head.weight.device.type == "meta"
    got = trace.trace_prepared(MoeModel(module), [a_fact()], draws=2)[0]
    pd.testing.assert_frame_equal(got.frame, want.frame, atol=1e-6, rtol=0)


# ---- the tables ----------------------------------------------------------------------------------------------------


def rows(*logits: tuple[float, float]) -> pd.DataFrame:
    return pd.DataFrame({"kind": "layer", "true_logit": [t for t, _ in logits], "foil_logit": [f for _, f in logits]})


def test_rescue_and_restoration() -> None:
    out = complete(rows((5.0, 1.0), (2.0, 2.0), (1.0, 3.0)), clean_contrast=4.0, corrupt_contrast=-1.0)
    assert out.contrast.tolist() == [4.0, 0.0, -2.0]
    assert out.rescue.tolist() == [5.0, 1.0, -1.0]
    assert out.restoration.tolist() == [1.0, 0.2, -0.2]


@pytest.mark.parametrize("drop", [MIN_DROP - 1e-9, 0.0, -3.0])
def test_restoration_is_missing_where_there_is_no_drop(drop: float) -> None:
    assert complete(rows((1.0, 0.0)), clean_contrast=drop, corrupt_contrast=0.0).restoration.isna().all()


def test_facts_of_one_sweep_keep_their_order(model: MoeModel) -> None:
    facts = [random_fact(2, length=11), random_fact(0, length=6), random_fact(1, length=9)]
    results = trace.trace_prepared(model, facts)
    assert [r.request.fact.case_id for r in results] == [f.fact.case_id for f in facts]
