"""kill -9 at twenty random moments of traces, studies, migrations, eviction and export (`make crashes`: at 200)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")


def test_after_every_death_all_that_was_said_is_there_and_nothing_by_half(tmp_path):
    driver = Path(__file__).parent / "crashes.py"
    done = subprocess.run([sys.executable, str(driver), str(tmp_path), "20", "1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    deaths = [line.split() for line in done.stdout.splitlines()]
    assert [how for _, how, _ in deaths] == ["killed"] * 20
    assert sum(int(said) for _, _, said in deaths) > 60, deaths  # there was something to lose
