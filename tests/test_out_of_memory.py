"""When memory runs out in the middle of a trace: the work goes on in smaller pieces, and the numbers are the same.

Running out is acted: modules that refuse calls above a number of tokens, in every way in which torch and Python say it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_models
import torch

from cache.store import Store
from core import cli, missing, sweep, trace
from core.budget import Budget
from core.errors import OutOfMemory
from core.jobs import FAILED, JobRegistry
from core.moe import MoeModel
from core.patch_file import parse_patches
from core.patching import patch_prepared
from core.progress import Progress
from core.prompts import PreparedFact
from core.requests import Fact, TraceRequest
from core.results import TraceResult
from core.room import Room, ran_out

LOGITS = ["true_logit", "foil_logit"]
WAYS = {
    "GPU": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "CPU": lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: ..."),
    "Python": MemoryError,
}


def a_fact(case_id: int, length: int = 9) -> PreparedFact:
    generator = torch.Generator().manual_seed(case_id)
    ids = tuple(torch.randint(3, 200, (length,), generator=generator).tolist())
    fact = Fact("a {} b", "s", "t", "f", case_id=case_id)
    return PreparedFact(fact, ids, tuple(map(str, ids)), tuple((i, i + 1) for i in ids), (2, 3), 17, 33, "t", "f")


@contextlib.contextmanager
def small_memory(model: MoeModel, most: int, error: Callable[[], Exception] = WAYS["GPU"]) -> Iterator[list[int]]:
    """Layers and experts of the model refuse calls on more than `most` tokens; collects the sizes that were refused."""
    refused: list[int] = []

    def check(module, args, kwargs):  # noqa: ANN001, ANN202 - a torch hook
        given = args[0] if args else kwargs["hidden_states"]
        tokens = given.numel() // given.shape[-1]
        if tokens > most:
            refused.append(tokens)
            raise error()

    watched = [*model.layers, *(block.experts for block in model.blocks.values())]
    handles = [module.register_forward_pre_hook(check, with_kwargs=True) for module in watched]
    try:
        yield refused
    finally:
        for handle in handles:
            handle.remove()


def traces_left(model: MoeModel) -> tuple:
    """What a sweep changes in a model while it runs."""
    modules = list(model.model.modules())
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)
    return hooks, [m for m in modules if "forward" in m.__dict__], model.config._attn_implementation


@contextlib.contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Collects how many patched tokens each finished piece of work took through a layer."""
    tokens: list[int] = []
    advance = sweep._Work.advance
    with monkeypatch.context() as spied:
        spied.setattr(sweep._Work, "advance", lambda self, n: tokens.append(n) or advance(self, n))
        yield tokens


def same(a: TraceResult, b: TraceResult) -> None:
    """The same rows; logits within rounding of differently cut calls."""
    keys = ["kind", "draw", "layer", "pos", "expert", "clean_active"]
    pd.testing.assert_frame_equal(a.frame[keys], b.frame[keys])
    assert np.abs(a.frame[LOGITS] - b.frame[LOGITS]).to_numpy().max() <= 1e-4
    assert a.frame[LOGITS].to_numpy().std() > 0.1
    pd.testing.assert_frame_equal(a.routing, b.routing, atol=1e-4, rtol=0)


class Seen(Progress):
    """Remembers how far the work said it was."""

    def __init__(self) -> None:
        self.done: list[float] = []
        self.total = 0.0

    def update(self, done: float, total: float, label: str = "") -> None:
        assert 0 <= done <= total
        self.done.append(done)
        self.total = total


def built(family: str) -> MoeModel:
    model = MoeModel(tiny_models.build(family), fingerprint=family)
    model.structure, model.noise_floor  # noqa: B018 - measured while there is memory
    return model


def rooms(monkeypatch: pytest.MonkeyPatch, tokens: int, kept_bytes: int = 10**9) -> Room:
    """Let every budget be this one; its room."""
    room = Room(tokens)
    monkeypatch.setattr(Budget, "measure", classmethod(lambda cls, model: Budget(room, kept_bytes)))
    return room


# all packed; rows of their own beside packed ones
@pytest.mark.parametrize(
    ("family", "way"), [("deepseek_v3", "GPU"), ("deepseek_v3", "CPU"), ("qwen3_next", "Python")]
)
def test_a_sweep_goes_on_with_smaller_calls(family: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, facts = built(family), [a_fact(1), a_fact(2), a_fact(3, 12)]
    with counted(monkeypatch) as work:
        plain = trace.trace_prepared(model, facts, draws=2)
    before, room, progress, sweeps = traces_left(model), rooms(monkeypatch, 700), Seen(), []
    real = missing.sweep
    monkeypatch.setattr(missing, "sweep", lambda *a, **k: sweeps.append(1) or real(*a, **k))
    with small_memory(model, 50, WAYS[way]) as refused, counted(monkeypatch) as work_again:
        left = traces_left(model)
        found = trace.trace_prepared(model, facts, draws=2, progress=progress)
        assert traces_left(model) == left
    assert traces_left(model) == before
    assert room.tokens == 700 >> room.halvings == 43  # the first that fits, and no less later on
    assert len(refused) >= room.halvings
    assert len(sweeps) == 1  # nothing was begun again
    assert progress.done[-1] == progress.total
    assert sum(work) == sum(work_again) > 0  # no row went through a layer twice
    for a, b in zip(plain, found, strict=True):
        same(a, b)


def test_rows_that_do_not_fit_together_are_taken_in_smaller_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, facts = built("qwen2_moe"), [a_fact(1), a_fact(2)]
    plain = trace.trace_prepared(model, facts, experts=(2, 5, 8))
    alone = trace.trace_prepared(model, facts[:1])[0].frame
    rooms(monkeypatch, 4096)
    join, most, failures = sweep._Live.join, len(alone), []

    def full(self, new, hidden) -> None:  # noqa: ANN001 - a test double
        join(self, new, hidden)
        if sum(len(group.rows) for group in self.groups.values()) > most:
            failures.append(len(self.patches))
            raise WAYS["GPU"]()

    monkeypatch.setattr(sweep._Live, "join", full)
    with Store.open(tmp_path / "store.duckdb") as store:
        found = trace.trace_prepared(model, facts, experts=(2, 5, 8), store=store)
        assert len(failures) == 2  # two facts, one, and then one part after the other
        for a, b in zip(plain, found, strict=True):
            same(a, b)
        monkeypatch.setattr(missing, "sweep", lambda *args, **kwargs: pytest.fail("computed again"))
        again = trace.trace_prepared(model, facts, experts=(2, 5, 8), store=store)
        assert all(result.cached for result in again)


def test_what_cannot_fit_is_said_and_what_was_finished_is_kept(tmp_path: Path, monkeypatch) -> None:  # noqa: ANN001
    model = built("qwen2_moe")
    facts = [a_fact(1), a_fact(2, 14), a_fact(3)]
    plain = trace.trace_prepared(model, [facts[0], facts[2]], experts="none")
    before, room = traces_left(model), rooms(monkeypatch, 256)
    with Store.open(tmp_path / "store.duckdb") as store:
        with small_memory(model, 9), pytest.raises(OutOfMemory, match="smaller dtype"):
            trace.trace_prepared(model, facts, experts="none", store=store)
        assert traces_left(model) == before
        assert 1 < room.tokens <= 9  # what helped the first ones; one token at a time did not help the last
        with small_memory(model, 0):
            kept = trace.trace_prepared(model, [facts[0], facts[2]], experts="none", store=store)
        assert all(result.cached for result in kept)
    for a, b in zip(plain, kept, strict=True):
        same(a, b)


def test_the_read_out_of_many_rows_is_taken_in_smaller_parts() -> None:
    from core.head import all_logits, object_logits

    model = built("qwen2_moe")
    states = torch.randn(100, model.hidden, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(200).view(100, 2)
    want, everything = object_logits(model, states, ids), all_logits(model, states)
    with small_memory(model, 30) as refused:
        assert torch.allclose(object_logits(model, states, ids), want, atol=1e-6)
        assert torch.allclose(all_logits(model, states), everything, atol=1e-5)
    assert refused
    assert torch.allclose(everything.gather(1, ids), want, atol=1e-5)


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), ValueError("out of memory")])
def test_other_failures_are_not_tried_again(error: Exception) -> None:
    calls = []

    def work() -> None:
        calls.append(1)
        raise error

    with pytest.raises(type(error)) as seen:
        Room(64).within(work)
    assert seen.value is error and len(calls) == 1
    assert not ran_out(error)


@pytest.mark.parametrize("way", WAYS)
def test_it_is_said_in_words_everywhere(way: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:  # noqa: ANN001
    def fail(*args: object) -> None:
        raise WAYS[way]()

    monkeypatch.setattr(cli, "run_models", fail)
    assert cli.main(["models"]) == 1
    assert "not enough memory" in capsys.readouterr().err
    registry = JobRegistry()
    job = registry.submit("key", "title", fail)
    assert job.wait(10)
    assert job.state == FAILED and isinstance(job.error, OutOfMemory)
    registry.close()


def test_patches_that_do_not_fit_together_follow_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """`patch` and `minimal` run one fact's patches together; here at most five rows fit."""
    model, fact = built("qwen2_moe"), a_fact(1)
    specs = parse_patches([
        {"name": f"{layer} {pos}", "steps": [{"site": "moe", "layer": layer, "pos": pos, "restore": "clean"}]}
        for layer in (1, 3) for pos in (2, 5, 8)
    ])  # fmt: skip
    options = {"budget": Budget(2000, 10**9)}
    request = TraceRequest(fact.fact, draws=2)
    plain = patch_prepared(model, request, fact, specs, **options).frame
    join, failures = sweep._Live.join, []

    def full(self, new, hidden) -> None:  # noqa: ANN001 - a test double
        join(self, new, hidden)
        if sum(len(group.rows) for group in self.groups.values()) > 5:
            failures.append(1)
            raise WAYS["CPU"]()

    monkeypatch.setattr(sweep._Live, "join", full)
    before = traces_left(model)
    found = patch_prepared(model, request, fact, specs, **options).frame
    assert failures == [1, 1, 1] and traces_left(model) == before  # 12 rows, 6 and 6, four times 3
    pd.testing.assert_frame_equal(plain, found, atol=1e-4, rtol=1e-3)
    monkeypatch.setattr(sweep._Live, "join", lambda self, new, hidden: full(self, new * 6, hidden))
    with pytest.raises(OutOfMemory):
        patch_prepared(model, request, fact, specs, **options)
