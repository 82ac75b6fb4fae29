"""The Expert page in a real Chromium: from a fact to a cell, to an expert, to its page, to another fact, and back."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect
from served import SLOW, serve, settled
from test_browser import DRAWS, NOISE, SEED, cell, known, numbers, params  # noqa: F401 - known is a fixture

from core.results import expert_name

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serve(tmp_path_factory.mktemp("server")) as server:
        yield server


def test_the_click_path_fact_cell_expert_its_page_and_back(server, new_page, known):  # noqa: F811 - the fixture
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
    assert params(page) | {"noise": f"{NOISE:g}", "draws": str(DRAWS), "seed": str(SEED)} == params(page)
    assert page.locator("mark").count() > 0  # top prompts, the token marked

    page.get_by_text("Rescue", exact=True).click()
    settled(page, 3)
    assert params(page)["show"] == "rescue"
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
