"""Messages on pages name no option of the command line; what is an option there has a place here."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from core.errors import ExpertScopeError, InputError
from core.facts import read
from core.prompts import check_objects
from core.requests import Fact
from pages.parts import text

CORE = Path(__file__).resolve().parent.parent / "core"
OPTION = re.compile(r"--[a-z]")
TERMINAL = {
    "__main__.py", "cells/minimal_set.py", "patch_file.py", "report.py", "script.py", "study/explain.py",
    "study/ray_cluster.py", "tables.py",
}  # fmt: skip
"""Modules whose words are for a terminal, besides the command line's own; a study on Ray is begun there too."""


def messages(path: Path) -> list[str]:
    """Every text in a module that is no docstring, f-strings with N for what is put in."""
    tree = ast.parse(path.read_text("utf-8"))
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    lines = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    out = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            out.append("".join(str(p.value) if isinstance(p, ast.Constant) else "N" for p in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside | lines:
            out.append(node.value)
    return out


def test_no_message_of_core_names_an_option_on_a_page():
    seen = 0
    for path in sorted(CORE.rglob("*.py")):
        name = str(path.relative_to(CORE))
        if name.startswith("cli") or name in TERMINAL:
            continue
        for message in filter(OPTION.search, messages(path)):
            seen += 1
            assert not OPTION.search(text.on_page(message)), (name, message)
    assert seen > 5


@pytest.mark.parametrize("fact", [Fact("The capital of {} is", "France", "Paris"),
                                  Fact("The capital of {} is", "France", "Paris", " ")])  # fmt: skip
def test_a_missing_foil_is_said_with_the_switch_of_the_page(fact):
    with pytest.raises(InputError, match="--foil auto") as raised:
        check_objects(fact)
    said = text.error(raised.value)
    assert "the switch below a typed fact" in said and r"\-\-" not in said and "--" not in said


def test_a_file_without_foils_is_told_of_the_column():
    records = [{"prompt": "The capital of {} is", "subject": "France", "true": "Paris"}]
    with pytest.raises(ExpertScopeError) as raised:
        read(json.dumps(records).encode(), "facts.json")
    said = text.error(raised.value)
    assert said.endswith(text.plain("the model's most probable other token is the foil then."))
    made = read(json.dumps([{**records[0], "foil_auto": True}]).encode(), "facts.json")
    assert made[0].foil_auto and made[0].foil is None


def test_what_stands_in_brackets_goes_with_them():
    assert text.on_page("Give the file (--facts), or choose --cases scan.") == (
        "Give the file, or choose the case set scan."
    )
    said = text.on_page("Choose with `occurrence` (--occurrence 1 to 3).")
    assert said == "Choose with `occurrence` (occurrence 1 to 3)."
