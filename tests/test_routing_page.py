"""The Routing page without a browser: numbers, links, sets, files, on a small random model."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from page_on_model import control, drawn, open_page, params_of, shown, small_model, workbench_for
from streamlit.testing.v1 import AppTest
from word_facts import word_facts

from core import expert_link, links
from core.derived import derive
from core.fact_sets import FactSet
from core.moe import MoeModel
from core.requests import Fact, ModelSpec
from core.results import expert_name
from core.routing_kinds import comparison_request, routed_of, routing_request
from core.routing_link import PROMPTS, PromptSet, RoutingView, from_query, to_query
from core.routing_sets import of_expert

WAIT = 60.0
APP = Path(__file__).resolve().parent.parent / "app.py"
FACTS = [*word_facts()[:12], Fact("The capital of it is", "Nowhere", "Paris", "Rome", case_id=77, relation="odd")]
LINES = ("The capital of France is Paris.", "Rome", "The city of New York is in America.")


@pytest.fixture(scope="module")
def model() -> MoeModel:
    return small_model()


@pytest.fixture(scope="module")
def result(model):
    """What the page shows first."""
    return derive(model, routing_request(ModelSpec(), facts=FACTS))


@pytest.fixture
def bench(model, tmp_path):
    with workbench_for(model, FACTS, tmp_path / "store.duckdb") as made:
        yield made


def opened(view: RoutingView | None = None, **params: str) -> AppTest:
    return open_page("Routing", (to_query(view) if view else {}) | params)


def view_of(page: AppTest) -> RoutingView:
    return from_query(params_of(page))


def frame(page: AppTest, column: str):
    return next(found.value for found in page.dataframe if column in found.value)


def test_the_first_visit_counts_the_bundled_facts(bench, result):
    page = opened()
    text = shown(page)
    assert "share of 12 tokens (last token of 12 prompts, clean runs)" in text
    assert any("1 of 13 prompts left out" in expander.label for expander in page.expander)
    assert "is not in the prompt" in frame(page, "why").why[0]
    assert len(page.get("vega_lite_chart")) == 4
    load = frame(page, "unused_names")
    expected = result.tables["load"]
    expected = expected[expected.position_class == "last token"]
    assert load.load_entropy.tolist() == pytest.approx(expected.load_entropy.tolist())
    assert load.unused_names.tolist() == expected.unused_names.tolist()
    assert view_of(page) == RoutingView()
    form = control(page, "segmented_control", "Form")
    form.set_value("context").run()
    assert view_of(drawn(page)).a == PromptSet(form="context")
    assert "1 of 13 facts do not have their subject in the prompt and are left out." in shown(page)
    control(page, "selectbox", "Layer").set_value(3).run()
    assert view_of(page).layer == 3 and "Experts of layer 3" in shown(page)
    control(page, "selectbox", "Expert").set_value(2).run()
    assert "L3E002: the tokens behind it" in shown(page)
    control(page, "segmented_control", "Runs").set_value("change").run()
    assert view_of(page).run == "change"
    assert "Expert frequency: last token, corrupt − clean" in shown(page)
    assert "frequency in the corrupt runs − frequency in the clean runs (last token of 12 prompts)" in shown(page)


def test_one_prompt_is_said_as_one(bench):
    sets = {"a": PromptSet(facts=FactSet(n=1, seed=1)), "b": PromptSet(source=PROMPTS, prompts=("Rome",))}
    one = opened(RoutingView(section="compare", **sets))
    text = shown(one)
    assert text.count("1 token of 1 prompt.") == 2 and "1 prompt, chosen in the sidebar" in text
    control(one, "segmented_control", "Section").set_value("frequency").run()
    text = shown(drawn(one))
    assert "Each cell: the one token (last token of 1 prompt, clean runs)" in text
    assert "With 1 token and 2 experts each" in text


def test_an_expert_shows_the_tokens_behind_it_and_where_they_lead(bench, result):
    routed = routed_of(result)
    layer = routed.layers[1]
    at_last = (routed.tokens.role == "last token").to_numpy() & (routed.tokens.run == "clean").to_numpy()
    expert = int(routed.index[at_last, 1, 0][0])
    found = of_expert(routed, layer, expert)
    found = found[(found.run == "clean") & (found.position_class == "last token")]
    found = found.sort_values("router_weight", ascending=False)
    page = opened(RoutingView(layer=layer, expert=expert))
    name = expert_name(layer, expert)
    assert f"{name}: the tokens behind it" in shown(page)
    table = frame(page, "router_weight")
    assert table.router_weight.tolist() == pytest.approx(found.router_weight.tolist(), abs=1e-5)
    share = 100 * len(found) / 12
    assert f"last token **{share:.1f} % clean" in shown(page)
    first = found.iloc[0]
    assert f"⟦{first.token}⟧" in table.context[0] and table.context[0].startswith("The")
    query = {key: values[0] for key, values in parse_qs(urlsplit(table.open[0]).query).items()}
    link = links.from_query(query, bundled={f.case_id: f for f in FACTS}.get, default=FACTS[0])
    assert link.request.fact.case_id == first.case_id and link.bundled
    assert (link.view.layer, link.view.pos, link.view.expert) == (layer, first.pos, expert)
    (way,) = [found.proto for found in page.get("page_link") if found.proto.label == f"Open {name} on its page"]
    there = expert_link.from_query({k: v[0] for k, v in parse_qs(way.query_string).items()})
    assert there.name == name and there.facts == FactSet(n=256)
    next(b for b in page.button if b.label == "Close").click().run()
    assert view_of(drawn(page)).expert is None and "tokens behind" not in shown(page)


@pytest.mark.parametrize(("section", "names"), [("frequency", ["routing-frequency", "routing-bars"]),
                                                ("relations", ["routing-information", "routing-relations"]),
                                                ("co-activation", ["routing-pairs"])])  # fmt: skip
def test_a_file_shows_the_mark_that_is_on_the_screen(bench, result, section, names):
    """A click is a mark of the widget's own: the picture it was drawn from stays as it was."""
    layer = result.values["layers"][1]
    page = opened(RoutingView(section=section, layer=layer, position_class="last token"))
    slots = page.session_state["es_slots"]
    keys = {name: slots[name].key for name in names}
    for name in names:
        assert slots[name].preset == (layer, None)
        slots[name].picked = (layer, 2)
    control(page, "selectbox", "Expert").set_value(2).run()
    parts = {name: noted.part for name, noted in drawn(page).session_state["es_noted"].items()}
    for name in names:
        spec = parts[name].picture.spec
        if section == "co-activation":  # the chosen expert's column is framed
            framed = [list(table.column) for table in parts[name].picture.tables.values() if list(table) == ["column"]]
            assert framed == [["2"]] and slots[name].preset == (layer, 2)
        else:
            assert slots[name].key == keys[name], "drawn anew, the click would be lost"
            assert [p["value"] for p in spec["params"]] == [[{"layer": layer, "expert": 2}]], name


def test_relations_and_pairs(bench, result):
    page = opened(RoutingView(section="relations", run="corrupt"))
    table = result.tables["information"]
    table = table[(table.run == "corrupt") & (table.position_class == "last token")]
    top = frame(page, "above_baseline")
    assert top.above_baseline[0] == pytest.approx(table.above_baseline.max(), abs=1e-6)
    assert "(3 of them, 12 facts)" in shown(page) and "the first draw counts" in shown(page)
    page = opened(RoutingView(section="co-activation", layer=3))
    pairs = frame(page, "together")
    assert pairs.together.sum() == 12, "top-2: every token is one pair"
    assert "random choices of 2 among 8 have lift 0.57" in shown(page)


def test_plain_prompts_are_pasted_and_a_long_list_comes_back_by_its_key(bench, model):
    page = opened()
    control(page, "segmented_control", "Prompts").set_value("prompts").run()
    assert "Paste prompts in the sidebar" in shown(drawn(page))
    control(page, "text_area", "Prompts").set_value("one {}").run()
    assert "line 1 has a {} in it" in shown(page)
    control(page, "text_area", "Prompts").set_value("\n".join(LINES)).run()
    assert "line 1 has" not in shown(drawn(page))
    assert view_of(page).a == PromptSet(source=PROMPTS, prompts=LINES)
    assert "share of 3 tokens (last token of 3 prompts, clean runs)" in shown(page)
    assert not [c for c in page.segmented_control if c.label == "Runs"], "clean runs only"
    assert control(page, "segmented_control", "Positions").options == ["Last token", "Others", "All"]
    upload = control(page, "file_uploader", "Or a text file")
    upload.upload("x.txt", b"\xff\xfe\xff", "text/plain").run()
    assert "is not a text in UTF-8" in shown(page)
    long = tuple(f"The city of New York is in America {i}" for i in range(70))
    control(page, "file_uploader", "Or a text file").upload("x.txt", "\n".join(long).encode(), "text/plain").run()
    assert "70 plain prompts" in shown(drawn(page))
    params = {name: v[0] if isinstance(v, list) else v for name, v in page.query_params.items()}
    assert "prompts" not in params
    again = opened(**params)
    assert "last token of 70 prompts" in shown(again)
    elsewhere = opened(set="prompts", prompts_key="1" * 32)
    assert "a list of prompts that this store does not have" in shown(elsewhere)


def test_two_sets_are_compared(bench, model):
    page = opened(RoutingView(section="compare", a=PromptSet(facts=FactSet(relations=("relation 0",), n=256))))
    next(b for b in page.button if b.label == "the same facts, stated before").click().run()
    view = view_of(page)
    assert view.b == PromptSet(facts=view.a.facts, form="context")
    four = [fact for fact in FACTS if fact.relation == "relation 0"]
    other = PromptSet(facts=FactSet(relations=("relation 1",), n=256))
    view = RoutingView(section="compare", a=view.a, b=other, layer=3)
    page = opened(view)
    text = shown(page)
    assert "A: 4 tokens" not in text and text.count("4 tokens of 4 prompts") == 2
    rest = [fact for fact in FACTS if fact.relation == "relation 1"]
    asked = comparison_request(*(routing_request(ModelSpec(), facts=some) for some in (four, rest)))
    expected = derive(model, asked).tables["experts"]
    mine = expected[
        (expected.run == "clean") & (expected.position_class == "last token") & (expected.layer == 3)
    ].sort_values("part", ascending=False, kind="stable")
    parts = frame(page, "part_baseline")
    assert parts.name.tolist() == mine.name.tolist() and parts.part.tolist() == pytest.approx(mine.part.tolist())
    page = opened(RoutingView(section="compare", a=view.a, b=PromptSet(source=PROMPTS, prompts=LINES), layer=3,
                              expert=int(mine.expert.iloc[0]), position_class="others"))  # fmt: skip
    text = shown(page)
    assert "the tokens of set A behind it" in text and "the tokens of set B behind it" in text
    assert "tokens of 2 prompts." in text, "“Rome” has no other tokens"
    next(b for b in page.button if b.label == "Remove set B").click().run()
    assert view_of(drawn(page)).b is None


def test_what_a_link_says_that_is_not_there_is_named(bench):
    page = opened(layer="2", where="first subject", show="nothing")
    text = shown(page)
    assert "Layer 2 has no experts to show" in text and "The link says show=nothing" in text
    page = opened(set="prompts", prompts="Rome", where="last subject", run="corrupt")
    assert "last token of 1 prompt, clean runs" in shown(page)
