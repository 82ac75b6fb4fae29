"""kill -9 at random moments: the study goes on where it was and ends with the same numbers, to the last bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cache.studies import Studies
from core.study import data

DRIVER = Path(__file__).parent / "study_driver.py"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")
def test_killed_at_random_moments_and_resumed(tmp_path):
    stores = [tmp_path / "whole.duckdb", tmp_path / "killed.duckdb"]
    command = [sys.executable, str(DRIVER), *map(str, stores), "6", "3", "500"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    counts = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("killed")]
    assert len(counts) >= 3 and counts == sorted(counts), counts  # what was committed stayed
    assert 1 < len(set(counts)), counts
    whole, killed = map(Studies, stores)
    assert whole.part_names("killed") == killed.part_names("killed")
    assert whole.parts("killed") == killed.parts("killed")  # bytes of every batch
    assert data.load(whole, "killed").rows.equals(data.load(killed, "killed").rows)
    assert killed.get("killed").state == data.DONE
