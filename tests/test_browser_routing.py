"""The Routing page in a real Chromium: opened cold by link, cell → expert → its page → back, a fact behind it."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect
from served import CHARTS, SLOW, serve, settled

from core.results import expert_name

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serve(tmp_path_factory.mktemp("server")) as server:
        yield server


def test_a_cold_link_leads_from_a_cell_to_the_expert_and_back(server, new_page):
    page = new_page()
    page.goto(server.link("Routing", relations="country_capital", n=16, where="all"))  # its first request
    settled(page, 4)
    expect(page.get_by_text("all positions of 16 prompts, clean runs")).to_be_visible()
    # cells stand in the order of the table: layer 0's experts first
    page.locator(CHARTS).first.locator("svg .mark-rect.role-mark path").nth(16 * 2 + 5).click()
    name = expert_name(2, 5)
    page.wait_for_url(re.compile("layer=2&expert=5"), timeout=SLOW)
    expect(page.get_by_text(f"{name}: the tokens behind it")).to_be_visible(timeout=SLOW)
    settled(page, 4)
    address = page.url
    page.get_by_role("link", name=f"Open {name} on its page").click()
    page.wait_for_url(re.compile("/Expert"), timeout=SLOW)
    expect(page.get_by_role("heading", name=f"Expert {name}")).to_be_visible(timeout=SLOW)
    page.go_back()
    expect(page.get_by_text(f"{name}: the tokens behind it")).to_be_visible(timeout=SLOW)
    settled(page, 4)
    assert page.url == address
    expect(page.locator('[data-testid="stException"]')).to_have_count(0)
