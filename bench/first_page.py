"""How soon the first page is there: fresh servers, each with a new Chromium page, beside an empty Streamlit app.

`python -m bench first` starts some servers with empty stores, one after the other, each in turn with a server of an app
that writes one word: what that takes is Streamlit's own. Prints medians and writes bench/results/first_page.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from . import chromium
from .served import ROOT, Server, serve
from .timing import machine

PATIENCE = 120_000  # milliseconds
EMPTY = 'import streamlit as st\nst.write("ExpertScope")\n'
HEAD = '[data-testid="stMain"] [data-testid="stHtml"]'
CHART = '[data-testid="stVegaLiteChart"] svg.marks'
STEPS = {
    "started": "the server answers, after the start of its process",
    "name": "the app's name is on the page, after it was opened",
    "head": "its fact: prompt, true object and foil",
    "charts": "its first chart: torch was imported, the demo model loaded and checked, a trace computed",
    "stored head": "another tab, the same view from the store: its fact",
    "stored charts": "… and all of its charts",
    "empty started": "an app of one word: its server answers",
    "empty name": "… its word is on the page",
}
"""What is measured, in seconds."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m bench first", description=__doc__.split("\n\n")[0])
    parser.add_argument("--servers", type=int, default=5, help="fresh servers (default 5)")
    parser.add_argument("--no-write", dest="write", action="store_false", help="print only")
    given = parser.parse_args(arguments)
    from playwright.sync_api import sync_playwright  # a requirement of the tests

    seconds: dict[str, list[float]] = {step: [] for step in STEPS}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(**chromium.options())
        for _ in range(given.servers):
            for name, value in (_dashboard(browser) | _empty(browser)).items():
                seconds[name].append(value)
        browser.close()
    text = markdown(seconds)
    print(text)
    if given.write:
        results = ROOT / "bench" / "results"
        (results / "first_page.md").write_text(text, "utf-8")
        found = {"seconds": seconds, "machine": machine(1)}
        (results / "first_page.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return 0


def markdown(seconds: dict[str, list[float]]) -> str:
    """The report: the median and the range of each step."""
    about = machine(1)
    lines = [
        "# The first page", "",
        f"{len(seconds['started'])} fresh servers with empty stores (`serve.py`), each opened in a new Chromium page, "
        f"in turns with an empty Streamlit app. {about['processor']}, {about['cores']} cores, which the browser "
        "shares. Seconds.", "",
        "| what | median | least | most |", "| --- | --- | --- | --- |",
    ]  # fmt: skip
    for step, meaning in STEPS.items():
        found = seconds[step]
        lines.append(f"| {meaning} | {statistics.median(found):.2f} | {min(found):.2f} | {max(found):.2f} |")
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def _fresh(script: Sequence[str] = ("serve.py",)) -> Iterator[tuple[Server, float]]:
    """A server with a store of its own, and the seconds until it answered."""
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        with serve(Path(folder), script=script) as server:
            yield server, time.perf_counter() - begun


def _dashboard(browser) -> dict[str, float]:  # noqa: ANN001 - Playwright's, imported late
    with _fresh() as (server, started):
        with _opened(browser, server.url) as (page, since):
            out = {"started": started, "name": since(page.get_by_text("ExpertScope").first)}
            out["head"] = since(page.locator(HEAD).first)
            out["charts"] = since(page.locator(CHART).first)
            page.get_by_test_id("stProgress").first.wait_for(state="detached", timeout=PATIENCE)
            charts, link = page.locator(CHART).count(), page.url
        with _opened(browser, link) as (page, since):
            out["stored head"] = since(page.locator(HEAD).first)
            out["stored charts"] = since(page.locator(CHART).nth(charts - 1))
    return out


def _empty(browser) -> dict[str, float]:  # noqa: ANN001 - Playwright's, imported late
    with tempfile.TemporaryDirectory() as folder:
        app = Path(folder) / "empty.py"
        app.write_text(EMPTY, "utf-8")
        with _fresh(("-m", "streamlit", "run", str(app))) as (server, started):
            with _opened(browser, server.url) as (page, since):
                return {"empty started": started, "empty name": since(page.get_by_text("ExpertScope").first)}


@contextlib.contextmanager
def _opened(browser, url: str):  # noqa: ANN001, ANN202 - Playwright's, imported late
    """A page without anything in its cache, and a function: seconds from opening it until something is seen."""
    context = browser.new_context(viewport={"width": 1400, "height": 1200})
    page = context.new_page()
    begun = time.perf_counter()
    page.goto(url, wait_until="commit")

    def since(what) -> float:  # noqa: ANN001
        what.wait_for(timeout=PATIENCE)
        return time.perf_counter() - begun

    try:
        yield page, since
    finally:
        context.close()
