"""The Study page without a browser: starting, watching, results and links, on studies of a small random model."""

from __future__ import annotations

import io
import json
import re
import threading
import time
import zipfile
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import checkpoints
import pytest
import tokenizers_for_tests
from page_on_model import params_of
from streamlit.testing.v1 import AppTest
from word_facts import any_contrast, word_facts

from cache.studies import Studies
from core import expert_link, facts
from core.checks import ensure_checked
from core.formats import number
from core.links import from_query
from core.moe import MoeModel
from core.requests import ModelSpec
from core.study import archive, data, link, manage, summary
from core.study.run import run
from core.study.settings import preset
from core.workbench import Engine, StoreStatus, Workbench
from pages.parts import base, pictures

WAIT = 60.0
APP = Path(__file__).resolve().parent.parent / "app.py"
QWEN = "Qwen/Qwen3-30B-A3B-Base"


@pytest.fixture(scope="module")
def model() -> MoeModel:
    found = MoeModel(checkpoints.build("qwen2_moe"), tokenizers_for_tests.tokenizer("prefix_space"))
    ensure_checked(found)
    return found


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory) -> tuple[bytes, data.StudyData]:
    """A finished study of facts that are not bundled, as a file, and what is in it."""
    book = Studies(tmp_path_factory.mktemp("study") / "store.duckdb")
    few = {"noise_levels": (1, 3), "grid_seeds": (0, 1), "resamples": 100, "flips": 100}
    data.create(book, "words", any_contrast(model=ModelSpec("ours"), **few), word_facts())
    run(book, model, "words")
    return archive.pack(book, "words"), data.load(book, "words")


@pytest.fixture
def book(tmp_path) -> Studies:
    return Studies(tmp_path / "store.duckdb")


@pytest.fixture
def gate() -> threading.Event:
    """Models are loaded once it is set."""
    return threading.Event()


@pytest.fixture
def bench(book, model, gate, monkeypatch):
    def load(name, *, progress, store, **options):
        while not gate.wait(0.01):
            progress.update(1, 4, "loading the model")
            progress.check()
        return model

    made = Workbench(object(), engine=Engine(load, lambda *a, **o: [], lambda *a: None), studies=book)
    monkeypatch.setattr(made, "store_status", lambda: StoreStatus(limit=10**9))
    monkeypatch.setattr(made, "warm_up", lambda: None)
    monkeypatch.setattr(base, "workbench", lambda: made)
    monkeypatch.setattr(pictures, "_cache", type(pictures._cache)())
    yield made
    made._store = None
    made.close(WAIT)


def opened(**params: str) -> AppTest:
    page = AppTest.from_file(str(APP), default_timeout=60).switch_page("pages/Study.py")
    for name, value in params.items():
        page.query_params[name] = value
    return drawn(page.run())


def drawn(page: AppTest) -> AppTest:
    """The page after what was found has been read."""
    deadline = time.monotonic() + WAIT
    while "Reading what was found" in shown(page):
        assert time.monotonic() < deadline
        time.sleep(0.1)
        page.run()
    assert not page.exception, page.exception
    return page


def saying(page: AppTest, words: str) -> AppTest:
    """The page once it says that."""
    deadline = time.monotonic() + WAIT
    while words not in plain(page):
        assert time.monotonic() < deadline, plain(page)
        time.sleep(0.05)
        page.run()
    return page


def shown(page: AppTest) -> str:
    kinds = ("markdown", "caption", "warning", "error", "info", "subheader")
    parts = [element.value for kind in kinds for element in getattr(page, kind)]
    parts += [element.proto.body for element in page.get("html")]
    parts += [element.proto.text for element in page.get("progress")]
    return "\n".join(str(part) for part in parts)


def plain(page: AppTest) -> str:
    return re.sub(r"\\(.)", r"\1", shown(page))


def button(page: AppTest, label: str):
    return next(b for b in page.button if b.label == label)


def uploader(page: AppTest, label: str):
    return next(u for u in page.file_uploader if u.label == label)


def test_a_fresh_store_explains_a_study_and_begins_the_demo(bench, book, gate):
    page = opened()
    assert "A **study** asks" in shown(page)
    drawn(button(page, "Start the demo study").click().run())
    assert params_of(page) == {"study": "demo"}
    assert book.get("demo").settings == preset("demo").to_dict()
    assert len(data.load(book, "demo").records) == len(facts.bundled())
    saying(page, "loading the model")
    assert any(m.label == "facts kept" and m.value == "0 of 256" for m in page.metric)
    second = saying(opened(study="demo"), "loading the model")  # another viewer, or a reload
    drawn(button(second, "Cancel").click().run())
    deadline = time.monotonic() + WAIT
    while bench.studies.status("demo").active:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    saying(second, "was cancelled")
    assert "Report" not in [b.proto.label for b in second.get("download_button")], "nothing was measured"
    button(second, "Go on").click().run()
    assert bench.studies.status("demo").active


def test_what_is_wrong_in_the_form_is_said_beside_the_field_and_nothing_begins(bench, book):
    page = opened()
    start = next(b for b in page.button if b.key == "es_study_start")
    assert not start.disabled

    def field(kind, label):
        return next(f for f in getattr(page, kind) if f.label == label)

    for kind, label, bad, words in (
        ("number_input", "n", 3, "n is 3. Give a whole number from 4"),
        ("text_input", "Name", " ", "no name"),
        ("text_input", "noise levels", "1 two", "noise levels is '1 two'. Give numbers"),
        ("number_input", "recurrence", 1.5, "recurrence is 1.5. Give a number from 0 to 1"),
    ):
        good = field(kind, label).value
        field(kind, label).set_value(bad).run()
        assert any(words in re.sub(r"\\(.)", r"\1", e.value) for e in page.error), label
        assert next(b for b in page.button if b.key == "es_study_start").disabled
        field(kind, label).set_value(good).run()
        assert not page.error
    assert book.all() == []


def test_the_form_begins_the_study_that_it_shows(bench, book):
    page = opened()
    next(c for c in page.segmented_control if c.label == "Preset").set_value("rome").run()
    assert next(f for f in page.number_input if f.label == "draws").value == 10
    for label, value in (("n", 40), ("seed", 5), ("draws", 2)):
        next(f for f in page.number_input if f.label == label).set_value(value).run()
    next(t for t in page.toggle if t.label == "joint search").set_value(False).run()
    next(f for f in page.text_input if f.label == "grid seeds").set_value("3, 4").run()
    next(f for f in page.text_input if f.label == "Name").set_value("mine").run()
    assert "Changed from the preset: n, draws, seed, joint search, grid seeds." in plain(page)
    drawn(next(b for b in page.button if b.key == "es_study_start").click().run())
    assert params_of(page) == {"study": "mine"}
    expected = preset("rome", n=40, seed=5, draws=2, joint_search=False, grid_seeds=(3, 4))
    assert book.get("mine").settings == expected.to_dict()


def test_a_file_of_facts_can_be_given_and_what_is_wrong_with_it_is_said(bench, book):
    page = opened()
    next(c for c in page.segmented_control if c.label == "Facts").set_value("a file").run()
    assert next(b for b in page.button if b.key == "es_study_start").disabled
    uploader(page, "File of facts").upload("facts.jsonl", b'{"prompt": "x"}\n', "application/json").run()
    assert page.error and next(b for b in page.button if b.key == "es_study_start").disabled
    rows = [{"prompt": f.prompt, "subject": f.subject, "target_true": f.true, "target_new": f.foil or "Rome"}
            for f in word_facts()]  # fmt: skip
    uploader(page, "File of facts").upload("mine.json", json.dumps(rows).encode(), "application/json").run()
    assert not page.error and f"{len(rows)} facts" in plain(page)
    next(s for s in page.selectbox if s.label == "Case set").set_value("paper-qwen3").run()
    next(b for b in page.button if b.key == "es_study_start").click().run()
    assert any("of its case ids are not among" in re.sub(r"\\(.)", r"\1", e.value) for e in page.error)
    assert book.all() == []
    next(s for s in page.selectbox if s.label == "Case set").set_value("scan").run()
    next(b for b in page.button if b.key == "es_study_start").click().run()
    (record,) = book.all()
    assert record.settings["facts"] == "mine.json" and record.settings["preset"] == "paper"


def card(page: AppTest, name: str) -> str:
    """Value and interval below it, of the card of that name."""
    html = "".join(element.proto.body for element in page.get("html"))
    found = re.search(rf">{name}</div><div[^>]*>([^<]*)</div><div[^>]*>([^<]*)<", html)
    return f"{found[1]} {found[2]}"


def test_results_are_those_of_the_rows(bench, book, finished):
    content, study = finished
    archive.unpack(book, content)
    page = opened(study="words")
    expected = summary.summarise(study.rows, study.settings.to_dict(), study.funnel.counts)
    text = plain(page)
    assert f"Verdict: {expected['verdict']}" in text
    for line in [*expected["verdict_words"], *expected["cautions"]]:
        assert line in text
    for name in ("layer_rescue", "expert_rescue", "specificity", "gate_matched_specificity"):
        e = expected[name]
        numbers = [number(e[key], 3, True) for key in ("mean", "ci_low", "ci_high")]
        value = f"{numbers[0]} [{numbers[1]}, {numbers[2]}] · n {e['n']}" if e["n"] else "– missing"
        assert card(page, name.replace("_", " ").replace("gate m", "gate-m")) == value
    table = page.dataframe[0].value.set_index("quantity")
    command, program, *_ = [code.value for code in page.code]
    assert command.startswith("python -m core study ") and command.endswith("--name 'words again'")
    assert "create(studies, 'words again', settings" in program
    for name in ("layer_rescue", "minimal_coalition"):
        assert table.loc[name, "mean"] == pytest.approx(expected[name]["mean"], abs=1e-12)


def test_every_section_opens_by_link_with_its_figures_and_tables(bench, book, finished):
    archive.unpack(book, finished[0])
    charts = {
        "layers": 1, "experts": 1, "controls": 1, "coalitions": 2, "robustness": 3, "relations": 1, "joint_search": 1,
    }  # fmt: skip
    page = opened(study="words")
    for section in link.SECTIONS:
        next(c for c in page.segmented_control if c.label == "Section").set_value(section).run()
        assert not page.exception, section
        assert params_of(page).get("show", "overview") == section
        assert len(page.get("vega_lite_chart")) == charts.get(section, 0), section
        assert len(page.dataframe) >= 1
        cold = opened(study="words", **({} if section == "overview" else {"show": section}))
        assert plain(cold) == plain(page)
        labels = [b.proto.label for b in cold.get("download_button")]
        for kind in ("PNG", "SVG", "HTML, works offline"):
            assert labels.count(f"Chart as {kind}") == charts.get(section, 0), section
    assert "python -m core study --model ours --facts bundled" in page.code[-1].value


def test_what_is_within_rounding_is_said_beside_the_figures(bench, book, finished):
    archive.unpack(book, finished[0])
    page = opened(study="words", show="facts")
    assert "within rounding" not in plain(page)
    book.update("words", provenance={**book.get("words").provenance, "noise_floor": 0.3, "dtype": "bfloat16"})
    assert "single fact's rescue below 0.3 logits is within rounding (bfloat16)" in plain(drawn(page.run()))
    next(c for c in page.segmented_control if c.label == "Section").set_value("layers").run()
    assert "Means over 6 facts below about 0.12 logits" in plain(page)


def test_each_fact_leads_to_the_trace_page_with_the_studys_settings(bench, book, finished):
    content, study = finished
    archive.unpack(book, content)
    layer = int(study.rows.layer[study.rows.kind == "expert"].iloc[0])
    expert = int(study.rows.expert[(study.rows.kind == "expert") & (study.rows.layer == layer)].iloc[0])
    page = opened(study="words", show="facts", layer=str(layer), expert=str(expert), split="validation")
    table = page.dataframe[-1].value
    assert set(table.split) == {"validation"} and len(table) == 6
    assert page.get("dataframe") is not None
    by_case = {fact.case_id: fact for fact in study.kept}
    for line in table.itertuples():
        address = urlsplit(line.trace)
        assert address.path == "/"
        found = from_query({k: v[0] for k, v in parse_qs(address.query).items()}, bundled=lambda _: None, default=None)
        assert not found.problems and not found.bundled
        fact = by_case[line.case_id]
        assert found.request == link.trace_request(study.settings, fact)
        rows = study.rows[(study.rows.case_id == line.case_id) & (study.rows.layer == layer)]
        assert (found.view.layer, found.view.expert, found.view.pos) == (layer, expert, rows.pos.iloc[0])
        mine = rows[(rows.kind == "expert") & (rows.expert == expert) & (rows.stage == "main")]
        assert line.expert_rescue == pytest.approx(mine.rescue.mean() if len(mine) else 0.0, abs=1e-12)
    mean = number(table.expert_rescue.mean(), 3, True)
    assert f"validation **{mean}** (n 6)" in shown(page)
    relation = table.relation.iloc[0]
    next(s for s in page.selectbox if s.label == "Relation").set_value(relation).run()
    assert params_of(page)["relation"] == relation
    assert set(page.dataframe[-1].value.relation) == {relation}


def test_published_numbers_stand_beside_ours(bench, book, finished):
    content, study = finished
    archive.unpack(book, as_model(content, QWEN))
    page = opened(study="words")
    table = next(d.value for d in page.dataframe if "published" in d.value)
    line = table.set_index("quantity").loc["layer_rescue"]
    assert (line.published, line.published_low, line.published_high) == (0.901, 0.752, 1.053)
    ours = summary.summarise(study.rows, study.settings.to_dict(), study.funnel.counts)["layer_rescue"]["mean"]
    assert line.ours == pytest.approx(ours) and line.marker == ("✓ inside" if 0.752 <= ours <= 1.053 else "✗ outside")
    assert len(page.get("vega_lite_chart")) == 1


def as_model(content: bytes, name: str) -> bytes:
    """The same study, said to be of another model."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.namelist():
            data_ = old.read(entry)
            if entry == "study.json":
                head = json.loads(data_)
                head["settings"]["model"]["name"] = name
                data_ = json.dumps(head).encode()
            new.writestr(entry, data_)
    return out.getvalue()


def test_an_unfinished_study_shows_what_is_there_and_says_so(bench, book, finished):
    content, study = finished
    archive.unpack(book, content, name="part")
    for stage, state, words in (("validation", "cancelled", "not finished"), ("survey", "failed", "Nothing but the")):
        record, parts = book.get("part"), book.parts("part")
        first = data.MEASURING[: data.MEASURING.index(stage)]
        kept = [(s, n, payload) for (s, n), payload in parts.items() if s in ("facts", "scan", *first)]
        book.delete("part")
        values = {key: getattr(record, key) for key in ("model", "settings", "plan", "provenance", "progress")}
        book.add("part", **values, state=state, parts=kept)
        page = opened(study="part")
        assert words in plain(page) and button(page, "Go on")
        if state == "failed":
            assert "This study failed" in plain(page)


def test_renaming_and_deleting(bench, book, finished):
    archive.unpack(book, finished[0])
    page = opened(study="words", show="layers")
    next(t for t in page.text_input if t.label == "Another name").set_value("<b>größe</b> *x*").run()
    drawn(button(page, "Rename").click().run())
    assert params_of(page) == {"study": "<b>größe</b> *x*", "show": "layers"}
    assert [r.name for r in book.all()] == ["<b>größe</b> *x*"]
    assert "<b>größe" not in "".join(e.proto.body for e in page.get("html"))
    assert button(page, "Delete for good").disabled
    next(box for box in page.checkbox if box.label.startswith("Delete")).check().run()
    button(page, "Delete for good").click().run()
    assert book.all() == [] and params_of(page) == {}
    assert "A **study** asks" in shown(page)


def test_an_expert_leads_to_its_page_with_the_settings_of_the_study(bench, book, finished):
    content, study = finished
    archive.unpack(book, content)
    page = opened(study="words", show="experts", layer="1", expert="3")
    (on_its_page,) = [p.proto for p in page.get("page_link") if p.proto.label == "Open L1E003 on its page"]
    dossier = expert_link.from_query({k: v[0] for k, v in parse_qs(on_its_page.query_string).items()})
    assert (dossier.layer, dossier.expert, dossier.model) == (1, 3, study.settings.model)
    assert dossier.trace(study.kept[0]) == link.trace_request(study.settings, study.kept[0])


def test_a_file_is_imported_and_another_refused(bench, book, finished):
    page = opened()
    uploader(page, "File of a study (.zip)").upload("x.zip", b"no zip", "application/zip").run()
    next(b for b in page.button if b.key == "es_study_read").click().run()
    assert any("not the file of a study" in e.value for e in page.error)
    uploader(page, "File of a study (.zip)").upload("words.zip", finished[0], "application/zip").run()
    drawn(next(b for b in page.button if b.key == "es_study_read").click().run())
    assert params_of(page) == {"study": "words"} and "Verdict:" in plain(page)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"study": "nobody"}, "There is no study “nobody”"),
        ({"study": "words", "show": "x"}, "one of overview"),
        ({"study": "words", "show": "facts", "layer": "77", "expert": "5"}, "77"),
        ({"study": "words", "show": "facts", "relation": "none such"}, "No fact of this study is like that"),
        ({"study": "words", "show": "layers", "layer": "1", "fact": "999"}, "Facts behind the layer patch at layer 1"),
    ],
)
def test_whatever_a_link_says_there_is_a_page(bench, book, finished, params, words):
    archive.unpack(book, finished[0])
    assert words in plain(opened(**params))


def test_a_study_of_another_process_is_shown(bench, book, finished):
    from core.study import locks

    archive.unpack(book, finished[0])
    record = book.get("words")
    with locks.trying(locks.folder_beside(book.path), f"study {record.id}") as mine:
        assert mine
        progress = {
            "stage": "survey", "label": "layer sweep: 3 of 12 facts", "fraction": 0.4, "facts_per_minute": 90.0,
            "seconds": 100.0, "seconds_left": 200.0, "funnel": {"scanned": 14, "kept": 12, "objects": 2},
        }  # fmt: skip
        book.update("words", state=data.RUNNING, progress=progress)
        page = opened(study="words")
        assert "layer sweep: 3 of 12 facts · 40% of the whole" in plain(page)
        values = {metric.label: metric.value for metric in page.metric}
        assert values == {"facts kept": "12 of 12", "facts per minute": "90", "spent": "2 min", "left": "about 3 min"}
        button(page, "Cancel").click().run()
        assert book.get("words").stop
        assert any(b.label == "Stopping…" for b in page.button)
    page.run()  # its process has ended without a word
    assert "process ended in the middle" in plain(page) and button(page, "Go on")
    with locks.trying(locks.folder_beside(book.path), f"study {record.id}"):
        page.run()
        assert "40% of the whole" in plain(page)
    book.update("words", progress={})
    assert "ended before anything was measured" in plain(page.run())
    with manage.preparing(book, "words", "loading the model"):
        page.run()
        assert "loading the model · 0% of the whole" in plain(page) and button(page, "Cancel")


def test_missing_values_are_shown_as_missing(bench, book, finished):
    """The selected expert is not active in every fact: those facts are counted."""
    content, study = finished
    archive.unpack(book, content)
    page = opened(study="words", show="controls")
    table = next(d.value for d in page.dataframe if "quantity" in d.value)
    expected = summary.summarise(study.rows, study.settings.to_dict(), study.funnel.counts)["missing"]
    for name in ("expert_rescue_active_only", "gate_matched_specificity"):
        assert table.set_index("quantity").loc[name, "n_missing"] == expected[name] > 0
    assert all(d.proto.placeholder == "–" for d in page.dataframe)
