"""The Library page in a real Chromium: opened cold by link, a fact ticked, a list made of it."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import expect
from served import SLOW, serve, settled

from cache.fact_lists import FactLists
from core.fact_lists import FactListDesk
from core.requests import Fact

pytestmark = pytest.mark.browser

FACTS = [Fact("The capital of {} is", name, "a", "b", case_id=i) for i, name in enumerate(("Aa", "Bb <b>", "Bb c"))]


def test_a_cold_link_shows_the_list_and_a_ticked_fact_becomes_another(tmp_path, new_page):
    desk = FactListDesk(FactLists(tmp_path / "home" / "store.duckdb"))
    desk.put("mine", FACTS)
    with serve(tmp_path) as server:
        page = new_page()
        page.goto(server.link("Library", facts="mine", search="bb"))  # the first request that this server gets
        settled(page, 0)
        expect(page.locator('[data-testid="stException"]')).to_have_count(0)
        expect(page.get_by_text("2 of 3 facts. Tick rows")).to_be_visible()
        table = page.locator('[data-testid="stDataFrame"] canvas').first.bounding_box()
        page.mouse.click(table["x"] + 22, table["y"] + 52)  # the tick box of the first row
        expect(page.get_by_role("link", name="Open on the Trace page")).to_be_visible(timeout=SLOW)
        page.get_by_role("button", name="To a list: 1 ticked").click()
        page.get_by_label("Name", exact=True).fill("another <i>")
        page.get_by_label("Name", exact=True).press("Enter")
        page.get_by_role("button", name="Make the list").click()
        expect(page.get_by_text("Kept 1 fact as “another <i>”.")).to_be_visible(timeout=SLOW)
        expect(page).to_have_url(re.compile("facts=another"))
        assert parse_qs(urlsplit(page.url).query) == {"facts": ["another <i>"]}
    assert desk.get("another <i>") == (FACTS[1],)
