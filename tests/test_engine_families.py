"""The engine against the oracle on tiny models of every family: every cell, every expert, every shared expert.

All positions are asked for, those before the subject too; two draws; fp32.
"""

from __future__ import annotations

import pandas as pd
import pytest
import torch

import core.missing
from core.moe import MoeModel, Watch, contributions, without_experts
from core.trace import trace_prepared
from tests import oracle
from tests.compare import Setting, assert_agrees, assert_derived_columns, oracle_of, random_fact, rows_of
from tests.tiny_models import FAMILIES, build

# One layer kind each: plain, output scaled after the block, group-limited with shared, own attention kernel with
# sliding windows, linear attention, mamba.
KINDS = ["mixtral", "granitemoe", "deepseek_v3", "gpt_oss", "qwen3_next", "jamba"]

SETTING = Setting(noise=3.0, draws=2, seed=7)
FACT = random_fact(5)
# Other lengths; the subject first, one token long, and last.
OTHERS = [
    random_fact(6, length=11, subject=(4, 5, 6)),
    random_fact(8, length=9, subject=(0,)),
    random_fact(9, length=6, subject=(4, 5)),
]


def trace(model: MoeModel, facts, **settings) -> list[pd.DataFrame]:
    """Frames of `trace_prepared` with the noise of `SETTING` and every position's experts."""
    wanted = {"noise": SETTING.noise, "draws": SETTING.draws, "seed": SETTING.seed, "experts": "all"}
    return [result.frame for result in trace_prepared(model, facts, **{**wanted, **settings})]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request) -> MoeModel:
    return MoeModel(build(request.param))


@pytest.fixture(scope="module")
def asked(model) -> oracle.Oracle:
    return oracle_of(model.model, FACT, SETTING)


@pytest.fixture(scope="module")
def table(asked) -> dict[tuple, oracle.Logits]:
    return asked.table()


@pytest.fixture(scope="module")
def frame(model, table) -> pd.DataFrame:  # after the oracle, which must not see what the engine might leave behind
    return trace(model, [FACT])[0]


def test_every_row_is_the_oracles(frame, table):
    found = assert_agrees(frame, table, first_subject=FACT.subject_positions[0])
    assert found.median >= 0.05, found  # patches matter, so that agreement means something


def test_every_derived_column_is_the_oracles(frame, asked):
    assert_derived_columns(frame, asked)


def test_positions_before_the_subject_equal_the_corrupt_run(frame):
    corrupt = frame[frame.kind == "corrupt"].set_index("draw")
    early = frame[frame.pos < FACT.subject_positions[0]]
    assert set(early.kind) >= {"layer", "expert"}
    for row in early.itertuples():
        assert row.true_logit == pytest.approx(corrupt.true_logit[row.draw], abs=1e-6)
        assert row.foil_logit == pytest.approx(corrupt.foil_logit[row.draw], abs=1e-6)


def test_every_cell_of_the_moe_layers_has_one_row(frame, model):
    cells = frame.loc[frame.kind == "layer", ["draw", "layer", "pos"]].astype(int)
    layers = FAMILIES[model.config.model_type].moe_layers
    wanted = [(draw, layer, pos) for draw in range(2) for layer in layers for pos in range(len(FACT.input_ids))]
    assert sorted(cells.itertuples(index=False, name=None)) == wanted


def test_shared_rows_exactly_where_the_family_has_a_shared_expert(frame, model):
    has = model.config.model_type in oracle.GATED_SHARED | oracle.PLAIN_SHARED | oracle.BESIDE_SHARED
    assert ("shared" in set(frame.kind)) == has


def test_model_is_left_as_it_was(model, frame, table):
    for module in model.model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks and "forward" not in module.__dict__
    assert model.config._attn_implementation == ("eager" if model.config.model_type == "gpt_oss" else "sdpa")
    key = ("clean", None, None, None, None)
    ids = torch.tensor(FACT.input_ids)
    assert oracle.contrast(model.model, ids, FACT.true_id, FACT.foil_id) == pytest.approx(table[key], abs=1e-6)


def test_contributions_add_up_in_the_engine_too(model, asked):
    """core.moe.contributions per slot = the oracle's per expert, and with the shared part = the block's output."""
    for layer, block in model.blocks.items():
        with torch.no_grad(), Watch(block, model.n_experts) as watch:
            model.model(input_ids=asked.case.input_ids[None], use_cache=False)
        seen, wanted = watch.routing(), asked.clean_run[layer]
        c = contributions(block, seen.x, seen.index, seen.weight)
        limit = 5e-6 * wanted.y.abs().max()
        shared = torch.zeros_like(wanted.y) if wanted.shared is None else wanted.shared
        assert (without_experts(block, seen.block_input) - shared).abs().max() <= limit
        assert (c.sum(1) + shared - wanted.y).abs().max() <= limit
        for pos in range(len(wanted.y)):
            for slot, expert in enumerate(seen.index[pos].tolist()):
                by_hand = oracle.contribution(model.model, layer, wanted, pos, expert)
                assert (c[pos, slot] - by_hand).abs().max() <= limit


def test_eager_experts(model, table):
    """The other experts implementation against the same oracle (whose own two agree: tests/test_oracle.py)."""
    eager = MoeModel(build(model.config.model_type, experts_implementation="eager"))
    assert eager.implementation()["experts"] == "eager" != model.implementation()["experts"]
    assert_agrees(trace(eager, [FACT])[0], table, first_subject=FACT.subject_positions[0])


def test_many_facts_together_are_as_each_alone(model, table):
    """Four facts of three lengths in one sweep; the first against the oracle, all against a sweep of their own."""
    facts = [FACT, *OTHERS]
    together = trace(model, facts)
    assert_agrees(together[0], table, first_subject=FACT.subject_positions[0])
    for fact, frame in zip(facts[1:], together[1:], strict=True):
        same_rows(frame, trace(model, [fact])[0])


def test_rows_in_chunks_are_as_in_one_call(model, frame, table, monkeypatch):
    """A budget of a single row, and of a few."""
    for tokens in (1, 40):
        small_budget(monkeypatch, tokens)
        assert_agrees(trace(model, [FACT])[0], table, first_subject=FACT.subject_positions[0])


@pytest.mark.parametrize("family", KINDS)
def test_other_subjects_and_lengths(family):
    """Subject at the very start, at the very end, of one and three tokens: the oracle at three positions each."""
    model = MoeModel(build(family))
    for fact, frame in zip(OTHERS, trace(model, OTHERS, draws=1), strict=True):
        positions = sorted({fact.subject_positions[0], fact.subject_positions[-1], len(fact.input_ids) - 1})
        wanted = oracle_of(model.model, fact, Setting(draws=1, seed=SETTING.seed)).table(positions=positions)
        some = frame[frame.pos.isna() | frame.pos.isin(positions)]
        assert_agrees(some, wanted, first_subject=positions[0])


@pytest.mark.parametrize("family", ["mixtral", "granitemoe", "qwen3_next"])
def test_ten_draws(family):
    """Draw j of ten is draw j of j + 1; the last one against the oracle at two positions."""
    model = MoeModel(build(family))
    ten = trace(model, [FACT], draws=10)[0]
    two = trace(model, [FACT], draws=2)[0]
    same_rows(ten[(ten.draw < 2).fillna(False)], two[two.draw.notna()])
    asked = oracle_of(model.model, FACT, Setting(draws=10, seed=SETTING.seed))
    wanted = asked.table(positions=(3, 8), draws=(9,))
    some = ten[ten.draw.isna() | ((ten.draw == 9) & (ten.pos.isna() | ten.pos.isin((3, 8))))]
    assert_agrees(some, wanted, first_subject=3)


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "jamba"])
def test_experts_at_chosen_positions(family):
    """`experts` chooses rows; it changes none."""
    model = MoeModel(build(family))
    everything = trace(model, [FACT])[0]
    for experts, positions in (("last", [8]), ("none", []), ((3, 5), [3, 5])):
        frame = trace(model, [FACT], experts=experts)[0]
        kept = everything[~everything.kind.isin(["expert", "shared"]) | everything.pos.isin(positions)]
        same_rows(frame, kept)


def same_rows(frame: pd.DataFrame, other: pd.DataFrame) -> None:
    """The two frames have the same keys, and numbers within rounding (5e-5)."""
    got, want = rows_of(frame), rows_of(other)
    assert got.keys() == want.keys()
    for key, row in want.items():
        for column in ("true_logit", "foil_logit", "rescue", "router_weight_clean", "router_weight_corrupt"):
            a, b = got[key][column], row[column]
            assert pd.isna(a) == pd.isna(b) and (pd.isna(a) or abs(a - b) <= 5e-5), (key, column, a, b)


def small_budget(monkeypatch, tokens: int) -> None:
    """At most `tokens` tokens at a time through a layer; at least one row."""
    real = core.missing.sweep.__wrapped__ if hasattr(core.missing.sweep, "__wrapped__") else core.missing.sweep

    def chunked(*args, **options):
        return real(*args, **{**options, "chunk_tokens": tokens})

    chunked.__wrapped__ = real
    monkeypatch.setattr(core.missing, "sweep", chunked)
