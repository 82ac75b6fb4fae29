"""The command line: what it asks the engine, writes and prints, and what a person's mistakes are told.

The engine is a stand-in here that answers at once and records what it was asked; `test_cli_engine.py` runs the
real one.
"""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from fake_results import fake_result
from tokenizers_for_tests import tokenizer

import core
from core import cli, report, tables
from core.console import TerminalProgress, duration, visible
from core.errors import InputError, ModelError, StoreError
from core.facts import BUNDLED
from core.requests import Fact, TraceRequest
from core.results import FRAME_COLUMNS

ROOT = Path(__file__).resolve().parent.parent
TYPED = ["--prompt", "The capital of {} is", "--subject", "France", "--true", "Paris", "--foil", "Rome"]
REQUIRED = [
    "case_id", "kind", "draw", "layer", "pos", "token", "expert", "router_weight_clean", "router_weight_corrupt",
    "true_logit", "foil_logit", "contrast", "rescue", "restoration",
]  # fmt: skip


class Engine:
    """Stands in for `core.models.load_model` and `core.trace`; `asked` is the last list of requests."""

    def __init__(self) -> None:
        self.loaded: list[dict] = []
        self.asked: list[TraceRequest] = []
        self.stores: list[object] = []
        self.fails: Exception | None = None
        self.stored: dict[int, object] = {}

    def load_model(self, name="demo", **options):
        self.loaded.append({"name": name, **options})
        if self.fails is not None:
            raise self.fails
        return types.SimpleNamespace(tokenizer=tokenizer("no_prefix_space"), max_length=64, vocabulary=10**6)

    def trace_many(self, model, requests, *, store=None, progress=None):
        self.asked = list(requests)
        self.stores.append(store)
        progress.update(len(requests), len(requests), "patching")
        return [fake_result(request=r, seed=r.fact.case_id) for r in requests]

    def from_store(self, store, request):
        return self.stored.get(request.fact.case_id)


@pytest.fixture
def engine(monkeypatch, tmp_path):
    monkeypatch.setenv("EXPERTSCOPE_HOME", str(tmp_path / "home"))
    stand_in = Engine()
    models = types.ModuleType("core.models")
    models.load_model = stand_in.load_model
    monkeypatch.setitem(sys.modules, "core.models", models)
    monkeypatch.setattr("core.trace.trace_many", stand_in.trace_many)
    monkeypatch.setattr("core.trace.from_store", stand_in.from_store)
    return stand_in


def file_of(tmp_path, records, name="facts.json") -> str:
    path = tmp_path / name
    path.write_text(json.dumps(records), encoding="utf-8")
    return str(path)


def record(case_id, subject="France", true="Paris", foil="Rome", prompt="The capital of {} is"):
    new = {} if foil is None else {"target_false": foil}
    return {"case_id": case_id, "prompt": prompt, "subject": subject, "target_true": true, **new}


def drop_of(frame: pd.DataFrame) -> float:
    """Clean minus mean corrupt contrast of one fact's table."""
    return frame.loc[frame.kind == "clean", "contrast"].mean() - frame.loc[frame.kind == "corrupt", "contrast"].mean()


def run(*arguments) -> int:
    return cli.main(["trace", *map(str, arguments)])


# -- arguments become requests -------------------------------------------------------------------------------------


def test_defaults(engine, capsys):
    assert run(*TYPED) == 0
    assert engine.asked == [TraceRequest(Fact("The capital of {} is", "France", "Paris", "Rome"))]
    assert engine.asked[0].experts == "last" and engine.asked[0].noise == 3.0 and engine.asked[0].draws == 1
    loaded = engine.loaded[0]
    assert (loaded["name"], loaded["revision"], loaded["dtype"], loaded["device"]) == ("demo", None, "auto", "auto")


def test_every_option_arrives(engine):
    assert run(
        "--model", "some/model", "--revision", "abc", "--dtype", "bfloat16", "--device", "cpu", "--noise", "1.5",
        "--draws", 4, "--seed", 9, "--special-tokens", "off", "--object-tokens", "paper", "--first-token",
        "--experts", "all", "--no-cache", "--prompt", "France and France", "--subject", "France", "--true", " Paris ",
        "--foil", "New York", "--case-id", 12, "--occurrence", 2,
    ) == 0  # fmt: skip
    (request,) = engine.asked
    assert request.fact == Fact("France and France", "France", "Paris", "New York", 12, None, 2)
    model = request.model
    assert (model.name, model.revision, model.dtype, model.device) == ("some/model", "abc", "bfloat16", "cpu")
    assert (request.noise, request.draws, request.seed, request.experts) == (1.5, 4, 9, "all")
    assert (request.special_tokens, request.object_tokens, request.first_token) == ("off", "paper", True)
    assert engine.stores == [None]
    assert {k: engine.loaded[0][k] for k in ("name", "revision", "dtype", "device")} == {
        "name": "some/model", "revision": "abc", "dtype": "bfloat16", "device": "cpu",
    }  # fmt: skip


@pytest.mark.parametrize(("text", "experts"), [("none", "none"), ("3", (3,)), ("4, 2,4", (2, 4))])
def test_experts(engine, text, experts):
    assert run(*TYPED, "--experts", text) == 0
    assert engine.asked[0].experts == experts


def test_automatic_foil(engine, tmp_path):
    assert run(*TYPED[:-1], "auto") == 0
    assert engine.asked[0].fact == Fact("The capital of {} is", "France", "Paris", None, foil_auto=True)
    path = file_of(tmp_path, [record(1), record(2, foil=None)])
    assert run("--facts", path, "--foil", "auto") == 0
    assert [(r.fact.foil, r.fact.foil_auto) for r in engine.asked] == [(None, True)] * 2


def test_a_file_is_traced_in_one_go(engine, tmp_path):
    path = file_of(tmp_path, [record(5), record(9, "Spain", "Madrid"), record(7, "Italy", "Rome", "Paris")])
    assert run("--facts", path, "--seed", 100) == 0
    assert [r.fact.case_id for r in engine.asked] == [5, 9, 7]
    assert {r.seed for r in engine.asked} == {100}
    assert run("--facts", path, "--fact", 7, 5, 7) == 0
    assert [r.fact.case_id for r in engine.asked] == [7, 5]
    assert run("--facts", path, "--fact", 7, "--foil", "Berlin") == 0
    assert engine.asked[0].fact.foil == "Berlin"


def test_bundled_facts_by_case_id(engine, tmp_path, monkeypatch):
    monkeypatch.setattr("core.facts._bundled", lambda: (Fact("{} is", "a", "Rome", "Paris", 3, "r"),))
    assert run("--fact", 3) == 0
    assert engine.asked[0].fact == Fact("{} is", "a", "Rome", "Paris", 3, "r")


def test_the_store_is_used_unless_told_otherwise(engine):
    assert run(*TYPED) == 0 and engine.stores[-1] is not None
    assert run(*TYPED, "--no-cache") == 0 and engine.stores[-1] is None


def test_stored_answers_need_no_model(engine, capsys, tmp_path):
    request = TraceRequest(Fact("The capital of {} is", "France", "Paris", "Rome"))
    engine.stored[0] = fake_result(request=request, cached=True)
    assert run(*TYPED) == 0
    assert engine.loaded == [] and "from the store" in capsys.readouterr().out
    assert run(*TYPED, "--no-cache") == 0 and len(engine.loaded) == 1


def test_a_store_in_use_is_said_and_stops_nothing(engine, monkeypatch, capsys):
    def busy(*_, **__):
        raise StoreError("The store is in use by process 4711.", "Close it.")

    monkeypatch.setattr("cache.store.Store.open", busy)
    assert run(*TYPED) == 0
    assert engine.stores == [None]
    assert "4711" in capsys.readouterr().err


# -- the table -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".json"])
def test_the_written_table_is_the_frame(engine, tmp_path, suffix):
    out = tmp_path / f"table{suffix}"
    assert run(*TYPED, "--draws", 2, "--case-id", 3, "--out", out) == 0
    readers = {".parquet": pd.read_parquet, ".csv": pd.read_csv, ".json": pd.read_json}
    written = readers[suffix](out)
    frame = fake_result(request=engine.asked[0], seed=3).frame
    assert set(REQUIRED) <= set(written) and list(written.columns[: len(FRAME_COLUMNS)]) == FRAME_COLUMNS
    assert len(written) == len(frame) and set(written.kind) == {"clean", "corrupt", "layer", "expert"}
    for column in FRAME_COLUMNS:
        left, right = written[column], frame[column]
        assert list(left.isna()) == list(right.isna()), column
        if column in ("kind", "token"):
            assert list(left.dropna()) == list(right.dropna())
        else:
            np.testing.assert_allclose(
                left.dropna().astype(float).to_numpy(), right.dropna().astype(float).to_numpy(), rtol=1e-12
            )
    assert set(written.subject) == {"France"} and set(written.foil) == {"Rome"} and set(written.noise) == {3.0}
    assert list(tmp_path.glob(".*")) == []  # no temporary file left


def test_whole_numbers_are_written_as_such(engine, tmp_path):
    run(*TYPED, "--out", tmp_path / "t.csv")
    lines = (tmp_path / "t.csv").read_text().splitlines()
    header = lines[0].split(",")
    layers = {line.split(",")[header.index("layer")] for line in lines[1:]}
    assert layers == {"", "0", "1", "2", "3", "4", "5"}
    run(*TYPED, "--out", tmp_path / "t.json")
    rows = json.loads((tmp_path / "t.json").read_text())
    assert rows[0]["layer"] is None and all(isinstance(r["layer"], int) for r in rows[2:])


def test_parquet_says_where_it_comes_from(engine, tmp_path):
    run(*TYPED, "--seed", 5, "--out", tmp_path / "t.parquet")
    metadata = json.loads(pq.read_schema(tmp_path / "t.parquet").metadata[b"expertscope"])
    assert TraceRequest.from_dict(metadata[0]["request"]) == engine.asked[0]
    assert metadata[0]["provenance"]["model"] == "demo"


def test_many_facts_share_a_table(engine, tmp_path):
    path = file_of(tmp_path, [record(5), record(9, "Spain", "Madrid")])
    assert run("--facts", path, "--out", tmp_path / "t.parquet") == 0
    written = pd.read_parquet(tmp_path / "t.parquet")
    assert {k: set(g.subject) for k, g in written.groupby("case_id")} == {5: {"France"}, 9: {"Spain"}}
    for case_id, group in written.groupby("case_id"):
        assert len(group) == len(fake_result(request=engine.asked[[5, 9].index(case_id)]).frame)


def test_an_older_file_is_replaced_and_its_neighbours_stay(engine, tmp_path):
    out = tmp_path / "t.csv"
    out.write_text("old")
    assert run(*TYPED, "--out", out) == 0
    assert out.read_text().startswith("case_id,") and os.listdir(tmp_path / "home") is not None
    assert out.stat().st_mode & 0o044 == (0o666 & ~_umask()) & 0o044


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("name", ["t.xlsx", "t", "none/t.csv", "folder.csv"])
def test_an_impossible_out_is_refused_before_any_work(engine, tmp_path, name, capsys):
    (tmp_path / "folder.csv").mkdir()
    assert run(*TYPED, "--out", tmp_path / name) == 2
    assert engine.loaded == [] and name.split("/")[-1] in capsys.readouterr().err


# -- the summary ---------------------------------------------------------------------------------------------------


def test_summary_of_one_fact(engine, capsys):
    assert run(*TYPED, "--draws", 3) == 0
    out = capsys.readouterr().out
    result = fake_result(request=engine.asked[0])
    frame = result.frame
    assert "The capital of [France] is" in out
    for name, value in (("clean", 6.0), ("corrupt", result.corrupt_contrast), ("drop", drop_of(frame))):
        assert re.search(rf"^{name}( contrast)?\s+{re.escape(f'{value:+.3f}')}\s", out, re.M), (name, value)
    # the best cell and expert, by hand: mean rescue over the draws, divided by the mean drop
    for kind in ("layer", "expert"):
        rows = frame[frame.kind == kind]
        means = rows.groupby(["layer", "pos", "expert"], dropna=False).rescue.sum() / 3
        (layer, pos, expert), best = means.idxmax(), means.max()
        name = f"L{layer}" if kind == "layer" else f"L{layer}E{expert:03d}"
        line = next(line for line in out.splitlines() if re.match(rf"\s+{name}\s", line))
        assert f" {pos} " in line and f"{best:+.3f}" in line and f"{best / drop_of(frame):+.3f}" in line
        block = out[out.index("Best cells" if kind == "layer" else "Best experts") :].splitlines()
        assert block[2] == line


def test_summary_without_a_drop(engine):
    result = fake_result(drop=0.01)
    text = report.summary(result)
    assert "undefined" in text and "fails the paper's filter" in text and "–" in text and "nan" not in text


def test_summary_with_shared_experts_and_notes():
    result = fake_result(shared=True)
    result.provenance.notes.append("true object 'New York' is represented by its first token ' New'")
    text = report.summary(result, best=50)
    assert "L5shared" in text and "first token ' New'." in text


def test_summary_of_many_facts(engine, tmp_path, capsys):
    path = file_of(tmp_path, [record(n, s, t) for n, s, t in ((1, "France", "Paris"), (2, "Spain", "Madrid"))])
    assert run("--facts", path, "--draws", 2) == 0
    out = capsys.readouterr().out
    results = [fake_result(request=r, seed=r.fact.case_id) for r in engine.asked]
    mean_drop = np.mean([drop_of(r.frame) for r in results])
    assert "Over 2 facts" in out and f"drop {mean_drop:+.3f}" in out
    last = 5
    per_fact = [
        r.frame[(r.frame.kind == "layer") & (r.frame.pos == last)].groupby("layer").rescue.mean() for r in results
    ]
    mean = sum(per_fact) / 2
    line = next(line for line in out.splitlines() if re.match(rf"\s+L{mean.idxmax()}\s+last token", line))
    assert f"{mean.max():+.3f}" in line and f"{mean.max() / mean_drop:+.3f}" in line
    totals: dict[tuple[int, int], float] = {}
    for r in results:
        experts = r.frame[r.frame.kind == "expert"]
        for (layer, expert), rescue in (experts.groupby(["layer", "expert"]).rescue.sum() / 2).items():
            totals[layer, expert] = totals.get((layer, expert), 0.0) + rescue / 2
    layer, expert = max(totals, key=totals.get)
    line = next(line for line in out.splitlines() if re.match(rf"\s+L{layer}E{expert:03d}\s", line))
    assert f"{totals[layer, expert]:+.3f}" in line


def test_summary_of_very_many_facts_is_cut():
    results = [fake_result(n_layers=2, request=TraceRequest(Fact("{} is", "a", "b", "c", n))) for n in range(40)]
    text = report.summary_many(results)
    assert "and 10 more" in text and len(text.splitlines()) < 60


# -- mistakes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--facts FILE"),
        (["--prompt", "{} is"], "--subject, --true are missing"),
        (TYPED[:-2], "--foil auto"),
        ([*TYPED, "--fact", "3"], "cannot go together"),
        ([*TYPED, "--facts", "x.json"], "cannot go together"),
        (["--fact", "3", "--case-id", "4"], "cannot go together"),
        (["--facts", "/does/not/exist.json"], "does not exist"),
        ([*TYPED, "--noise", "0"], "noise"),
        ([*TYPED, "--noise", "nan"], "noise"),
        ([*TYPED, "--noise", "much"], "noise"),
        ([*TYPED, "--draws", "0"], "draws"),
        ([*TYPED, "--draws", "1.5"], "draws"),
        ([*TYPED, "--draws", "100000"], "draws"),
        ([*TYPED, "--seed", "-1"], "seed"),
        ([*TYPED, "--case-id", "-1"], "case-id"),
        ([*TYPED, "--case-id", "x"], "case-id"),
        ([*TYPED, "--experts", "first"], "experts"),
        ([*TYPED, "--dtype", "int8"], "dtype"),
        ([*TYPED, "--device", "tpu"], "device"),
        ([*TYPED, "--special-tokens", "maybe"], "special-tokens"),
        ([*TYPED, "--object-tokens", "bare"], "object-tokens"),
        ([*TYPED, "--model", " "], "model"),
        ([*TYPED, "--unknown"], "unknown"),
        ([*TYPED[:-1], "Paris"], "the same"),
        ([*TYPED[:-1], ""], "foil is empty"),
        (["--prompt", "", *TYPED[2:]], "prompt is empty"),
        (["--prompt", "{} {}", *TYPED[2:]], "2 places"),
        (["--prompt", "The capital of Spain is", *TYPED[2:]], "not in the prompt"),
        (["--prompt", "France, France", *TYPED[2:]], "occurs 2 times"),
        (["--prompt", "bad \udcff {}", *TYPED[2:]], "surrogate"),
    ],
)
def test_mistakes_seen_before_the_model_is_loaded(engine, capsys, arguments, says):
    try:
        code = run(*arguments)
    except SystemExit as stop:  # argparse's own errors
        code = stop.code
    streams = capsys.readouterr()
    assert code == 2 and says in streams.err and "Traceback" not in streams.err
    assert engine.loaded == [] and streams.out == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([*TYPED[:-1], "New York"], "--first-token"),
        ([*TYPED[:-3], "New York", "--foil", "New Delhi", "--first-token"], "share"),
        ([*TYPED, "--special-tokens", "on"], "BOS"),
        (["--prompt", "a " * 100 + "{}", *TYPED[2:]], "context only 64"),
        ([*TYPED, "--experts", "2,5"], "position 5"),
        (["--prompt", "The capital of {} is ", *TYPED[2:]], "white space"),
    ],
)
def test_mistakes_that_the_tokenizer_tells(engine, capsys, arguments, says):
    assert run(*arguments) == 2
    streams = capsys.readouterr()
    assert says in streams.err and "Traceback" not in streams.err and engine.asked == []


def test_unusable_facts_are_left_out_and_named(engine, tmp_path, capsys):
    records = [
        record(1),
        record(2, true="New York"),
        record(3, prompt="Nothing here"),
        record(4, "Spain", "Madrid"),
        record(5, foil=None),
    ]
    assert run("--facts", file_of(tmp_path, records)) == 0
    assert [r.fact.case_id for r in engine.asked] == [1, 4]
    err = capsys.readouterr().err
    assert "case_id 2" in err and "--first-token" in err and "case_id 3" in err and "not in the prompt" in err
    assert "case_id 5" in err and "--foil auto" in err
    assert run("--facts", file_of(tmp_path, records[1:3])) == 2
    assert "None of the facts" in capsys.readouterr().err
    assert run("--facts", file_of(tmp_path, records), "--first-token") == 0
    assert [r.fact.case_id for r in engine.asked] == [1, 2, 4]


def test_many_unusable_facts_are_cut_short(engine, tmp_path, capsys):
    records = [record(0), *(record(n, true="New York") for n in range(1, 40))]
    assert run("--facts", file_of(tmp_path, records)) == 0
    err = capsys.readouterr().err
    assert "39 of 40" in err and "and 29 more" in err and len(err.splitlines()) < 20


def test_failures_are_1_and_defects_are_told_as_such(engine, capsys, monkeypatch):
    engine.fails = ModelError("There is no model called x.", "Check the name.")
    assert run(*TYPED) == 1
    assert capsys.readouterr().err.splitlines()[-2:] == ["Error: There is no model called x.", "Check the name."]
    engine.fails = ZeroDivisionError("division by zero")
    assert run(*TYPED) == 1
    err = capsys.readouterr().err
    assert "defect" in err and "ZeroDivisionError" in err and "Traceback" not in err
    monkeypatch.setenv(cli.DEBUG, "1")
    assert run(*TYPED) == 1
    assert "Traceback" in capsys.readouterr().err
    engine.fails = KeyboardInterrupt()
    assert run(*TYPED) == 130
    engine.fails = MemoryError()
    assert run(*TYPED) == 1


# -- as a process --------------------------------------------------------------------------------------------------


def process(*arguments, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "core", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, **options
    )


def test_help_and_exit_codes_of_the_process():
    done = process("trace", "--help")
    assert done.returncode == 0 and "--occurrence" in done.stdout and "--first-token" in done.stdout
    done = process("trace", "--prompt", "{} is")
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr
    assert process().returncode == 2
    assert process("nonsense").returncode == 2


def test_help_and_wrong_input_load_nothing_heavy():
    script = (
        "import sys; from core import cli\n"
        "for arguments in (['trace', '--help'], ['trace', '--prompt', 'x'], ['trace', '--facts', 'none.json']):\n"
        "    try: cli.main(arguments)\n"
        "    except SystemExit: pass\n"
        "print('HEAVY', sorted({'torch', 'transformers', 'pandas', 'pyarrow', 'duckdb'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_a_closed_pipe_is_no_error():
    process_ = subprocess.Popen(
        [sys.executable, "-m", "core", "models"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process_.stdout.close()
    assert process_.wait(timeout=60) == 0
    assert process_.stderr.read() == ""


def test_output_that_the_terminal_cannot_show():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    cli.tolerant(stream)
    stream.write("Zürich \u2192 \udcff")
    stream.flush()
    assert stream.buffer.getvalue() == rb"Z\xfcrich \u2192 \udcff"
    assert visible("a\x1b[31mb\n\u202e") == r"a\x1b[31mb\n\u202e"


# -- progress ------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_tells_the_time_left():
    clock = [0.0]
    stream = Terminal()
    progress = TerminalProgress(stream, clock=lambda: clock[0])
    progress.update(0, 100, "patching")
    clock[0] = 10.0
    progress.update(25, 100, "patching")  # 0.4 s each, 75 left
    assert stream.getvalue().split("\r")[-1].rstrip() == "patching:  25%, 30 s left"
    clock[0] = 10.01
    progress.update(26, 100, "patching")  # too soon to draw again
    assert " 26%" not in stream.getvalue()
    clock[0] = 40.0
    progress.update(100, 100, "patching")
    assert stream.getvalue().split("\r")[-1].rstrip() == "patching: 100%"
    progress.close()
    assert stream.getvalue().endswith("\r") and stream.getvalue().split("\r")[-2].strip() == ""


def test_progress_in_a_log_is_a_line_now_and_then():
    clock = [0.0]
    stream = io.StringIO()
    progress = TerminalProgress(stream, clock=lambda: clock[0])
    for step in range(1000):
        clock[0] = step / 10
        progress.update(step, 1000, "patching")
    lines = stream.getvalue().splitlines()
    assert 9 <= len(lines) <= 12 and "\r" not in stream.getvalue()
    progress.update(0, 5, "loading")
    assert stream.getvalue().splitlines()[-1].startswith("loading")


def test_progress_on_a_closed_stream():
    stream = io.StringIO()
    stream.close()
    TerminalProgress(stream).update(1, 2, "x")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (59.4, "59 s"), (200, "3 min 20 s"), (1830, "30 min"), (7500, "2 h 5 min")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


# -- the package ---------------------------------------------------------------------------------------------------


def test_importing_the_package_loads_nothing_heavy():
    script = "import sys, core; core.Fact; print(sorted({'torch', 'transformers', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("first", ["", "import core.trace\n", "from core.trace import trace_many\n"])
def test_trace_is_callable_whoever_imports_it_first(first):
    script = (
        f"{first}import core\nfrom core import trace as taken\nfrom core.trace import trace_many\n"
        "assert core.trace is taken and callable(core.trace)\n"
        "try: core.trace(None)\n"
        "except core.trace.InputError as error: print(error.field)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout == "prompt\n", done.stderr


def test_unknown_names_of_the_package():
    with pytest.raises(AttributeError):
        core.nothing  # noqa: B018
    assert {"load_model", "trace", "Fact", "TraceRequest"} <= set(dir(core))


def test_unknown_table_formats_are_a_mistake_of_ours(tmp_path):
    with pytest.raises(ValueError, match="unknown"):
        tables.table_bytes(pd.DataFrame(), ".xml")
    with pytest.raises(InputError):
        tables.check_out(tmp_path / "x.xml")


def test_the_bundled_list_is_found_from_anywhere():
    assert BUNDLED == ROOT / "demo" / "facts.jsonl"
