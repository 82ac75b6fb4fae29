"""A server process of its own for browser tests (`bench.served`), and waiting for a page in Chromium."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Page, expect

from bench import served
from bench.served import Server

SLOW = 120_000  # milliseconds; a busy machine loads and checks the model first
CHARTS = '[data-testid="stVegaLiteChart"]'


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[Server]:
    """A fresh server with the store in `folder`/home. Fails where it wrote a traceback."""
    with served.serve(folder) as server:
        yield server
    assert "Traceback" not in server.said, server.said[-6000:]


def settled(page: Page, charts: int) -> None:
    """The script has run to its end, nothing computes, and so many charts are drawn."""
    expect(page.locator(CHARTS).locator("svg.marks")).to_have_count(charts, timeout=SLOW)
    expect(page.locator('[data-testid="stProgress"]')).to_have_count(0, timeout=SLOW)
    expect(page.locator('[data-testid="stApp"]')).to_have_attribute(
        "data-test-script-state", "notRunning", timeout=SLOW
    )
