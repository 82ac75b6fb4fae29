"""The Compare page in a real Chromium: opened cold by link, a click read on both sides, its report offline."""

from __future__ import annotations

import json
import re

import pytest
from playwright.sync_api import expect
from served import CHARTS, SLOW, serve, settled

from cache import Store
from cache.lending import patiently
from core import facts, views
from core.compare import words
from core.compare.link import Pair, to_query
from core.compare.tables import Compared
from core.formats import number
from core.links import Link, View
from core.requests import TraceRequest
from core.trace import from_store

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def server(folder):
    with serve(folder) as server:
        yield server


@pytest.fixture(scope="module")
def pair():
    """Two facts of one template (the first such pair of the bundled list), the second with another noise level."""
    known = facts.bundled()
    a = known[0]
    b = next(fact for fact in known[1:] if fact.prompt == a.prompt and fact.subject != a.subject)
    one, two = TraceRequest(fact=a), TraceRequest(fact=b, noise=2.0, seed=3)
    return Pair(Link(one, View("rescue"), True), Link(two, View("rescue"), True))


def stored(folder, pair) -> Compared:
    """Both answers as the server stored them."""
    path = folder / "home" / "store.duckdb"
    store = patiently(lambda: Store.open(path), 60, path=path)
    try:
        return Compared(*(from_store(store, side.request) for side in (pair.a, pair.b)))
    finally:
        store.close()


def test_a_cold_link_shows_both_sides_and_a_click_is_read_on_both(server, folder, new_page, pair, tmp_path):
    page = new_page(accept_downloads=True)
    page.goto(server.link("Compare", **to_query(pair)))  # the first request that this server gets
    settled(page, 8)
    expect(page.locator('[data-testid="stException"]')).to_have_count(0)
    compared = stored(folder, pair)
    shown = page.locator('[data-testid="stMain"]').inner_text()
    for sentence in words.sentences(compared):
        assert sentence in shown

    n_layers, columns = compared.a.provenance.n_layers, compared.alignment.columns
    column = next(i for i, c in enumerate(columns) if c.a is not None and c.b is not None and c.subject)
    layer, a, b = n_layers - 2, columns[column].a, columns[column].b
    cells = compared.cells.set_index(["layer", "column"])
    drawn = [(la, i) for la in range(n_layers) for i, c in enumerate(columns) if c.a is not None and c.b is not None]
    marks = page.locator(CHARTS).nth(2).locator("svg .mark-rect.role-mark").first.locator("path")
    assert marks.count() == len(drawn)
    marks.nth(drawn.index((layer, column))).click()
    page.wait_for_url(re.compile(rf"a\.pos={a}(&|$)"), timeout=SLOW)
    expect(page.get_by_text(f"b at “{views.token_labels(compared.b)[b]}”").first).to_be_visible(timeout=SLOW)
    settled(page, 8)
    assert f"a.layer={layer}" in page.url
    sentence = page.locator('[data-testid="stMarkdown"]', has_text=re.compile("^Layer patch at layer")).inner_text()
    row = cells.loc[(layer, column)]
    for value in (row.rescue_a, row.rescue_b):
        assert f"rescue {number(value, 3, True)}" in sentence
    assert f"b − a rescue {number(row.rescue_difference, 3, True)}" in sentence
    labels = [views.token_labels(r)[pos] for r, pos in ((compared.a, a), (compared.b, b))]
    assert all(label in sentence for label in labels)

    with page.expect_download(timeout=SLOW) as download:
        page.get_by_role("button", name="Report").click()
    file = tmp_path / "report.html"
    download.value.save_as(file)
    drawings = re.findall(r"^draw\(\d+, (.*)\);$", file.read_text("utf-8"), re.MULTILINE)
    marked = [json.loads(spec)["params"][0]["value"][0] for spec in drawings[:3]]
    assert marked == [{"layer": layer, "pos": a}, {"layer": layer, "pos": b}, {"layer": layer, "column": column}]
    alone, asked = new_page(offline=True), []
    alone.on("request", lambda request: asked.append(request.url))
    alone.goto(file.as_uri())
    expect(alone.locator(".figure svg")).to_have_count(8, timeout=SLOW)
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    told = alone.locator("body").inner_text()
    assert words.changed(compared) in told and "python -m core compare" in told
