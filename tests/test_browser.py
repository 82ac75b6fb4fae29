"""Trace and Expert page in a real Chromium: a fresh server, the demo model; numbers from naive hooks (oracle.py)."""

from __future__ import annotations

import re
import statistics
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

import oracle
import pytest
import torch
from contrast import faint
from playwright.sync_api import Page, expect
from served import CHARTS, SLOW, serve, settled
from transformers import AutoModelForCausalLM, AutoTokenizer

from core import facts
from core.catalog import DEMO_FOLDER
from core.results import expert_name

pytestmark = pytest.mark.browser

DRAWS, NOISE, SEED = 2, 2.5, 7


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Started for this module alone, with a store of its own: the first test's page is its first request."""
    with serve(tmp_path_factory.mktemp("server")) as server:
        yield server


@dataclass
class Known:
    """What the page has to show, from one model run per patch."""

    fact: facts.Fact
    tokens: int
    experts: int
    pos: int
    runs: oracle.Oracle

    @property
    def contrasts(self) -> tuple[float, float]:
        corrupt = [difference(oracle.corrupt(self.runs.model, self.runs.case, draw)) for draw in range(DRAWS)]
        return difference(oracle.clean(self.runs.model, self.runs.case)), statistics.fmean(corrupt)

    def effect(self, patch) -> tuple[float, float]:
        """(mean rescue, restoration) of `patch(draw)`."""
        clean, corrupt = self.contrasts
        rescue = statistics.fmean(difference(patch(draw)) for draw in range(DRAWS)) - corrupt
        return rescue, rescue / (clean - corrupt)


def difference(logits: oracle.Logits) -> float:
    return logits[0] - logits[1]


@pytest.fixture(scope="module")
def known():
    torch.set_num_threads(2)
    model = AutoModelForCausalLM.from_pretrained(DEMO_FOLDER, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(DEMO_FOLDER)
    fact = next(f for f in facts.bundled() if (f.subject, f.true) == ("France", "Paris"))
    read = tokenizer(fact.text, return_offsets_mapping=True)
    start = fact.text.index(fact.subject)
    end = start + len(fact.subject)
    subject = tuple(i for i, (a, b) in enumerate(read["offset_mapping"]) if a < end and b > start)
    ids = torch.tensor(read["input_ids"])
    true, foil = (tokenizer(f"{fact.text} {word}")["input_ids"] for word in (fact.true, fact.foil))
    assert len(true) == len(foil) == len(ids) + 1
    noise = oracle.make_noise(model, draws=DRAWS, n_subject=len(subject), seed=SEED, case_id=fact.case_id, level=NOISE)
    runs = oracle.Oracle(model, oracle.Case(ids, subject, true[-1], foil[-1], noise))
    return Known(fact, len(ids), model.config.num_experts, subject[-1], runs)


def cell(page: Page, chart: int, index: int):
    """A heat map's cell: the marks of the first group, in the data's order."""
    return page.locator(CHARTS).nth(chart).locator("svg .mark-rect.role-mark").first.locator("path").nth(index)


def numbers(page: Page, start: str) -> tuple[float, float]:
    """(rescue, restoration) of the sentence that begins so."""
    sentence = page.locator('[data-testid="stMarkdown"]', has_text=re.compile("^" + re.escape(start)))
    expect(sentence).to_be_visible(timeout=SLOW)
    text = sentence.inner_text().replace("−", "-")
    found = re.search(r"rescue ([+-][0-9.]+) logits, restoration (-?[0-9.]+)[:,.]", text)
    return float(found[1]), float(found[2])


def in_address(url: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}


def params(page: Page) -> dict[str, str]:
    return in_address(page.url)


def told(page: Page, **asked: object) -> None:
    """Wait until the address says so: it follows what is drawn by a moment."""
    wanted = {name: str(value) for name, value in asked.items()}
    page.wait_for_url(lambda url: wanted.items() <= in_address(url).items(), timeout=SLOW)


def test_a_cold_deep_link_a_cell_and_an_expert_show_the_right_numbers(server, new_page, known):
    layer, pos = 1, known.tokens - 1
    link = server.link(fact=known.fact.case_id, draws=DRAWS, noise=NOISE, seed=SEED, layer=layer, pos=pos)
    page = new_page()
    page.goto(link)  # the first request that this server gets
    settled(page, 4)
    expect(page.locator('[data-testid="stException"]')).to_have_count(0)
    clean, corrupt = known.contrasts
    shown = page.locator('[data-testid="stMetricValue"]').all_inner_texts()
    expected = [f"{value:+.3f}".replace("-", "−") for value in (clean, corrupt, clean - corrupt)]
    assert shown[:3] == expected
    layer_patch = known.effect(lambda draw: known.runs.layer_patch(draw, layer, pos))
    assert numbers(page, "The whole layer patch here") == pytest.approx(layer_patch, abs=2e-3)

    layer, pos = 0, known.pos  # the experts at this position are not there yet: a click fetches them
    cell(page, 0, layer * known.tokens + pos).click()
    expect(page.get_by_text(f"Experts of layer {layer} at")).to_be_visible(timeout=SLOW)
    settled(page, 4)
    told(page, layer=layer, pos=pos)
    layer_patch = known.effect(lambda draw: known.runs.layer_patch(draw, layer, pos))
    assert numbers(page, "The whole layer patch here") == pytest.approx(layer_patch, abs=2e-3)

    expert = known.runs.clean_run[layer].active(pos)[0]
    cell(page, 1, layer * known.experts + expert).click()
    page.wait_for_url(re.compile(rf"expert={expert}(&|$)"), timeout=SLOW)
    settled(page, 4)
    expected = known.effect(lambda draw: known.runs.expert_patch(draw, layer, pos, expert))
    assert numbers(page, expert_name(layer, expert)) == pytest.approx(expected, abs=2e-3)
    weight = known.runs.clean_run[layer].router_weight(pos, expert)
    expect(page.get_by_text(f"router weight {weight:.3f} clean")).to_be_visible()

    cell(page, 1, layer * known.experts + expert).hover()
    tip = page.locator("#vg-tooltip-element.visible")
    expect(tip).to_contain_text(expert_name(layer, expert))
    rescue = float(re.search(r"rescue\s*([+−][0-9.]+) logits", tip.inner_text())[1].replace("−", "-"))
    assert rescue == pytest.approx(expected[0], abs=2e-3)


def test_the_link_shows_the_same_in_another_browser(server, new_page, known):
    layer, pos = 0, known.pos
    expert = known.runs.clean_run[layer].active(pos)[-1]
    first = new_page()
    first.goto(server.link(fact=known.fact.case_id, draws=DRAWS, noise=NOISE, seed=SEED, show="rescue"))
    settled(first, 4)
    cell(first, 0, layer * known.tokens + pos).click()
    expect(first.get_by_text(f"Experts of layer {layer} at")).to_be_visible(timeout=SLOW)
    settled(first, 4)
    cell(first, 1, layer * known.experts + expert).click()
    first.wait_for_url(re.compile(rf"expert={expert}(&|$)"), timeout=SLOW)
    settled(first, 4)
    first.get_by_role("button", name="Link").click()
    link = first.locator('[data-testid="stPopoverBody"] code').inner_text()
    assert link.replace("\n", "") == first.url

    second = new_page(color_scheme="dark")
    second.goto(link)
    settled(second, 4)
    assert second.url == first.url
    assert params(second)["show"] == "rescue"
    name = expert_name(layer, expert)
    for start in ("The whole layer patch here", name):
        assert numbers(second, start) == numbers(first, start)
    expect(second.get_by_text("from the store").first).to_be_visible()
    for page in (first, second):  # the marked cell, the marked expert
        outlines = page.locator(CHARTS).locator("svg path[stroke-width='2.5']")
        assert outlines.count() == first.locator(CHARTS).locator("svg path[stroke-width='2.5']").count() >= 2


def test_the_back_button_goes_back(server, new_page, known):
    page = new_page()
    page.goto(server.link(fact=known.fact.case_id, draws=DRAWS, noise=NOISE, seed=SEED, layer=1, pos=known.tokens - 1))
    settled(page, 4)
    before = page.url
    cell(page, 0, 2 * known.tokens + known.tokens - 1).click()
    expect(page.get_by_text("Experts of layer 2 at")).to_be_visible(timeout=SLOW)
    settled(page, 4)
    assert page.url != before
    page.go_back()
    expect(page.get_by_text("Experts of layer 1 at")).to_be_visible(timeout=SLOW)
    assert page.url == before


def test_what_is_searched_for_is_in_the_address_while_one_types(server, new_page, known):
    page = new_page()
    page.goto(server.link(fact=known.fact.case_id, draws=DRAWS, noise=NOISE, seed=SEED))
    settled(page, 4)
    search = page.get_by_placeholder("Search: subject, object, case_id")
    search.press_sequentially(known.fact.subject, delay=60)
    told(page, choose_text=known.fact.subject)
    settled(page, 4)
    expect(search).to_have_value(known.fact.subject)
    page.get_by_role("radio", name="Typed in").or_(page.get_by_role("button", name="Typed in")).first.click()
    told(page, choose="typed")
    expect(page.get_by_role("textbox", name="True object")).to_have_value(known.fact.true, timeout=SLOW)
    page.go_back()
    expect(search).to_have_value(known.fact.subject, timeout=SLOW)
    other = new_page()
    other.goto(page.url)
    settled(other, 4)
    expect(other.get_by_placeholder("Search: subject, object, case_id")).to_have_value(known.fact.subject)


def test_a_downloaded_chart_draws_itself_without_a_network(server, new_page, known, tmp_path):
    page = new_page(accept_downloads=True)
    page.goto(server.link(fact=known.fact.case_id, draws=DRAWS, noise=NOISE, seed=SEED))
    settled(page, 4)
    page.locator(".st-key-es_menu_layer-token button").first.click()
    with page.expect_download(timeout=SLOW) as download:
        page.get_by_role("button", name="Chart as HTML, works offline").click()
    file = tmp_path / "chart.html"
    download.value.save_as(file)
    alone = new_page(offline=True)
    asked = []
    alone.on("request", lambda request: asked.append(request.url))
    alone.goto(file.as_uri())
    cells = alone.locator("svg .mark-rect.role-mark").first.locator("path")
    expect(cells).to_have_count(known.runs.model.config.num_hidden_layers * known.tokens, timeout=SLOW)
    assert [url for url in asked if not url.startswith("file:")] == []
    assert known.fact.text in alone.locator("body").inner_text()


def test_a_coalition_is_built_by_clicks(server, new_page, known):
    layer, pos = 0, known.pos
    page = new_page()
    page.goto(
        server.link(fact=known.fact.case_id, draws=DRAWS, noise=NOISE, seed=SEED, layer=layer, pos=pos, show="rescue")
    )
    settled(page, 4)
    page.get_by_role("radio", name="Coalition").or_(page.get_by_role("button", name="Coalition")).first.click()
    expect(page.get_by_text("Tick the experts that are put back together.")).to_be_visible(timeout=SLOW)
    settled(page, 4)
    experts = known.runs.clean_run[layer].active(pos)
    for number, expert in enumerate(experts, start=1):
        cell(page, 1, layer * known.experts + expert).click()
        expect(page.get_by_text(re.compile(f"^{number} experts? together"))).to_be_visible(timeout=SLOW)
        settled(page, 5)
    told(page, coalition=",".join(map(str, sorted(experts))))

    def joint(draw):
        update = sum(known.runs.expert_update(draw, layer, pos, expert) for expert in experts)
        y = known.runs.corrupt_runs[draw][layer].y[pos] + update
        return oracle.patched(known.runs.model, known.runs.case, draw, layer=layer, pos=pos, y=y)

    assert numbers(page, f"{len(experts)} experts together") == pytest.approx(known.effect(joint), abs=2e-3)
    cell(page, 1, layer * known.experts + experts[0]).click()  # and off again
    expect(page.get_by_text(re.compile("^1 expert together"))).to_be_visible(timeout=SLOW)
    single = known.effect(lambda draw: known.runs.expert_patch(draw, layer, pos, experts[1]))
    assert numbers(page, "1 expert together") == pytest.approx(single, abs=2e-3)


def test_a_key_goes_to_the_next_fact_but_not_while_typing(server, new_page, known):
    page = new_page()
    page.goto(server.link(fact=known.fact.case_id, draws=DRAWS, noise=NOISE, seed=SEED))
    settled(page, 4)
    same = [f.case_id for f in facts.bundled() if f.relation == known.fact.relation]
    following = same[(same.index(known.fact.case_id) + 1) % len(same)]
    search = page.get_by_placeholder("Search: subject, object, case_id")
    search.press_sequentially("n")
    expect(search).to_have_value("n")
    settled(page, 4)
    told(page, fact=known.fact.case_id)
    search.fill("")
    search.blur()
    page.keyboard.press("n")
    page.wait_for_url(re.compile(f"fact={following}(&|$)"), timeout=SLOW)
    settled(page, 4)
    page.keyboard.press("p")
    page.wait_for_url(re.compile(f"fact={known.fact.case_id}(&|$)"), timeout=SLOW)


def test_the_click_path_fact_cell_expert_its_page_and_back(server, new_page, known):
    layer, pos = known.runs.model.config.num_hidden_layers - 1, known.tokens - 1
    page = new_page()
    page.goto(server.link(fact=known.fact.case_id, draws=DRAWS, noise=NOISE, seed=SEED))
    settled(page, 4)
    cell(page, 0, layer * known.tokens + pos).click()
    expect(page.get_by_text(f"Experts of layer {layer} at")).to_be_visible(timeout=SLOW)
    settled(page, 4)
    expert = known.runs.clean_run[layer].active(pos)[0]
    name = expert_name(layer, expert)
    cell(page, 1, layer * known.experts + expert).click()
    page.wait_for_url(re.compile(rf"expert={expert}(&|$)"), timeout=SLOW)
    settled(page, 4)
    before, rescue = page.url, numbers(page, name)

    page.get_by_role("link", name=f"Open {name} on its page").click()
    page.wait_for_url(re.compile(rf"/Expert\?.*expert={name}"), timeout=SLOW)
    expect(page.get_by_text(f"Expert {name}", exact=True)).to_be_visible(timeout=SLOW)
    settled(page, 2)
    expect(page.locator('[data-testid="stException"]')).to_have_count(0)
    told(page, noise=f"{NOISE:g}", draws=DRAWS, seed=SEED)
    assert page.locator("mark").count() > 0  # top prompts, the token marked

    page.get_by_text("Rescue", exact=True).click()
    settled(page, 3)
    told(page, show="rescue")
    page.go_back()
    settled(page, 2)
    with page.context.expect_page() as opened:
        page.get_by_role("link", name="open", exact=True).first.click()
    other = opened.value
    settled(other, 4)
    assert (params(other)["layer"], params(other)["expert"]) == (str(layer), str(expert))
    other.close()
    page.go_back()
    settled(page, 4)
    assert page.url == before
    assert numbers(page, name) == rescue


@pytest.mark.parametrize(
    ("where", "asked", "heading", "there", "least", "theme"),
    [
        ("Method", {}, "Method", ".katex-display", 8, "light"),
        ("Health", {}, "Health", '[data-testid="stMetric"]', 8, "dark"),
        ("Expert", {"expert": "L6E015", "n": "8"}, "Expert L6E015", f"{CHARTS} svg.marks", 2, "light"),
        ("Study", {}, "Study", '[data-testid^="stBaseButton-primary"]', 1, "dark"),
        ("Library", {"show": "models"}, "Library", '[data-testid^="stBaseButton-primary"]', 1, "light"),
    ],
)
def test_the_other_pages_open_by_a_link_alone_and_all_text_has_contrast(
    server, new_page, where, asked, heading, there, least, theme
):
    page = new_page(color_scheme=theme)
    page.goto(server.link(where, **asked))
    expect(page.get_by_text(heading, exact=True).last).to_be_visible(timeout=SLOW)
    expect(page.locator(there).nth(least - 1)).to_be_visible(timeout=SLOW)
    expect(page.locator('[data-testid="stException"]')).to_have_count(0)
    expect(page.locator('[data-testid="stApp"]')).to_have_attribute(
        "data-test-script-state", "notRunning", timeout=SLOW
    )
    told(page, **asked)
    assert faint(page) == []
