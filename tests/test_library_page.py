"""The Library page without a browser: lists of facts, validation, what is stored, models; on a small random model."""

from __future__ import annotations

import dataclasses
import json
import re
import threading
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import checkpoints
import pytest
import tokenizers_for_tests
from page_on_model import params_of
from streamlit.testing.v1 import AppTest
from word_facts import word_facts

from cache import Store
from cache.fact_lists import FactLists
from cache.holdings import Holdings
from cache.studies import Studies
from core import facts, library_link, links, script
from core.checks import ensure_checked
from core.derived import derive
from core.library_link import LibraryView
from core.moe import MoeModel
from core.requests import Fact, ModelSpec, TraceRequest
from core.study import data
from core.study.settings import preset
from core.trace import trace_many
from core.workbench import Engine, StoreStatus, Workbench, real_engine
from pages.parts import base, library_facts

WAIT = 60.0
APP = Path(__file__).resolve().parent.parent / "app.py"
WORDS = word_facts()


@pytest.fixture(scope="module")
def model() -> MoeModel:
    found = MoeModel(checkpoints.build("qwen2_moe"), tokenizers_for_tests.tokenizer("prefix_space"))
    ensure_checked(found)
    return found


@pytest.fixture
def bench(tmp_path, model, monkeypatch):
    path = tmp_path / "store.duckdb"
    real = real_engine()
    engine = Engine(lambda **options: model, real.trace_many, real.from_store)
    store = Store.open(path)
    made = Workbench(
        store, engine=engine, studies=Studies(path), fact_lists=FactLists(path), holdings=Holdings(path)
    )
    monkeypatch.setattr(made, "warm_up", lambda: None)
    monkeypatch.setattr(base, "workbench", lambda: made)
    yield made
    made.close(WAIT)


@pytest.fixture
def words(bench):
    bench.fact_lists.put("words", WORDS, note="From a test.")


@pytest.fixture
def traced(bench, model):
    requests = [TraceRequest(fact, noise=noise) for fact in WORDS[:2] for noise in (3.0, 2.0)]
    return trace_many(model, requests, store=bench._store)


def opened(**params: str) -> AppTest:
    page = AppTest.from_file(str(APP), default_timeout=60).switch_page("pages/Library.py")
    for name, value in params.items():
        page.query_params[name] = value
    return ran(page)


def ran(what) -> AppTest:
    page = what.run()
    assert not page.exception, page.exception
    return page


def finished(page: AppTest, bench) -> AppTest:
    for job in bench.jobs.all():
        assert job.wait(WAIT)
    return ran(page)


def said(page: AppTest) -> str:
    kinds = ("markdown", "caption", "warning", "error", "info", "success")
    parts = [element.value for kind in kinds for element in getattr(page, kind)]
    parts += [element.proto.body for element in page.get("html")]
    return re.sub(r"\\(.)", r"\1", "\n".join(str(part) for part in parts))


def button(page: AppTest, label: str):
    return next(b for b in page.button if b.label == label)


def widget(kind, label: str):
    return next(w for w in kind if w.label == label)


def tick(page: AppTest, *rows: int, table: int = 0) -> AppTest:
    """Tick rows of a table as a viewer does."""
    key = page.dataframe[table].proto.id.split("-", 2)[2]
    page.session_state[key] = {"selection": {"rows": list(rows), "columns": [], "cells": []}}
    return ran(page)


def confirmed(page: AppTest, question: str) -> AppTest:
    """Answer a destructive action's question with yes."""
    sure = next(box for box in page.checkbox if question in re.sub(r"\\(.)", r"\1", box.label))
    key = sure.proto.id.rsplit("sure ", 1)[1].rsplit("@", 1)[0]
    do = next(b for b in page.button if b.key == f"es_do_{key}")
    assert do.disabled, "it asks first"
    page = ran(sure.check())
    return ran(next(b for b in page.button if b.key == f"es_do_{key}").click())


# -- the link ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "view",
    [
        LibraryView(),
        LibraryView("validation", "my list", "r|s", "two words", "no_foil"),
        LibraryView("traces", of="org/model", search="x"),
        LibraryView(
            "validation", model=ModelSpec("org/m", "abc", dtype="bfloat16"), measure=False, noise=2.5, draws=3, seed=7,
            special_tokens="off", object_tokens="paper", min_clean_contrast=-0.25, min_drop=0.0,
        ),
    ],
)  # fmt: skip
def test_a_view_comes_back_from_its_link(view):
    assert library_link.from_query(library_link.to_query(view)) == view


def test_what_is_wrong_in_a_link_is_said_and_replaced():
    assert library_link.to_query(LibraryView()) == {}
    view = library_link.from_query({"show": "nowhere", "min_drop": "nan", "outcome": "?", "noise": "-1", "facts": " "})
    assert len(view.problems) == 4
    assert view == LibraryView(problems=view.problems)


# -- facts -------------------------------------------------------------------------------------------------------------


def test_the_bundled_facts_are_filtered_searched_and_lead_to_the_trace_page(bench):
    page = opened(relation="animal_class", search="zoo alligator")
    known = [f for f in facts.bundled() if f.relation == "animal_class"]
    expected = [f for f in known if all(word in f.text.lower() for word in ("zoo", "alligator"))]
    table = page.dataframe[0].value
    assert expected and table.case_id.tolist() == [str(f.case_id) for f in expected]
    page = ran(widget(page.text_input, "Search").set_value("beaver"))
    assert params_of(page) == {"relation": "animal_class", "search": "beaver"}
    (row,) = page.dataframe[0].value.itertuples()
    assert row.subject == "beaver"
    query = {k: v[0] for k, v in parse_qs(urlsplit(row.trace).query).items()}
    found = links.from_query(query, bundled=base.bundled().get, default=base.default_fact())
    assert found.request.fact.subject == "beaver" and found.bundled and not found.problems


def labels(page: AppTest) -> list[str]:
    return [b.proto.label for b in page.get("download_button")]


def noted(page: AppTest, name: str):
    return page.session_state["es_noted"][name].part


@pytest.mark.parametrize("source", ["bundled", "words"])
def test_the_facts_that_are_shown_can_be_had_as_a_report_and_by_a_program(bench, words, source, monkeypatch, capsys):
    page = opened(facts=source, search="capital" if source == "bundled" else "")
    shown = page.dataframe[0].value
    assert len(shown) and labels(page).count("Report") == 1
    part = noted(page, "library-facts")
    assert list(part.table.subject) == list(shown.subject) and "trace" not in part.table
    assert part.caption.startswith(f"{len(shown):,}")
    (program,) = [code.value for code in page.code if "facts.search" in code.value]
    monkeypatch.setattr("cache.fact_lists.FactLists", lambda: bench.fact_lists._book)
    found = {}
    exec(program, found)  # noqa: S102
    assert [str(fact.case_id) for fact in found["found"]] == list(shown.case_id)
    assert len(capsys.readouterr().out.splitlines()) == len(shown)


def test_many_facts_are_listed_in_part_and_it_is_said(bench, monkeypatch):
    monkeypatch.setattr(library_facts, "MOST", 10)
    page = opened()
    assert len(page.dataframe[0].value) == 10
    assert f"{len(base.bundled()):,} facts; the first 10 are listed" in said(page)


def test_ticked_facts_become_a_list_that_can_be_edited_and_deleted(bench):
    page = tick(opened(relation="animal_class"), 0, 2)
    chosen = [f for f in facts.bundled() if f.relation == "animal_class"]
    ran(widget(page.text_input, "Name").set_value("two animals"))
    page = ran(button(page, "Make the list").click())
    assert bench.fact_lists.get("two animals") == (chosen[0], chosen[2])
    assert params_of(page) == {"facts": "two animals"} and "Kept 2 facts as “two animals”." in said(page)
    page = tick(page, 1)
    page = confirmed(page, "Take 1 fact out")
    assert bench.fact_lists.get("two animals") == (chosen[0],) and "Took out 1 fact." in said(page)
    page = ran(widget(page.text_input, "Another name").set_value("one animal"))
    page = ran(button(page, "Rename").click())
    assert bench.fact_lists.names() == ["one animal"] and params_of(page) == {"facts": "one animal"}
    page = confirmed(page, "Delete “one animal” with its 1 fact")
    assert bench.fact_lists.names() == [] and params_of(page) == {}


def test_a_fact_is_typed_in_with_its_tokens_and_edited(bench, words):
    page = opened(facts="words")
    place = "library "
    fields = {"Prompt": "The capital of {} is", "Subject": "France", "True object": "Paris", "Foil": "Rome"}
    for label, value in fields.items():
        page = ran(next(w for w in page.text_input if w.label == label and place in w.key).set_value(value))
    assert "true object is token" in said(page)
    page = ran(button(page, "Add the fact").click())
    added = bench.fact_lists.get("words")[-1]
    assert added == Fact("The capital of {} is", "France", "Paris", "Rome", case_id=52)
    page = tick(page, 0)
    prompt = next(w for w in page.text_input if w.label == "Foil" and "edit 0" in w.key)
    page = ran(prompt.set_value("Berlin"))
    page = ran(button(page, "Save").click())
    assert bench.fact_lists.get("words")[0].foil == "Berlin" and bench.fact_lists.get("words")[0].case_id == 0


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_what_is_exported_can_be_uploaded_again(bench, ending):
    from core.fact_lists import to_file

    odd = [
        *WORDS[:12],
        Fact("{} é, \"quoted\"\nline", "Zoë\U0001f600", "a", None, 77, None, None, True),
        Fact("The A is the A", "A", "b", "c", 2**60, "r", 2),
    ]
    page = opened()
    page = ran(page.file_uploader[0].upload(f"mine{ending}", to_file(odd, ending), "text/plain"))
    assert "14 facts of 4 relations." in said(page)
    page = ran(button(page, "Keep as a list").click())
    assert bench.fact_lists.get("mine") == tuple(odd) and params_of(page) == {"facts": "mine"}
    assert "From the file mine" in said(page)


def test_facts_that_are_there_twice_are_said_and_taken_out(bench):
    again = [dataclasses.replace(WORDS[i], case_id=100 + i) for i in (2, 0, 2)]
    again[2] = dataclasses.replace(again[2], case_id=200)
    other = dataclasses.replace(WORDS[3], foil_auto=True, foil=None, case_id=300)
    mine = [*WORDS[:4], *again, other]
    lines = [
        {"case_id": f.case_id, "prompt": f.prompt, "subject": f.subject, "true": f.true, "foil": f.foil,
         "foil_auto": f.foil_auto} for f in mine
    ]  # fmt: skip
    page = opened()
    content = "\n".join(json.dumps(line) for line in lines).encode()
    page = ran(widget(page.get("file_uploader"), "File of facts").upload("mine.jsonl", content, "application/json"))
    assert "3 of them repeat another" in said(page)
    page = ran(button(page, "Keep as a list").click())
    assert "3 of the facts repeat another" in said(page)
    page = confirmed(page, "Take 3 facts out")
    assert [f.case_id for f in bench.fact_lists.get("mine")] == [*(f.case_id for f in WORDS[:4]), 300]
    assert "repeat another" not in said(page) and "Took out 3 facts." in said(page)


def test_a_wrong_file_is_said_with_row_and_field(bench):
    bad = "prompt,subject,target_true,target_new\nThe {} is,a,b,c\nThe {} is,a,,c\n"
    page = opened()
    page = ran(page.file_uploader[0].upload("bad.csv", bad.encode(), "text/csv"))
    message = re.sub(r"\\(.)", r"\1", page.error[0].value)
    assert "bad.csv: row 1 (line 3), column target_true, is empty." in message
    assert "Keep as a list" not in [b.label for b in page.button]


def test_a_list_that_is_not_there_is_said(bench):
    page = opened(facts="gone")
    assert "no list of facts 'gone'" in said(page)


# -- validation --------------------------------------------------------------------------------------------------------


def test_facts_are_validated_and_the_usable_ones_kept(bench, words, model):
    page = finished(opened(show="validation", facts="words", min_clean_contrast="-100", min_drop="-100"), bench)
    view = LibraryView("validation", "words", min_clean_contrast=-100.0, min_drop=-100.0)
    expected = derive(model, view.validate(WORDS)).tables["facts"].set_index("case_id")
    assert "12 of 14 facts are usable (85.7 %)" in said(page)
    assert "the true object is not a single token" in said(page) and "there is no foil" in said(page)
    table = page.dataframe[0].value.set_index("case_id")
    assert table.outcome.tolist() == ["✓"] * 12 + ["✗"] * 2
    for case_id, row in table.iterrows():
        assert (row.reason if isinstance(row.reason, str) else "") == expected.reason[int(case_id)]
        assert row["drop"] == pytest.approx(expected["drop"][int(case_id)], abs=1e-4, nan_ok=True)
    page = ran(widget(page.selectbox, "Listed below").select("no_foil"))
    assert page.dataframe[0].value.case_id.tolist() == ["51"] and params_of(page)["outcome"] == "no_foil"
    ran(widget(page.text_input, "Name").set_value("good ones"))
    page = ran(button(page, "Make the list").click())
    assert bench.fact_lists.get("good ones") == tuple(WORDS[:12])
    assert params_of(page) == {"facts": "good ones", "min_clean_contrast": "-100", "min_drop": "-100"}


def test_without_contrasts_only_the_tokenizer_is_asked(bench, words):
    page = opened(show="validation", facts="words")
    page = finished(ran(widget(page.toggle, "Measure contrasts").set_value(False)), bench)
    assert params_of(page) == {"show": "validation", "facts": "words", "measure": "0"}
    assert "12 of 14 facts are usable" in said(page) and "drop" not in page.dataframe[0].value


# -- what is stored ----------------------------------------------------------------------------------------------------


def test_traces_are_listed_searched_named_and_deleted(bench, traced):
    page = opened(show="traces", search=WORDS[0].subject)
    mine = [t for t in bench.stored.traces() if t.request.fact == WORDS[0]]
    assert page.dataframe[0].value.corruption.tolist() == [f"noise {t.request.noise:g}, seed 0" for t in mine]
    page = tick(ran(widget(page.text_input, "Search").set_value("")), 1)
    label = next(w for w in page.text_input if w.label == "Name")
    ran(label.set_value("mine, noisy"))
    page = ran(button(page, "Rename").click())
    assert page.dataframe[0].value.name.tolist()[1] == "mine, noisy"
    assert bench.stored.traces()[1].label == "mine, noisy"
    address = page.dataframe[0].value.open[1]
    query = {k: v[0] for k, v in parse_qs(urlsplit(address).query).items()}
    found = links.from_query(query, bundled=base.bundled().get, default=base.default_fact())
    assert found.request == bench.stored.traces()[1].request and not found.bundled
    page = ran(widget(page.text_input, "Search").set_value("noisy"))
    assert len(page.dataframe[0].value) == 1
    page = confirmed(page, "Delete 1 trace for good")
    assert len(bench.stored.traces()) == 3 and "Deleted 1 trace." in said(page)


def test_every_section_has_a_report_and_what_computes_a_script(bench, traced):
    assert "Report" in labels(page := opened(show="traces"))
    part = noted(page, "library-traces")
    assert list(part.table.fact) == list(page.dataframe[0].value.fact) and "open" not in part.table
    (commands,) = [code.value for code in page.code if code.value.startswith("python -m core trace ")]
    asked = {script.of_trace(trace.request, bundled=base.bundled().get).command for trace in traced}
    assert set(commands.splitlines()) == asked and len(asked) == 4
    assert {"store-models"} <= set(opened(show="store").session_state["es_noted"])
    page = opened(show="models")
    assert "Report" in labels(page) and any(code.value == "python -m core models" for code in page.code)
    page = opened(show="studies")
    assert "Report" not in labels(page), "there is nothing to report"


def test_traces_go_into_a_file_and_come_back_marked(bench, traced):
    content = bench.stored.export([bench.stored.traces()[0].key])
    request = bench.stored.traces()[0].request
    bench.stored.delete([t.key for t in bench.stored.traces()])
    page = opened(show="traces")
    assert "No trace is stored yet" in said(page)
    page = ran(page.file_uploader[0].upload("some.traces.zip", content, "application/zip"))
    page = ran(next(b for b in page.button if b.key == "es_traces_read").click())
    assert "Imported 1 trace." in said(page)
    assert page.dataframe[0].value.remark[0].startswith("imported 2")
    assert bench.lookup(request) is not None
    page = ran(page.file_uploader[0].upload("wrong.zip", b"no zip", "application/zip"))
    page = ran(next(b for b in page.button if b.key == "es_traces_read").click())
    assert "This is not a file of traces" in said(page)


def test_studies_are_renamed_exported_and_deleted(bench):
    data.create(Studies(bench._store.path), "first", preset("demo", n=4), facts.bundled())
    page = tick(opened(show="studies"), 0)
    ran(widget(page.text_input, "Another name").set_value("second"))
    page = ran(button(page, "Rename").click())
    assert [s.name for s in bench.studies.all()] == ["second"]
    page = confirmed(tick(page, 0), "Delete “second” and all its results")
    assert bench.studies.all() == [] and "Deleted the study “second”." in said(page)


def test_the_stores_limit_a_models_share_and_derived_answers(bench, model, words, traced):
    derive(model, LibraryView(measure=False).validate(WORDS), store=bench._store)
    page = opened(show="store")
    values = {metric.label: metric.value for metric in page.metric}
    status = bench.store_status()
    assert values["contents"] == base_size(status.contents) and values["limit"] == base_size(status.limit)
    assert "Validation of facts: 1" in said(page)
    ran(widget(page.number_input, "Limit (MB)").set_value(50))
    page = ran(button(page, "Set limit").click())
    assert bench.store_status().limit == 50 * 10**6
    page = confirmed(tick(page, 0, table=1), "Delete 1 answer for good")
    assert bench.stored.derived() == [] and len(bench.stored.traces()) == 4
    page = ran(button(page, "Compact").click())
    assert "as small as its contents" in said(page)
    page = confirmed(tick(page, 0), "Delete everything that is stored of")
    assert bench.store_status().contents == 0 and bench.fact_lists.names() == ["words"]


def test_a_limit_below_the_contents_asks_first(bench, monkeypatch):
    limits = []
    status = StoreStatus(10**8, 5 * 10**7, 10**9, (("demo (abc)", 5 * 10**7),))
    monkeypatch.setattr(bench, "store_status", lambda: status)
    monkeypatch.setattr(bench, "set_store_limit", limits.append)
    page = ran(widget(opened(show="store").number_input, "Limit (MB)").set_value(20))
    assert not [b for b in page.button if b.key == "es_library_limit"]
    confirmed(page, "Delete what was not used for longest, about 30 MB")
    assert limits == [20 * 10**6]


def base_size(n: int) -> str:
    from core import formats

    return formats.size(n)


def test_a_study_can_be_made_of_a_stored_list(bench, words, monkeypatch):
    begun = []
    monkeypatch.setattr(bench.studies, "start", lambda name, settings, listed: begun.append((name, settings, listed)))
    page = ran(AppTest.from_file(str(APP), default_timeout=60).switch_page("pages/Study.py"))
    page = ran(widget(page.segmented_control, "Facts").set_value("a list"))
    assert widget(page.selectbox, "List of facts").value == "words" and "14 facts, 3 relations." in said(page)
    ran(button(page, "Start the study").click())
    ((_, settings, listed),) = begun
    assert listed == WORDS and settings.facts == "list:words" and settings.preset == "paper"


def test_a_model_is_loaded_shown_and_unloaded(bench, monkeypatch):
    go, load = threading.Event(), bench.residents._load

    def held(**options):
        assert go.wait(WAIT)
        return load(**options)

    monkeypatch.setattr(bench.residents, "_load", held)
    page = opened(show="models")
    assert "No model is in memory" in said(page)
    page = ran(button(page, "Load it now").click())
    assert "Loading demo" in page.get("progress")[0].proto.text and button(page, "Cancel")
    go.set()
    page = finished(page, bench)
    assert bench.loaded == ModelSpec() and "demo** is loaded" in said(page)
    states = dict(zip(page.dataframe[0].value.model, page.dataframe[0].value.state, strict=True))
    assert states["demo"] == "loaded" and states["Qwen/Qwen3-30B-A3B-Base"] == "not here"
    assert button(page, "Load it now").disabled
    page = finished(ran(button(page, "Unload").click()), bench)
    assert bench.loaded is None and "No model is in memory" in said(page)


def test_without_a_store_every_section_says_so(monkeypatch):
    made = Workbench(None, store_error="The disk is gone.")
    monkeypatch.setattr(made, "warm_up", lambda: None)
    monkeypatch.setattr(base, "workbench", lambda: made)
    for section in library_link.SECTIONS:
        if section not in ("models", "validation"):
            page = opened(show=section, search="beaver")
            assert "The disk is gone" in said(page) or section in ("facts", "traces")
    page = opened(search="beaver")
    ran(widget(page.text_input, "Name").set_value("x"))
    page = ran(button(page, "Make the list").click())
    assert "no store to keep lists of facts in. The disk is gone." in said(page)
    made.close()
