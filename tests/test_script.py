"""The scripts that pages show: both the command line and the Python program give the page's numbers again."""

from __future__ import annotations

import dataclasses
import json
import shlex
import subprocess
from types import SimpleNamespace
from urllib.parse import urlencode

import numpy as np
import pandas as pd
import pytest
from fake_results import FRANCE, fake_result

import core
from cache import Store
from cache.fact_lists import FactLists
from cache.holdings import Holdings
from core import cli, cli_averages, derived, expert_questions, facts, library_script, models, script
from core.averages import questions as averages
from core.averages import tables
from core.cells.asking import ask
from core.cli_derive import read
from core.cli_lists import facts_of
from core.compare import words
from core.compare.link import Pair, to_query
from core.compare.tables import Compared
from core.derived import DerivedRequest, derive
from core.errors import InputError
from core.fact_lists import FactListDesk
from core.fact_sets import FactSet, choose
from core.facts import bundled
from core.identity import remember_identity
from core.links import Link, View
from core.requests import Fact, ModelSpec, TraceRequest
from core.stored import StoredDesk

EVIL = '\'; rm -rf ~; echo "$HOME" `id` \\ <script>alert(1)</script> {x}'
ODD = Fact(f"{EVIL} {{}}\n-- ☃", subject=f"-{EVIL}", true="a b", foil="--foil", occurrence=2, case_id=9)
AUTO = Fact("{} is", "A", "b", foil_auto=True)
BUNDLED = {FRANCE.case_id: FRANCE}
REQUESTS = [
    TraceRequest(fact=FRANCE),
    TraceRequest(fact=FRANCE, noise=2.5, draws=3, seed=11, experts=(1, 3), special_tokens="off", first_token=True),
    TraceRequest(fact=ODD, object_tokens="paper", experts="all"),
    TraceRequest(fact=AUTO, model=ModelSpec("org/x y", "v1", "bfloat16", "cpu", "int8")),
    TraceRequest(fact=FRANCE, corruption="replace", draws=2, seed=3),
    TraceRequest(fact=ODD, corruption="replace", replacement=("Sri Lanka", EVIL)),
]  # fmt: skip


@pytest.mark.parametrize("request_", REQUESTS)
def test_both_scripts_ask_the_very_question(request_, monkeypatch):
    made = script.of_trace(request_, bundled=BUNDLED.get)
    said = subprocess.run(["bash", "-c", f"printf '%s\\0' {made.command}"], capture_output=True, check=True).stdout
    words_ = said.decode().split("\0")[:-1]
    assert words_ == shlex.split(made.command) and words_[:4] == ["python", "-m", "core", "trace"]
    asked = []
    monkeypatch.setattr(facts, "bundled", lambda: list(BUNDLED.values()))
    monkeypatch.setattr(cli, "run_trace", lambda arguments: asked.append(arguments) or 0)
    assert cli.main(words_[3:]) == 0
    (arguments,) = asked
    from core.cli_facts import named_facts
    from core.cli_options import template

    (fact,) = named_facts(arguments)
    back = template(arguments, experts=cli._experts(arguments.experts)).replace(fact=fact)
    assert back == request_

    ran = {}
    monkeypatch.setattr(core, "load_model", lambda **spec: spec)
    monkeypatch.setattr(core, "trace", lambda model, request: ran.update(model=model, request=request) or FAKE)
    exec(made.python, {})  # noqa: S102 - that it runs is what is tested
    assert ran["request"] == request_
    assert ModelSpec(**ran["model"]) == request_.model


FAKE = fake_result(n_layers=2)


def test_chosen_subjects_are_named_where_the_choice_could_not_be_had_again():
    typed = TraceRequest(fact=Fact("{} is", "A", "b", "c", relation="r"), corruption="replace", draws=2)
    made = script.of_trace(typed, bundled=BUNDLED.get, chosen=["Spain", "Sri Lanka"])
    assert "--replacement Spain 'Sri Lanka'" in made.command
    listed = script.of_trace(typed.replace(fact=FRANCE), bundled=BUNDLED.get, chosen=["Spain", "Sri Lanka"])
    assert "--replacement" not in listed.command and "--draws 2 --seed 0" in listed.command


def test_a_derived_question_goes_through_the_command_line_unchanged():
    settings = {"noise": 3.0, "text": EVIL, "list": [1, None, True]}
    own = DerivedRequest.of("routing", ModelSpec("demo", dtype="float32"), facts=[FRANCE, ODD], **settings)
    made = script.of_derived(own, bundled=BUNDLED.get)
    arguments = shlex.split(made.command)
    assert arguments[:4] == ["python", "-m", "core", "derive"] and len(arguments) == 5
    assert json.loads(arguments[4])["facts"][0] == FRANCE.case_id
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(facts, "bundled", lambda: [FRANCE])
        assert read(arguments[4]) == own
    for wrong in ("{", "{}", '{"kind": "nothing"}', '{"kind": "routing", "facts": [{"x": 1}]}', "/no/such/file", "[1]"):
        with pytest.raises(InputError):
            read(wrong)


SETS = [FactSet(), FactSet(relations=("country_capital", "a 'b'"), n=None, seed=4), FactSet(source="mine; `x`", n=2)]
ASKED = [
    TraceRequest(averages.NOBODY),
    TraceRequest(averages.NOBODY, ModelSpec("org/x y", dtype="bfloat16"), noise=2.5, draws=3, seed=1, first_token=True),
    TraceRequest(averages.NOBODY, corruption="replace", replacement=("Sri Lanka", EVIL), object_tokens="paper"),
]  # fmt: skip


@pytest.mark.parametrize(("fact_set", "asked", "min_drop"), zip(SETS, ASKED, (0.5, None, 0.25), strict=True))
def test_averages_have_the_command_and_the_program_of_their_own(fact_set, asked, min_drop, monkeypatch):
    FactListDesk(FactLists()).put("mine; `x`", [ODD, AUTO, FRANCE], replace=True)
    ran, found = [], {}
    monkeypatch.setattr(cli_averages, "run_averages", lambda arguments: ran.append(arguments) or 0)
    monkeypatch.setattr(core, "load_model", lambda **spec: spec)
    monkeypatch.setattr(derived, "derive", lambda model, asked_: found.update(model=model, request=asked_))
    its = choose(fact_set, facts_of("bundled" if fact_set.source == "bundled" else f"list:{fact_set.source}"))
    for request, table in (
        (averages.cells_request(asked, its, site="residual", window=3), "role_table"),
        (averages.experts_request(asked, its, role="last subject"), "expert_table"),
    ):
        monkeypatch.setattr(tables, table, lambda result, **options: found.update(options))
        made = script.of_averages(request, fact_set, min_drop=min_drop)
        assert cli.main(shlex.split(made.command)[3:]) == 0
        assert cli_averages.request_of(ran[-1]) == request
        assert cli_averages._min_drop(ran[-1].min_drop) == min_drop
        exec(made.python, {})  # noqa: S102
        assert found == {"model": dataclasses.asdict(asked.model), "request": request, "min_drop": min_drop}


def test_a_derived_question_names_the_set_of_its_facts_and_a_long_one_is_no_argument(monkeypatch):
    FactListDesk(FactLists()).put("mine; `x`", [ODD, AUTO, FRANCE], replace=True)
    mine = FactSet(source="mine; `x`", n=2)
    for fact_set, its in ((mine, choose(mine, (ODD, AUTO, FRANCE))), (FactSet(n=9), choose(FactSet(n=9), bundled()))):
        request = DerivedRequest.of("routing", ModelSpec(), facts=its, noise=2.0)
        made = script.of_derived(request, bundled=BUNDLED.get, fact_set=fact_set)
        assert "subject" not in made.command and read(shlex.split(made.command)[4]) == request
        found = []
        monkeypatch.setattr(core, "load_model", lambda **spec: spec)
        monkeypatch.setattr(derived, "derive", lambda model, asked, found=found: found.append(asked) or DONE)
        exec(made.python, {})  # noqa: S102
        assert found == [request]
    many = tuple(dataclasses.replace(ODD, case_id=n) for n in range(600))
    request = DerivedRequest.of("routing", ModelSpec(), facts=many)
    made = script.of_derived(request, bundled=BUNDLED.get)
    program, _, rest = made.command.partition("\n")
    assert program == "python -m core derive /dev/stdin <<'QUESTION'" and len(rest) > 131_072
    said = subprocess.run(["bash"], input=f"cat <<'QUESTION'\n{rest}\n", capture_output=True, check=True, text=True)
    assert read(said.stdout) == request


DONE = SimpleNamespace(tables={})


@pytest.fixture(scope="module")
def model():
    return core.load_model("demo", dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def question():
    spec = ModelSpec("demo", dtype="float32", device="cpu")
    return TraceRequest(fact=facts.bundled()[40], model=spec, noise=2.0, draws=2, seed=5, experts=(1,))


@pytest.fixture
def loading(model, monkeypatch):
    """The scripts load this very model: that loading is asked for as it should be is tested above."""
    asked = []
    monkeypatch.setattr(models, "load_model", lambda **spec: asked.append(spec) or model)
    return asked


def test_the_scripts_of_a_trace_give_its_numbers(model, question, loading, tmp_path, capsys):
    expected = core.trace(model, question).frame
    known = {fact.case_id: fact for fact in facts.bundled()}
    fact = dataclasses.replace(question.fact, relation=None)  # no longer the bundled one
    typed = question.replace(fact=fact)
    for request in (question, typed):
        made = script.of_trace(request, bundled=known.get)
        out = tmp_path / f"{request is typed}.parquet"
        assert cli.main([*shlex.split(made.command)[3:], "--no-cache", "--out", str(out)]) == 0
        _same(pd.read_parquet(out), expected)
        assert ("--prompt" in made.command) is (request is typed)
    found = {}
    exec(script.of_trace(question, bundled=known.get).python, found)  # noqa: S102
    _same(found["result"].frame, expected)
    assert len(loading) == 3 and {spec["dtype"] for spec in loading} == {"float32"}
    assert "clean contrast" in capsys.readouterr().out


def _same(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    assert len(found) == len(expected)
    for name in ("contrast", "rescue", "restoration", "router_weight_clean"):
        left, right = (np.asarray(table[name], dtype=float) for table in (found, expected))
        np.testing.assert_allclose(left, right, atol=1e-4, equal_nan=True)


def test_several_traces_are_one_program(model, question, loading):
    requests = [question, question.replace(noise=1.0), question]
    made = script.of_traces(requests, bundled={fact.case_id: fact for fact in facts.bundled()}.get)
    assert len(made.command.splitlines()) == 2
    found = {}
    exec(made.python, found)  # noqa: S102
    assert set(found["results"]) == set(requests) and len(loading) == 1
    _same(found["results"][question].frame, core.trace(model, question).frame)


def test_the_scripts_of_a_comparison_give_its_numbers(model, question, loading, tmp_path, capsys):
    a, b = question.replace(experts="last"), question.replace(experts="last", noise=1.0, seed=6)
    compared = Compared(core.trace(model, a), core.trace(model, b))
    known = {fact.case_id: fact for fact in facts.bundled()}
    made = script.of_result(compared, bundled=known.get)
    out = tmp_path / "cells.csv"
    assert cli.main([*shlex.split(made.command)[3:], "--out", str(out)]) == 0
    said = capsys.readouterr().out
    for sentence in words.sentences(compared):
        assert sentence in said
    table = pd.read_csv(out)
    np.testing.assert_allclose(table.rescue_difference, compared.cells.rescue_difference, atol=1e-4)
    found = {}
    exec(made.python, found)  # noqa: S102
    np.testing.assert_allclose(found["compared"].cells.rescue_difference, compared.cells.rescue_difference, atol=1e-4)
    pair = Pair(Link(a, View(), True), Link(b, View(), True))
    assert made == script.of_comparison(pair) and urlencode(to_query(pair)) in made.command


def test_the_scripts_of_maps_at_another_site_give_their_numbers(model, question, loading, tmp_path):
    a = question.replace(experts="none", draws=1)
    at = derive(model, ask("site_map", a, site="attention", window=2))
    trace = core.trace(model, a)
    compared = Compared(trace, trace, False, None, at)
    made = script.of_result(compared, bundled={fact.case_id: fact for fact in facts.bundled()}.get)
    out = tmp_path / "cells.parquet"
    assert cli.main([*shlex.split(made.command)[3:], "--out", str(out)]) == 0
    found = {}
    exec(made.python, found)  # noqa: S102
    for table in (pd.read_parquet(out), found["compared"].cells):
        np.testing.assert_allclose(table.rescue_difference, compared.cells.rescue_difference, atol=1e-4)
    assert (compared.cells.rescue_difference.abs() > 0.1).any()


def test_the_scripts_of_a_derived_answer_give_its_numbers(model, loading, tmp_path, capsys):
    known = {fact.case_id: fact for fact in facts.bundled()}
    few = [dataclasses.replace(known[40], relation=None), known[41]]
    request = expert_questions.size(ModelSpec(), few, layer=2, expert=3)
    expected = derive(model, request)
    assert expected.tables
    made = script.of_result(expected, bundled=known.get)
    assert cli.main([*shlex.split(made.command)[3:], "--no-cache", "--out", str(tmp_path / "out")]) == 0
    found = {}
    exec(made.python, found)  # noqa: S102
    for name, table in expected.tables.items():
        pd.testing.assert_frame_equal(found["result"].tables[name], table, rtol=1e-4, atol=1e-4)
        read_back = pd.read_parquet(tmp_path / "out" / f"{name}.parquet")
        pd.testing.assert_frame_equal(read_back, table, rtol=1e-4, atol=1e-4, check_dtype=False)
    written = json.loads((tmp_path / "out" / "answer.json").read_text("utf-8"))
    assert written["request"]["facts"] == request.to_dict()["facts"]


def test_the_script_of_a_stored_trace_names_the_subjects_that_were_chosen(model, question, loading, tmp_path):
    """The choice goes by the fact's relation, which a typed fact has no option for."""
    kin = question.replace(corruption="replace", experts="none", draws=2)
    alone = kin.replace(fact=dataclasses.replace(kin.fact, relation=None))
    typed = kin.replace(fact=dataclasses.replace(kin.fact, case_id=0), seed=kin.seed + kin.fact.case_id)
    known = {fact.case_id: fact for fact in facts.bundled()}
    with Store.open(tmp_path / "store.duckdb") as store:
        remember_identity(store, model.spec, model.identity, label=model.label)
        expected = {request: core.trace(model, request, store=store) for request in (typed, alone)}
        listed = StoredDesk(Holdings(store.path), store, lambda: None).traces()
    chosen = {request: tuple(found.provenance.replacements) for request, found in expected.items()}
    assert chosen[typed] != chosen[alone], "with and without a relation other subjects are chosen"
    assert {one.replacements for one in listed} == set(chosen.values())
    for shown in (listed, listed[:1], listed[1:]):
        commands = library_script.of_traces(shown, bundled=known.get).command.splitlines()
        assert len(commands) == len(shown)
        for number, (command, one) in enumerate(zip(commands, shown, strict=True)):
            out = tmp_path / f"{len(shown)} {number}.parquet"
            assert cli.main([*shlex.split(command)[3:], "--no-cache", "--out", str(out)]) == 0
            same = [r for r in expected if chosen[r] == one.replacements]
            _same(pd.read_parquet(out), expected[same[0]].frame)
