"""The audit of dependencies says which of its three answers it is: clean, vulnerable, or nothing audited."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def audit():
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def said(*packages: dict) -> str:
    return json.dumps({"dependencies": list(packages), "fixes": []})


FINE = {"name": "numpy", "version": "2.4", "vulns": []}
UNKNOWN = {"name": "torch", "skip_reason": "Dependency not found on PyPI and could not be audited: torch (2.13)"}
BAD = {"name": "urllib3", "version": "2.8", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.9"], "aliases": []}]}


@pytest.mark.parametrize(
    ("output", "code", "text"),
    [
        (said(FINE), 0, "No known vulnerability in 1 packages."),
        (said(FINE, UNKNOWN), 0, "not audited, for the index does not have them: torch"),
        (said(UNKNOWN), 3, "knows no advisories"),  # a mirror answers every question with "not found"
        (said(FINE, BAD, UNKNOWN), 4, "urllib3 2.8: PYSEC-1 (mended in 2.9)"),
        ("", 3, "Failed to resolve"),
        ('{"message": "no"}', 3, "Failed to resolve"),
    ],
)
def test_what_pip_audit_says_becomes_one_of_three_answers(audit, monkeypatch, capsys, output, code, text):
    commands = []

    def run(command, **options):
        commands.append(command)
        return subprocess.CompletedProcess(command, 1, output, "Traceback\nConnectionError: Failed to resolve it\n")

    monkeypatch.setattr(audit.subprocess, "run", run)
    assert audit.main(["constraints.txt"]) == code
    assert text in capsys.readouterr().out
    assert commands[0][commands[0].index("--requirement") + 1] == "constraints.txt"


def test_a_database_that_does_not_answer_is_no_audit(audit, monkeypatch, capsys):
    def run(command, **options):
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(audit.subprocess, "run", run)
    assert audit.main(["constraints.txt"]) == 3
    assert "did not answer" in capsys.readouterr().out


def test_an_advisory_is_passed_over_only_with_a_reason(audit, tmp_path):
    path = tmp_path / "known.txt"
    path.write_text("# why\nPYSEC-1 we never call it\n\n")
    assert audit.known(path) == ["PYSEC-1"]
    path.write_text("PYSEC-1 we never call it\nPYSEC-2\n")
    with pytest.raises(SystemExit, match="PYSEC-2"):
        audit.known(path)
    audit.known(audit.KNOWN)


def test_everything_that_is_installed_is_audited():
    """What the requirements name is pinned in the file that is audited."""
    pinned = set(re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE))
    pinned = {name.lower().replace("_", "-") for name in pinned}
    for file in ("requirements.txt", "requirements-ray.txt", "requirements-test.txt", "demo/requirements.txt"):
        asked = re.findall(r"^([\w.-]+)[<>=]", (ROOT / file).read_text("utf-8"), re.MULTILINE)
        assert asked and {name.lower().replace("_", "-") for name in asked} <= pinned, file
