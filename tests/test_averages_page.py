"""The Averages page without a browser, on a small random model: links, numbers, facts behind, what is asked when."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from page_on_model import control, drawn, open_page, params_of, shown, small_model, workbench_for
from streamlit.testing.v1 import AppTest
from word_facts import word_facts

from core import expert_link, links
from core.averages import charts, tables
from core.averages.link import AveragesView, from_query, to_query, trace_link
from core.averages.questions import cells_request, experts_request
from core.derived import derive
from core.expert_link import ExpertView
from core.fact_sets import FactSet
from core.formats import number
from core.links import SHARED
from core.moe import MoeModel
from core.requests import ModelSpec
from core.roles import FIRST_SUBJECT, LAST, MIDDLE_SUBJECT
from core.routing_link import PromptSet, RoutingView
from pages.parts import averages_maps, expert_pieces, routing_behind, routing_shown

WAIT = 60.0
APP = Path(__file__).resolve().parent.parent / "app.py"
FACTS = tuple(word_facts())
ALL = AveragesView(min_drop=None)


@pytest.fixture(scope="module")
def model() -> MoeModel:
    return small_model()


@pytest.fixture(scope="module")
def answers(model):
    """What the page should show for `ALL`."""
    return derive(model, cells_request(ALL.asked, FACTS)), derive(model, experts_request(ALL.asked, FACTS))


@pytest.fixture
def bench(model, tmp_path):
    with workbench_for(model, FACTS, tmp_path / "store.duckdb") as made:
        yield made


def opened(view: AveragesView | None = None, **params: str) -> AppTest:
    return open_page("Averages", (to_query(view) if view else {}) | params)


def now(page: AppTest) -> AveragesView:
    return from_query(params_of(page))


def test_a_first_visit_averages_the_default_facts_and_says_who_is_left_out(bench, answers):
    page = opened()
    cells, _ = answers
    counted = tables.count(cells)
    assert counted.chosen == len(FACTS) and counted.cannot == 2
    said = shown(page)
    assert tables.facts_in_words(counted) in said and "Corrupt runs: noise level 3, 1 draw per fact, seed 0." in said
    command = next(code.value for code in page.code if code.language == "bash")
    assert "python -m core averages --model demo --n 64 --min-drop 0.5 --site moe --window 1" in command
    left_out = page.dataframe[0].value
    assert list(left_out.case_id) == list(tables.left_out(cells).case_id)
    assert params_of(page) == to_query(AveragesView())
    everyone = control(page, "number_input", "Least drop (logits)").set_value(None).run()
    assert now(drawn(everyone)).min_drop is None
    assert tables.facts_in_words(tables.count(cells, min_drop=None), min_drop=None) in shown(page)
    assert len(bench.jobs.all()) and not page.warning


def test_a_link_opens_the_cell_and_the_expert_with_the_facts_behind_them(bench, answers):
    experts = tables.expert_table(answers[1], min_drop=None)
    row = experts[experts.expert >= 0].iloc[0]
    view = dataclasses.replace(ALL, layer=int(row.layer), expert=int(row.expert), measure="rescue")
    page = opened(view)
    assert now(page) == view
    said, frames = shown(page), [frame.value for frame in page.dataframe]
    table = tables.role_table(answers[0], min_drop=None)
    cell = table[(table.layer == row.layer) & (table.role == LAST)].iloc[0]
    assert charts.interval(cell.rescue, cell.rescue_low, cell.rescue_high, True) in said
    behind = tables.behind_cell(answers[0], row.layer, LAST, min_drop=None)
    listed = next(frame for frame in frames if "trace" in frame)
    assert list(listed.subject) == list(behind.subject)
    assert list(listed.rescue) == pytest.approx(list(behind.rescue), abs=1e-5)
    query = {name: values[0] for name, values in parse_qs(urlsplit(listed.trace[0]).query).items()}
    there = links.from_query(query, bundled={f.case_id: f for f in FACTS}.get, default=FACTS[-1])
    assert there.request.fact == FACTS[behind.fact[0]]
    assert (there.view.layer, there.view.pos, there.view.measure) == (row.layer, behind.pos[0], "rescue")

    assert f"Facts behind {row['name']} at the last token" in said
    assert charts.interval(row.rescue, row.rescue_low, row.rescue_high, True) in said
    assert number(row.rescue_active, 3, True) in said and f"over the {row.n_active} in which" in said
    assert list(next(frame for frame in frames if "name" in frame).name) == list(experts.name)
    assert frames[-1].rescue.mean() == pytest.approx(row.rescue, abs=1e-5)
    link = next(p.proto for p in page.get("page_link") if row["name"] in p.proto.label)
    expert = expert_link.from_query({n: v[0] for n, v in parse_qs(link.query_string).items()})
    assert (expert.layer, expert.expert) == (row.layer, row.expert) and expert.facts == view.facts


def test_the_shared_expert_and_a_set_without_facts(bench, answers):
    layer = int(answers[0].tables["cells"].layer.max())
    shared = opened(dataclasses.replace(ALL, layer=layer, expert=SHARED))
    assert f"L{layer}shared at the last token" in shown(shared)
    nobody = opened(dataclasses.replace(ALL, facts=FactSet(relations=("nothing",))))
    assert "There is no fact in this set" in shown(nobody)
    large = opened(dataclasses.replace(ALL, min_drop=99.0))
    assert "None of these facts is left to average. Choose others in the sidebar, or a smaller" in shown(large)


def test_one_fact_has_no_intervals_and_a_role_without_tokens_is_said(bench, answers):
    page = opened(dataclasses.replace(ALL, facts=FactSet(n=1, seed=6), layer=1, role=MIDDLE_SUBJECT))
    said = shown(page)
    assert "1 of 1 fact; none is left out." in said
    assert "No fact has a middle subject token, so nothing is averaged here." in said
    assert "No interval, of one subject alone: " in said and "last token." in said
    table = tables.role_table(answers[0], min_drop=None)
    assert averages_maps.intervals(table.assign(rescue_low=0.0, restoration_low=0.0)) == averages_maps.INTERVALS
    small = table.assign(rescue_low=0.0, restoration=0.1, restoration_low=[float("nan"), *[0.0] * (len(table) - 1)])
    assert "some resample has a mean drop below 0.05 logits" in averages_maps.intervals(small)


def test_every_setting_is_in_the_address_and_asks_anew(bench):
    page = opened(dataclasses.replace(ALL, facts=FactSet(n=3)))
    control(page, "selectbox", "Site").set_value("residual")
    control(page, "number_input", "Window").set_value(2)
    control(page, "number_input", "Draws").set_value(2)
    control(page, "selectbox", "Role").set_value(FIRST_SUBJECT)
    page = drawn(page.run())
    view = now(page)
    assert (view.site, view.window, view.asked.draws, view.role) == ("residual", 2, 2, FIRST_SUBJECT)
    assert "residual stream after the layer is put back" in shown(page) and "windows of 2 layers" in shown(page)
    asked = [job.key for job in bench.jobs.all() if hasattr(job.key, "kind")]
    last = [request.get() for request in asked if request.kind == "averages"][-1]
    assert (last["site"], last["window"], last["draws"]) == ("residual", 2, 2)


def test_wrong_links_are_mended_and_another_model_needs_a_click(bench):
    page = opened(ALL, layer="99", site="mlp")
    assert any("site must be one of" in w.value.replace("\\", "") for w in page.warning)
    assert any("Layer 99 has nothing to show" in w.value.replace("\\", "") for w in page.warning)
    done = len(bench.jobs.all())
    other = opened(dataclasses.replace(ALL, asked=ALL.asked.replace(model=ModelSpec("org/other"))))
    assert "org/other has not been asked this yet" in shown(other)
    assert len(bench.jobs.all()) == done


def test_the_way_from_a_list_to_a_trace_names_the_list(bench):
    mine, fact = FactSet(source="mine"), dataclasses.replace(FACTS[0], case_id=999)
    averages = trace_link(AveragesView(facts=mine), fact, bundled=False, layer=1, pos=2)
    expert = expert_pieces.Shown(ExpertView(layer=1, expert=0, facts=mine), (fact,), None, None, None, None)
    ways = [averages, expert.trace(fact, 2)]
    for form, listed in (("direct", "mine"), ("context", "")):
        routing = RoutingView(layer=1, expert=0, a=PromptSet(facts=mine, form=form), b=PromptSet(facts=FactSet()))
        ways.append(routing_behind.link(routing_shown.Shown(routing, None), fact, 2))
        assert ways[-1].listed == listed
    assert {way.to_query().get("list") for way in ways} == {"mine", None}
    assert routing_behind.link(routing_shown.Shown(routing, None, which="b"), fact, 2).listed == ""
    assert (averages.listed, ways[1].listed) == ("mine", "mine") and not ways[1].bundled
