"""Where a Chromium for Playwright is."""

from __future__ import annotations

import os
import shutil


def executable() -> str | None:
    """Path of a system Chromium (or what EXPERTSCOPE_CHROMIUM names); None where Playwright's own is to be used."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = [os.environ.get("EXPERTSCOPE_CHROMIUM"), *map(shutil.which, names)]
    return next((path for path in found if path), None)


def options() -> dict[str, object]:
    """For Playwright's `launch`."""
    return {"executable_path": executable(), "args": ["--no-sandbox", "--disable-dev-shm-usage"]}
