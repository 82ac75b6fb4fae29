"""The load-time checks: they pass on sound engines and real configurations, and catch every planted mistake."""

from __future__ import annotations

import pytest
import tiny_models
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from cache.store import Store
from core import checks, writing
from core.base import ContributionTable
from core.checks import Check, compare_with_hooks, ensure_checked
from core.errors import ModelRefused
from core.moe import MoeModel
from core.shrink import shrunken_config, shrunken_model

GRANITE = {"residual_multiplier": 0.22, "embedding_multiplier": 12.0, "logits_scaling": 6.0}
REAL = ["qwen3_moe", "mixtral", "olmoe", "deepseek_v3", "granitemoe", "gpt_oss", "phimoe", "qwen3_next", "jamba"]


@pytest.mark.parametrize("family", REAL)
def test_a_tiny_copy_of_a_full_size_configuration_agrees_with_hooks(family: str) -> None:
    config = CONFIG_MAPPING[family](**(GRANITE if family == "granitemoe" else {}))
    small = shrunken_model(config)
    assert sum(p.numel() for p in small.parameters()) < 3_000_000
    model = MoeModel(small)
    found = compare_with_hooks(model)
    assert [check.name for check in found] == ["cells against hooks", "experts against hooks"]
    for check in found:
        assert check.passed, check
        assert check.difference < check.allowed / 3  # sound engines pass with room


def test_attention_by_an_index_runs_on_full_rows_with_its_own_attention() -> None:
    """DeepSeek-V3.2 attends to the positions that an index selects: to all of them in a prompt as short as the probe's,
    so that only a longer one shows what the packed axis would leave out."""
    config = CONFIG_MAPPING["deepseek_v32"](
        num_hidden_layers=4, first_k_dense_replace=1, hidden_size=64, num_attention_heads=4, num_key_value_heads=4,
        vocab_size=256, index_topk=2048,
    )  # fmt: skip
    assert shrunken_config(config).index_topk < 8
    model = MoeModel(shrunken_model(config))
    assert not any(model.structure.packed)
    assert all(check.passed for check in compare_with_hooks(model))
    small = shrunken_config(config)
    small.index_topk = 2048
    with torch.random.fork_rng(devices=[]):
        assert not any(MoeModel(AutoModelForCausalLM.from_config(small).eval()).structure.packed)


def test_the_copy_keeps_what_is_structural() -> None:
    config = CONFIG_MAPPING["deepseek_v3"](norm_topk_prob=False, routed_scaling_factor=1.7, num_hidden_layers=61)
    small = shrunken_config(config)
    assert (small.norm_topk_prob, small.routed_scaling_factor) == (False, 1.7)
    assert small.first_k_dense_replace == config.first_k_dense_replace
    assert small.num_hidden_layers == 8 and small.hidden_size == 64 and small.vocab_size == 256


def _model() -> MoeModel:
    return MoeModel(tiny_models.build("qwen2_moe"))


def _next_position(table: ContributionTable, run: int, pos: int, expert: int) -> torch.Tensor:
    other = next(p for (r, p) in table._tables if r == run and p != pos)
    return _expert(table, run, other, expert)


_expert = ContributionTable.expert


def _unweighted(table: ContributionTable, run: int, pos: int, expert: int) -> torch.Tensor:
    index, _ = table._tables[run, pos].slots((run, pos))
    weights = table._tables[run, pos]._base.weight[run][pos][index == expert]
    return _expert(table, run, pos, expert) / (weights.float().sum() if len(weights) else 1.0)


def _rolled(step, pos, base, table):  # noqa: ANN001, ANN202
    vector = _vector(step, pos, base, table)
    return vector.roll(1)


_vector = writing.vector_of


@pytest.mark.parametrize("mistake", ["position", "unweighted", "vector"])
def test_a_planted_mistake_is_refused(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if mistake == "position":
        monkeypatch.setattr(ContributionTable, "expert", _next_position)
    elif mistake == "unweighted":
        monkeypatch.setattr(ContributionTable, "expert", _unweighted)
    else:
        monkeypatch.setattr(writing, "vector_of", _rolled)
    with pytest.raises(ModelRefused, match="failed a load-time check .* against hooks"):
        ensure_checked(_model())


def test_contributions_that_do_not_add_up_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from core import structure

    true = structure.contributions
    monkeypatch.setattr(structure, "contributions", lambda *args: true(*args) * 1.001)
    with pytest.raises(ModelRefused, match="do not add up"):
        _model().structure  # noqa: B018 - probing is what raises


def test_a_sweep_that_differs_from_plain_forwards_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model()
    assert all(check.passed for check in checks.check_weights(model))
    outcome_of = checks.Pass.outcome

    def shifted(*args, **kwargs):  # noqa: ANN002, ANN003, ANN202
        outcome = outcome_of(*args, **kwargs)
        return type(outcome)(
            outcome.patches, outcome.patched + 0.05, outcome.runs, outcome.final * 1.01, outcome.activations
        )

    monkeypatch.setattr(checks.Pass, "outcome", shifted)
    names = {check.name for check in checks.check_weights(model) if not check.passed}
    assert "a patch that changes nothing" in names


@pytest.mark.parametrize("family", ["qwen2_moe", "deepseek_v3", "qwen3_next"])
def test_the_real_weights_are_passed_over_once(family: str) -> None:
    """Everything that is asked of a layer is asked before the next layer is touched, and no layer is touched again."""
    module = tiny_models.build(family)
    model = MoeModel(module)
    visits: list[int] = []
    for layer, block in enumerate(model.layers):
        for part in block.modules():
            if part is not block and any(True for _ in part.parameters(recurse=False)):
                part.register_forward_pre_hook(lambda module, args, layer=layer: visits.append(layer))
    found = checks.check_weights(model)
    assert len(found) == 4 and all(check.passed for check in found)
    assert visits == sorted(visits)
    assert set(visits) == set(range(model.n_layers))


def test_what_the_pass_finds_out_is_what_a_pass_of_its_own_finds_out() -> None:
    module = tiny_models.build("qwen2_moe")
    once, alone = MoeModel(module), MoeModel(module)
    checks.check_weights(once)
    assert once.structure.to_dict() == alone.structure.to_dict()


def test_layers_that_take_no_part_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model()
    skipped = model.layers[1]
    monkeypatch.setattr(type(skipped), "__call__", lambda self, hidden, *args, **kwargs: (
        hidden if self is skipped else torch.nn.Module.__call__(self, hidden, *args, **kwargs)
    ))  # fmt: skip
    with pytest.raises(ModelRefused):
        checks.check_weights(model)


def test_nan_never_passes() -> None:
    assert not Check("anything", float("nan"), 1.0).passed


def test_the_verdict_is_stored_and_spares_the_second_check(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN001
    module = tiny_models.build("qwen2_moe")
    with Store.open(tmp_path / "store.duckdb") as store:
        first = MoeModel(module, fingerprint="same")
        found = ensure_checked(first, store)
        monkeypatch.setattr(checks, "check_copy", lambda *args: pytest.fail("checked again"))
        second = MoeModel(module, fingerprint="same")
        assert ensure_checked(second, store) == found
        assert second.structure.to_dict() == first.structure.to_dict()
        with pytest.raises(pytest.fail.Exception):
            ensure_checked(MoeModel(module, fingerprint="another"), store)


def test_a_stored_refusal_is_refused_again(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN001
    module = tiny_models.build("qwen2_moe")
    with Store.open(tmp_path / "store.duckdb") as store:
        with monkeypatch.context() as planted:
            planted.setattr(writing, "vector_of", _rolled)
            with pytest.raises(ModelRefused):
                ensure_checked(MoeModel(module, fingerprint="same"), store)
        with pytest.raises(ModelRefused, match="load-time check"):
            ensure_checked(MoeModel(module, fingerprint="same"), store)


@pytest.mark.parametrize("family", ["qwen2_moe", "granitemoe", "qwen3_next"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_passes_the_checks_of_the_real_weights(family: str, dtype: torch.dtype) -> None:
    model = MoeModel(tiny_models.build(family).to(dtype))
    assert model.structure.sum_error <= 2.0**-7
    same = MoeModel(tiny_models.build(family)).structure  # what fp32 finds out about the layers
    assert (model.structure.packed, model.structure.additive) == (same.packed, same.additive)
    assert all(check.passed for check in checks.check_weights(model))


def test_a_family_that_crashes_in_the_checks_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*args: object, **kwargs: object) -> None:
        raise AttributeError("'NoneType' object has no attribute 'reshape'")

    monkeypatch.setattr(checks, "shrunken_model", crash)
    with pytest.raises(ModelRefused, match="checks cannot run on this model .*reshape"):
        ensure_checked(_model())
