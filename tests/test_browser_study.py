"""The Study page in a real Chromium: a study of the command line, opened cold by link on a fresh server."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from playwright.sync_api import Page, expect
from served import SLOW, serve, settled

from bench.served import ROOT
from cache.studies import Studies
from core.formats import number
from core.links import Link
from core.study import data, link, summary

pytestmark = pytest.mark.browser

NAME = "from the command line"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def study(folder):
    """A small study that another process ran, read back from the store."""
    command = [sys.executable, "-m", "core", "study", "--name", NAME, "--n", "12", "--resamples", "300"]
    command += ["--flips", "300", "--noise-levels", "1", "--grid-seeds", "0"]
    environment = os.environ | {"EXPERTSCOPE_HOME": str(folder / "home")}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=SLOW / 1000)
    return data.load(Studies(folder / "home" / "store.duckdb"), NAME)


@pytest.fixture(scope="module")
def server(study, folder):
    with serve(folder) as server:
        yield server


def text_of(page: Page) -> str:
    return page.locator('[data-testid="stMain"]').inner_text()


def test_a_cold_link_shows_verdict_and_numbers_and_leads_to_the_fact(server, new_page, study):
    expected = summary.summarise(study.rows, study.settings.to_dict(), study.funnel.counts)
    page = new_page()
    page.goto(server.link("Study", study=NAME, show="layers"))  # the first request that this server gets
    settled(page, 1)
    expect(page.locator('[data-testid="stException"]')).to_have_count(0)
    expect(page.get_by_text(f"Verdict: {expected['verdict']}")).to_be_visible()
    shown = text_of(page)
    for words in expected["verdict_words"]:
        assert words in shown
    layer = expected["layer_rescue"]
    assert number(layer["mean"], 3, True) in shown
    ends = ", ".join(number(layer[end], 3, True) for end in ("ci_low", "ci_high"))
    assert f"[{ends}] · n {layer['n']}" in shown

    clicked = 0 if expected["layer"] != 0 else 1  # a click on a layer lists the facts behind its means
    layers = sorted(study.rows.layer.unique())
    dots = page.locator("svg .mark-symbol.role-mark path")  # discovery's, then validation's, which lie on top
    dots.nth(len(layers) + layers.index(clicked)).click()
    expect(page.get_by_text(f"Facts behind the layer patch at layer {clicked}")).to_be_visible(timeout=SLOW)
    main = study.rows[(study.rows.kind == "layer") & (study.rows.stage == "main") & (study.rows.layer == clicked)]
    for half in ("discovery", "validation"):
        mean = number(main.rescue[main.split == half].mean(), 3, True)
        expect(page.get_by_text(f"{half} {mean} (n 6)")).to_be_visible(timeout=SLOW)
    assert f"layer={clicked}" in page.url

    second = new_page(color_scheme="dark", viewport={"width": 800, "height": 1200})
    second.goto(page.url)
    settled(second, 1)
    expect(second.get_by_text(f"Facts behind the layer patch at layer {clicked}")).to_be_visible(timeout=SLOW)

    fact, line = study.kept[3], main[main.scan_index == 3].iloc[0]
    asked = link.trace_request(study.settings, fact)
    view = link.trace_view(pos=int(line.pos), layer=clicked, expert=None)
    page.goto(server.link(**Link(asked, view, True).to_query()))
    settled(page, 4)
    sentence = page.locator('[data-testid="stMarkdown"]', has_text=re.compile("^The whole layer patch here"))
    rescue = float(re.search(r"rescue ([+-][0-9.]+) logits", sentence.inner_text())[1])
    assert rescue == pytest.approx(line.rescue, abs=2e-3)
    page.get_by_role("link", name="Study").click()
    expect(page.get_by_text("New study")).to_be_visible(timeout=SLOW)
    page.go_back()
    settled(page, 4)


def test_a_study_is_begun_watched_from_elsewhere_and_cancelled(server, new_page):
    page = new_page()
    page.goto(server.link("Study"))
    page.get_by_role("textbox", name="Name", exact=True).fill("watched")
    page.keyboard.press("Tab")
    page.get_by_role("spinbutton", name="n", exact=True).fill("3000")
    page.keyboard.press("Tab")
    start = page.get_by_role("button", name="Start the study")
    expect(start).to_be_enabled(timeout=SLOW)
    start.click()
    page.wait_for_url(re.compile("study=watched"), timeout=SLOW)
    address = page.url
    page.context.close()  # closing the tab stops nothing

    second = new_page()
    second.goto(address)
    kept = second.locator('[data-testid="stMetricValue"]').first
    expect(kept).to_have_text(re.compile(r"^[1-9][0-9,]* of 3,000$"), timeout=SLOW)
    first_seen = kept.inner_text()
    expect(kept).not_to_have_text(first_seen, timeout=SLOW)  # it goes on without a click
    third = new_page()
    third.goto(address)
    third.get_by_role("button", name="Cancel").click()
    for viewer in (second, third):  # both are told
        expect(viewer.get_by_text("This study was cancelled.")).to_be_visible(timeout=SLOW)
        expect(viewer.get_by_role("button", name="Go on")).to_be_visible(timeout=SLOW)
