"""The command `study` with a small checkpoint: running, showing, going on, and what a person's mistakes are told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import checkpoints
import pytest
from test_study_run import word_facts

from cache import Store
from cache.lending import patiently
from cache.studies import Studies
from core import cli, cli_study
from core.errors import ModelError
from core.study import data
from core.study.settings import StudySettings, preset

ROOT = Path(__file__).resolve().parent.parent
EASY = ["--min-clean-contrast", "-1000", "--min-drop", "-1000", "--n", "8", "--resamples", "100", "--flips", "100"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return checkpoints.save(tmp_path_factory.mktemp("checkpoint"), "qwen2_moe")


@pytest.fixture(scope="module")
def facts(tmp_path_factory) -> Path:
    """Those of `test_study_run` as a CounterFact file."""
    records = []
    for fact in word_facts():
        rewrite = {"prompt": fact.prompt, "subject": fact.subject, "target_true": {"str": fact.true}}
        rewrite |= {"relation_id": fact.relation or "none"} | ({"target_new": {"str": fact.foil}} if fact.foil else {})
        records.append({"case_id": fact.case_id, "requested_rewrite": rewrite})
    path = tmp_path_factory.mktemp("facts") / "facts.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


@pytest.fixture
def study(checkpoint, facts, capsys):
    """Runs `study` with arguments; for a new one with the checkpoint and the facts. (code, stdout, stderr)."""

    def call(*arguments, new=False) -> tuple[int, str, str]:
        given = ["--model", str(checkpoint), "--device", "cpu", "--facts", str(facts), *EASY] if new else []
        code = cli.main(["study", *given, *map(str, arguments)])
        return code, *capsys.readouterr()

    return call


def test_a_study_is_run_shown_moved_and_deleted(study, tmp_path):
    code, out, err = study("--name", "first", "--seed", "3", "--by-subject", "--noise-levels", "2", "3", new=True)
    assert code == 0
    assert out.startswith("first: done, 100% done") and "8 of 8 kept" in out and "\nVerdict: " in out
    assert "layer sweep: 8 of 8 facts" in err
    settings = StudySettings.from_dict(Studies().get("first").settings)
    assert settings.seed == 3 and settings.by_subject and settings.noise_levels == (2.0, 3.0)
    assert settings.preset == "paper" and settings.facts == "facts.json" and settings.n == 8
    assert study("show", "first")[1] == out
    code, listed, _ = study("list")
    assert code == 0 and listed.splitlines()[1].split()[0] == "first" and " done " in listed
    code, _, err = study("--name", "first", new=True)
    assert code == 2 and "There is a study 'first' already." in err
    assert study("resume", "first")[:2] == (0, out)
    file = tmp_path / "first.zip"
    assert study("export", "first", file)[0] == 0
    assert study("rename", "first", "zwei")[0] == 0
    assert study("import", file)[:2] == (0, "Imported as first: python -m core study show first\n")
    assert study("import", file, "--name", "third")[0] == 0
    assert study("delete", "zwei")[0] == 0
    assert [record.name for record in Studies().all()] == ["first", "third"]
    shown = study("show", "third")[1]
    assert shown.split("\n", 1)[1] == out.split("\n", 1)[1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--n", "2", "--name", "x"], "n is 2"),
        (["--recurrence", "2", "--name", "x"], "recurrence is 2.0"),
        (["--facts", "/nowhere/facts.json", "--name", "x"], "facts.json"),
        (["--cases", "paper-qwen3", "--name", "x"], "256 facts of CounterFact"),
        (["--model", "/nowhere/model", "--name", "x"], "There is no folder /nowhere/model"),
        (["--noise-levels", "0", "--name", "x"], "noise_levels is 0.0"),
        (["--batch-tokens", "0", "--name", "x"], "--batch-tokens is 0"),
        (["--name", " "], "The study's name is ''"),
        ([], "The study has no name"),
        (["show", "nothing"], "There is no study 'nothing'"),
        (["show", "nothing", "--out", "x"], "There is no study 'nothing'"),
        (["resume", "nothing"], "There is no study 'nothing'"),
        (["cancel", "nothing"], "There is no study 'nothing'"),
        (["delete", "nothing"], "There is no study 'nothing'"),
        (["rename", "nothing", "other"], "There is no study 'nothing'"),
        (["export", "nothing", "x.zip"], "There is no study 'nothing'"),
        (["export", "nothing", "x.txt"], "The name has to end in .zip"),
        (["import", "/nowhere/x.zip"], "There is no file /nowhere/x.zip"),
    ],
)
def test_a_mistake_is_said_in_words(study, arguments, says):
    code, out, err = study(*arguments)
    assert code == 2 and says in err and "Traceback" not in err and not out
    assert Studies().all() == []


def test_a_file_that_is_no_study(study, tmp_path):
    path = tmp_path / "x.zip"
    path.write_bytes(b"something else")
    code, _, err = study("import", path)
    assert code == 2 and "This is not the file of a study" in err


def test_presets_by_the_facts_and_options_over_presets():
    parser = cli.parser()
    assert cli_study.settings_of(parser.parse_args(["study"])) == preset("demo")
    assert cli_study.settings_of(parser.parse_args(["study", "--facts", "a/b.json"])) == preset("paper", facts="b.json")
    rome = parser.parse_args(
        ["study", "--preset", "rome", "--draws", "4", "--no-joint-search", "--grid-seeds", "1", "2"]
    )
    assert cli_study.settings_of(rome) == preset("rome", draws=4, joint_search=False, grid_seeds=(1, 2))


def test_list_without_studies(study):
    assert study("list")[1].startswith("No studies yet.")


def test_cancel_of_what_is_not_running(study):
    assert study("--name", "first", new=True)[0] == 0
    code, _, err = study("cancel", "first")
    assert code == 2 and "is not running: it is done" in err
    Studies().update("first", state=data.RUNNING)  # as a killed process leaves it
    assert " interrupted " in study("list")[1]
    assert study("cancel", "first")[0] == 0
    assert Studies().get("first").state == data.CANCELLED


def test_while_the_model_is_loaded_others_see_that_and_can_cancel(study, monkeypatch):
    seen = []

    def load(spec, progress):
        record = Studies().get("first")
        seen.append((data.state_of(Studies(), record), record.note))
        assert study("resume", "first")[0] == 2  # somebody works on it
        assert study("cancel", "first")[0] == 0
        return model(spec, progress)

    model = cli_study._model
    monkeypatch.setattr(cli_study, "_model", load)
    code, _, err = study("--name", "first", new=True)
    assert code == 1 and "cancelled" in err and seen == [(data.QUEUED, "loading the model")]
    assert (Studies().get("first").state, Studies().get("first").note) == (data.CANCELLED, "")
    assert Studies().part_names("first") == {(data.FACTS, 0)}

    def fail(spec, progress):
        raise ModelError("It is gone.")

    monkeypatch.setattr(cli_study, "_model", fail)
    Studies().update("first", state=data.FAILED, note="No room.")
    assert "It is gone." in study("resume", "first")[2]
    assert (Studies().get("first").state, Studies().get("first").note) == (data.FAILED, "No room.")  # as before
    assert study("--name", "second", new=True)[0] == 1 and Studies().find("second") is None
    monkeypatch.setattr(cli_study, "_model", model)
    assert study("resume", "first")[0] == 0
    assert (Studies().get("first").state, Studies().get("first").note) == (data.DONE, "")


@pytest.mark.skipif(os.name == "nt", reason="needs SIGINT")
def test_ctrl_c_keeps_what_is_done_and_other_processes_see_the_study(study, checkpoint, facts):
    """While one process runs a study, another one sees it and leaves it alone; what was done is not done again."""
    command = [sys.executable, "-m", "core", "study", "--model", str(checkpoint), "--device", "cpu"]
    command += ["--facts", str(facts), *EASY, "--batch-tokens", "1"]
    options = {"cwd": ROOT, "stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # where a shell's `&` made it ignored
    with subprocess.Popen([*command, "--name", "first"], **options) as process:
        for line in process.stderr:
            if line.startswith("filters"):
                break
        with patiently(Store.open, 30.0):  # as long as this process has the store, the other one waits for it
            assert study("list")[1].splitlines()[1].split()[:4] == ["first", str(checkpoint), "paper", "running"]
            code, _, err = study("resume", "first")
            assert code == 2 and "The study 'first' is running already." in err
            assert study("delete", "first")[0] == 2
            process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=60)
    # 130, or what a shell calls 130: Python ends by the signal where that fell into an exec() of its own
    assert process.returncode in (130, -signal.SIGINT), rest
    assert "study resume first" in rest and "Traceback" not in rest
    record = Studies().get("first")
    assert record.state == data.CANCELLED and record.progress.get("fraction", 0.0) < 1.0
    before = Studies().part_names("first")
    assert study("resume", "first")[0] == 0
    assert before < Studies().part_names("first")
    assert Studies().get("first").state == data.DONE
