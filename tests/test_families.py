"""The matrix of all families: each is exact, on the packed axis or on a slower path; none is wrong, none is refused."""

from __future__ import annotations

import pytest

from tests import made_up_family
from tests.families import discover, random_model
from tests.matrix import TABLE, Finding, examine, examine_model, table

LIMIT = 1e-4


def test_discovery_finds_the_families_that_everybody_knows() -> None:
    found = discover()
    assert {"mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss", "jamba", "llama4_text", "gemma4", "jetmoe"} <= set(found)
    assert not {"llama", "gpt2", "bamba", "qwen3", "llama4"} & set(found)
    assert len(found) >= 58


@pytest.mark.parametrize("kind", sorted(discover()))
def test_family(kind: str) -> None:
    found = examine(kind)
    assert not found.unrunnable, found.unrunnable
    is_exact(found)


def is_exact(found: Finding) -> None:
    """Within the limits, on a model whose patches matter."""
    assert not found.refused, found.refused
    agreement = found.agreement
    assert agreement is not None and not agreement.missing, agreement
    assert agreement.median >= 0.05, agreement  # patches matter, so that agreement means something
    assert agreement.logits <= LIMIT and agreement.relative <= LIMIT, agreement
    assert found.early <= 1e-6


def test_a_family_that_nobody_has_seen_works_with_no_change() -> None:
    """Renamed subclasses with a configuration of their own, registered with the Auto classes; a block whose parts have
    other names, with a router and an order of its own, behind a layer kind of its own."""
    made_up_family.register()
    config = made_up_family.MadeUpConfig(**made_up_family.SMALL)
    found = examine_model(config.model_type, "MadeUpForCausalLM", random_model(config))
    is_exact(found)
    assert found.structure is not None
    assert all(found.structure.packed) and found.structure.has_shared and found.structure.reroutable


def test_the_committed_table_says_what_is_found() -> None:
    assert TABLE.read_text("utf-8") == table(), "run `make families`"
