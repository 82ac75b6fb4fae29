"""An expert's dossier does not depend on where the weights are, and knows int8 ones too."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import core
from core import expert_questions as questions
from core.derived import derive
from tests import checkpoints
from tests.word_facts import word_facts

ASKED = {
    "writes": questions.writes,
    "size": questions.size,
    "neurons": questions.neurons,
    "steering": lambda *args, **named: questions.steering(*args, factor=2, continued=2, **named),
}


@pytest.fixture(scope="module", params=["qwen3_moe", "gpt_oss"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.save(tmp_path_factory.mktemp("dossier"), request.param)


def test_layers_left_on_the_disk_change_nothing(folder: Path) -> None:
    here, away = (core.load_model(str(folder), placement=place, dtype="float32") for place in ("memory", "disk"))
    for name, ask in ASKED.items():
        one, other = (derive(model, ask(model.spec, word_facts(), layer=2, expert=1)) for model in (here, away))
        assert one.values == other.values
        for table, values in one.tables.items():
            pd.testing.assert_frame_equal(other.tables[table], values, rtol=1e-5, atol=1e-5)
            assert len(values), (name, table)
    assert all(p.device.type == "meta" for p in away.blocks[2].experts.parameters())  # and they are there again


@pytest.mark.parametrize("folder", ["qwen3_moe"], indirect=True)
def test_neurons_of_int8_weights(folder: Path) -> None:
    """Expanded, they give what the experts' own product with int8 matrices gives."""
    model = core.load_model(str(folder), quantisation="int8", dtype="float32", device="cpu")
    result = derive(model, questions.neurons(model.spec, word_facts(), layer=2, expert=1))
    assert result.values["available"] and result.values["error"] < 1e-4
    neurons = result.tables["neurons"]
    assert neurons.write.sum() == pytest.approx(result.values["direct"], abs=1e-4)
