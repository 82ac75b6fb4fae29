"""What every test gets: a home of its own, no network by accident, few threads; and a Chromium."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

# Before torch, transformers and huggingface_hub are imported: they read these once.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
# where several test processes run at once, each has one
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
_session = tempfile.mkdtemp(prefix="expertscope-tests-")
atexit.register(shutil.rmtree, _session, ignore_errors=True)
os.environ["EXPERTSCOPE_HOME"] = str(Path(_session) / "home")  # for what outlives one test
os.environ["HF_HOME"] = str(Path(_session) / "huggingface")
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest  # noqa: E402

LONGEST = ("demo_model", "study_ray", "crashes", "families", "browser", "memory_limit", "cli_study")
"""Files of tests that take longest: they begin first, so that no process is left alone with one at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; the order within a file stays."""

    def place(item: pytest.Item) -> int:
        name = item.path.stem.removeprefix("test_")
        return next((i for i, start in enumerate(LONGEST) if name.startswith(start)), len(LONGEST))

    items.sort(key=place)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ExpertScope's folder (store and settings) of this one test; it does not exist yet."""
    folder = tmp_path / "expertscope-home"
    monkeypatch.setenv("EXPERTSCOPE_HOME", str(folder))
    return folder


@pytest.fixture(scope="module")
def browser():
    """A Chromium for the tests of one module."""
    from playwright.sync_api import sync_playwright

    from bench.chromium import options

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(**options())
        yield browser
        browser.close()


@pytest.fixture
def new_page(browser):
    """Pages of separate browser contexts: no cookies or storage in common."""
    contexts = []

    def make(**options):
        contexts.append(browser.new_context(**{"viewport": {"width": 1400, "height": 1200}, **options}))
        return contexts[-1].new_page()

    yield make
    for context in contexts:
        context.close()
