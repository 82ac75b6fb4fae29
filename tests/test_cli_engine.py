"""The command line with the real engine: a small random checkpoint on disk, traced by `python -m core trace`.

The numbers are compared with plain forward passes, with noise and patches written out by hand.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import checkpoints
import numpy as np
import pandas as pd
import pytest
import tiny_models
import torch
from tokenizers_for_tests import tokenizer
from transformers import AutoModelForCausalLM

import core
from core import cli

ROOT = Path(__file__).resolve().parent.parent
TYPED = ["--prompt", "The capital of {} is", "--subject", "New York", "--true", "Paris", "--foil", "Rome"]
TEXT = "The capital of New York is"
TOL = 1e-4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A random qwen3_moe model with the demo's kind of tokenizer, as transformers saves it."""
    return checkpoints.save(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def _own_home(home, monkeypatch):
    monkeypatch.setenv("EXPERTSCOPE_HOME", str(home))


def run(checkpoint, *arguments) -> int:
    return cli.main(["trace", "--model", str(checkpoint), "--device", "cpu", *map(str, arguments)])


class Plain:
    """The same checkpoint in plain transformers: forward passes with embeddings and patches of one's own."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tok = tokenizer("prefix_space")
        self.ids = torch.tensor([self.tok(TEXT)["input_ids"]])
        self.true, self.foil = self.tok(" Paris")["input_ids"][0], self.tok(" Rome")["input_ids"][0]
        pieces = self.tok.convert_ids_to_tokens(self.ids[0].tolist())
        self.subject = [pieces.index("ĠNew"), pieces.index("ĠYork")]

    @torch.no_grad()
    def run(self, noise: torch.Tensor | None = None, patch: tuple[int, int, torch.Tensor] | None = None):
        """(true logit, foil logit, {layer: MoE output [T, d]}); `patch` = (layer, pos, value) replaces one output."""
        embeddings = self.model.get_input_embeddings()(self.ids).clone()
        if noise is not None:
            embeddings[0, self.subject] += noise
        seen, handles = {}, []
        for number, layer in enumerate(self.model.model.layers):

            def hook(_module, _inputs, output, number=number):
                y = output[0] if isinstance(output, tuple) else output
                y = y.clone()
                if patch is not None and patch[0] == number:
                    y.view(1, -1, y.shape[-1])[0, patch[1]] = patch[2]
                seen[number] = y.view(-1, y.shape[-1])
                return (y, *output[1:]) if isinstance(output, tuple) else y

            handles.append(layer.mlp.register_forward_hook(hook))
        try:
            logits = self.model(inputs_embeds=embeddings).logits[0, -1]
        finally:
            for handle in handles:
                handle.remove()
        return float(logits[self.true]), float(logits[self.foil]), seen

    def noise(self, *, level: float, draws: int, seed: int) -> torch.Tensor:
        table = self.model.get_input_embeddings().weight.float()
        generator = torch.Generator("cpu").manual_seed(seed)
        return torch.randn(draws, len(self.subject), table.shape[1], generator=generator) * level * table.std()


def test_the_command_writes_what_plain_forwards_give(checkpoint, home, tmp_path):
    out = tmp_path / "table.parquet"
    done = subprocess.run(
        [
            sys.executable, "-m", "core", "trace", "--model", str(checkpoint), *TYPED, "--noise", "2", "--draws", "2",
            "--seed", "3", "--case-id", "4", "--experts", "all", "--dtype", "float32", "--device", "cpu",
            "--out", str(out),
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=300, env={**os.environ, "EXPERTSCOPE_HOME": str(home)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "%" in done.stderr and "clean contrast" in done.stdout and "Traceback" not in done.stderr
    table = pd.read_parquet(out)
    plain = Plain(checkpoint)
    clean = table[table.kind == "clean"].iloc[0]
    true, foil, clean_y = plain.run()
    np.testing.assert_allclose([clean.true_logit, clean.foil_logit], [true, foil], atol=TOL)
    checked = 0
    for draw, noise in enumerate(plain.noise(level=2, draws=2, seed=3 + 4)):
        base_true, base_foil, _ = plain.run(noise)
        corrupt = table[(table.kind == "corrupt") & (table.draw == draw)].iloc[0]
        np.testing.assert_allclose([corrupt.true_logit, corrupt.foil_logit], [base_true, base_foil], atol=TOL)
        drop = (true - foil) - (base_true - base_foil)
        for row in table[(table.kind == "layer") & (table.draw == draw)].itertuples():
            a, b, _ = plain.run(noise, (row.layer, row.pos, clean_y[row.layer][row.pos]))
            np.testing.assert_allclose([row.true_logit, row.foil_logit], [a, b], atol=TOL)
            np.testing.assert_allclose(row.rescue, (a - b) - (base_true - base_foil), atol=2 * TOL)
            if drop >= 0.05:
                np.testing.assert_allclose(row.restoration, row.rescue / drop, rtol=1e-5, atol=1e-5)
            checked += 1
    n_tokens = plain.ids.shape[1]
    assert checked == 2 * len(tiny_models.FAMILIES["qwen3_moe"].moe_layers) * n_tokens
    assert set(table[table.kind == "expert"].pos) == set(range(n_tokens))


def test_three_lines_of_python_give_the_same_table(checkpoint, tmp_path):
    out = tmp_path / "table.parquet"
    assert run(checkpoint, *TYPED, "--no-cache", "--out", out) == 0
    model = core.load_model(str(checkpoint), device="cpu")
    result = core.trace(model, prompt="The capital of {} is", subject="New York", true="Paris", foil="Rome")
    table = pd.read_parquet(out)
    pd.testing.assert_frame_equal(
        table[result.frame.columns].astype(object).where(lambda f: f.notna(), None),
        result.frame.astype(object).where(lambda f: f.notna(), None),
        check_dtype=False,
        atol=1e-5,
    )


def test_the_second_answer_comes_from_the_store(checkpoint, tmp_path, capsys, monkeypatch):
    out = [tmp_path / f"{n}.json" for n in range(2)]
    assert run(checkpoint, *TYPED, "--seed", 77, "--out", out[0]) == 0
    assert "from the store" not in capsys.readouterr().out

    def never(*_, **__):
        raise AssertionError("the model was loaded although the answer is stored")

    monkeypatch.setattr("core.models.load_model", never)
    assert run(checkpoint, *TYPED, "--seed", 77, "--out", out[1]) == 0
    assert "from the store" in capsys.readouterr().out
    assert json.loads(out[0].read_text()) == json.loads(out[1].read_text())


def test_a_file_of_facts_gives_each_facts_own_numbers(checkpoint, tmp_path, capsys):
    records = [
        {"prompt": "The capital of {} is", "subject": "New York", "target_true": "Paris", "target_false": "Rome"},
        {"prompt": "{} and", "subject": "France", "target_true": "Berlin", "target_false": "Madrid"},
        {"prompt": "The city of {} is in", "subject": "Marie Curie", "target_true": "New York", "target_false": "Rome"},
        {"prompt": "The city of {} is in", "subject": "Rome", "target_true": "London", "target_false": "Paris"},
    ]
    path = tmp_path / "facts.json"
    path.write_text(json.dumps(records))
    assert run(checkpoint, "--facts", path, "--draws", 2, "--no-cache", "--out", tmp_path / "all.parquet") == 0
    streams = capsys.readouterr()
    assert "Over 3 facts" in streams.out and "case_id 2" in streams.err
    table = pd.read_parquet(tmp_path / "all.parquet")
    assert sorted(set(table.case_id)) == [0, 1, 3]
    for case_id in (0, 1, 3):
        r = records[case_id]
        alone = tmp_path / f"{case_id}.parquet"
        assert run(
            checkpoint, "--prompt", r["prompt"], "--subject", r["subject"], "--true", r["target_true"], "--foil",
            r["target_false"], "--case-id", case_id, "--draws", 2, "--no-cache", "--out", alone,
        ) == 0  # fmt: skip
        keys = ["kind", "draw", "layer", "pos", "expert"]
        one = pd.read_parquet(alone).sort_values(keys)
        same = table[table.case_id == case_id].sort_values(keys)
        assert len(one) == len(same)
        np.testing.assert_allclose(one.contrast.to_numpy(), same.contrast.to_numpy(), atol=TOL)


def test_first_tokens_are_marked(checkpoint, tmp_path, capsys):
    records = [
        {"prompt": "{} and", "subject": "France", "target_true": "Berlin", "target_false": "Madrid"},
        {"prompt": "The city of {} is in", "subject": "Paris", "target_true": "New York", "target_false": "Rome"},
    ]
    path = tmp_path / "facts.json"
    path.write_text(json.dumps(records))
    assert run(checkpoint, "--facts", path, "--first-token", "--out", tmp_path / "t.csv") == 0
    out = capsys.readouterr().out
    assert "' New'*" in out and "' Berlin' " in out and "* the first token" in out
    table = pd.read_csv(tmp_path / "t.csv", keep_default_na=False)
    assert set(table[table.case_id == 0].notes) == {""}
    (note,) = set(table[table.case_id == 1].notes)
    assert "'New York'" in note and "' New'" in note
    assert run(checkpoint, *TYPED[:-3], "New York", "--foil", "Rome", "--first-token") == 0
    assert "Note: true object 'New York'" in capsys.readouterr().out


def test_the_automatic_foil_is_the_most_probable_other_token(checkpoint, tmp_path):
    out = tmp_path / "t.parquet"
    assert run(checkpoint, *TYPED[:-1], "auto", "--out", out) == 0
    table = pd.read_parquet(out)
    plain = Plain(checkpoint)
    with torch.no_grad():
        logits = plain.model(plain.ids).logits[0, -1]
    logits[plain.true] = -torch.inf
    assert set(table.foil_id) == {int(logits.argmax())} and set(table.true_id) == {plain.true}
    clean = table[table.kind == "clean"].iloc[0]
    np.testing.assert_allclose(clean.foil_logit, float(logits.max()), atol=TOL)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--model", "no/such-model-anywhere", *TYPED], 1, "no/such-model-anywhere"),
        (["--model", "./no_such_folder", *TYPED], 2, "no_such_folder"),
        ([*TYPED, "--experts", "99"], 2, "99"),
        ([*TYPED, "--special-tokens", "on"], 2, "BOS"),
        (["--prompt", "a b " * 200 + "{}", *TYPED[2:]], 2, "128"),
    ],
)
def test_mistakes_with_the_real_engine(checkpoint, capsys, monkeypatch, arguments, code, says):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if "--model" in arguments:
        assert cli.main(["trace", *arguments]) == code
    else:
        assert run(checkpoint, *arguments, "--no-cache") == code
    err = capsys.readouterr().err
    assert says in err and "Traceback" not in err and "defect" not in err
