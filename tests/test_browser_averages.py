"""The Averages page in a real Chromium: opened cold by link, a click on a cell, and the way to an expert's page."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect
from served import CHARTS, SLOW, serve, settled

from core import facts
from core.averages import charts, tables
from core.averages.questions import NOBODY, cells_request, experts_request
from core.derived import derive
from core.fact_sets import FactSet, choose
from core.models import load_model
from core.requests import TraceRequest
from core.roles import LAST, LAST_SUBJECT

pytestmark = pytest.mark.browser

N = 5


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serve(tmp_path_factory.mktemp("server")) as server:
        yield server


def test_a_cold_link_a_click_on_a_cell_and_the_way_to_an_expert(server, new_page):
    model = load_model("demo")
    chosen, asked = choose(FactSet(n=N), facts.bundled()), TraceRequest(NOBODY, seed=3)
    table = tables.role_table(derive(model, cells_request(asked, chosen, site="residual")), min_drop=None)
    best = tables.expert_table(derive(model, experts_request(asked, chosen, role=LAST)), min_drop=None).iloc[0]
    page = new_page()
    link = {"n": N, "seed": 3, "site": "residual", "min_drop": "all", "layer": best.layer, "expert": best.expert}
    page.goto(server.link("Averages", **link))  # the first request that this server gets
    settled(page, 3)
    expect(page.locator('[data-testid="stException"]')).to_have_count(0)
    expect(page.get_by_text(f"{N} of {N} facts; none is left out.")).to_be_visible()
    expect(page.get_by_text(charts.interval(best.rescue, best.rescue_low, best.rescue_high, True))).to_be_visible()

    row = table.index[(table.layer == 1) & (table.role == LAST_SUBJECT)][0]
    page.locator(CHARTS).nth(0).locator("svg .mark-rect.role-mark path").nth(int(row)).click()
    expect(page.get_by_text("Facts behind layer 1, last subject token")).to_be_visible(timeout=SLOW)
    settled(page, 3)
    cell = table.loc[row]
    shown = charts.interval(cell.rescue, cell.rescue_low, cell.rescue_high, True)
    expect(page.get_by_text(f"Mean rescue {shown} logits of a mean drop")).to_be_visible(timeout=SLOW)
    assert "layer=1" in page.url and "role=last_subject" in page.url and "expert=" not in page.url

    page.go_back()
    expect(page.get_by_text(f"Facts behind {best['name']} at the last token")).to_be_visible(timeout=SLOW)
    settled(page, 3)
    page.get_by_role("link", name=f"Open {best['name']} on its page").click()
    page.wait_for_url(re.compile(rf"/Expert\?.*expert={best['name']}"), timeout=SLOW)
    expect(page.get_by_text(f"Expert {best['name']}", exact=True)).to_be_visible(timeout=SLOW)
    assert f"n={N}" in page.url and "seed=3" in page.url
