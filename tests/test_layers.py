"""Who may import whom, read from the source: the layers of the design hold without running anything."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_LINES = 450


def imported(source: str, package: str = "") -> set[str]:
    """Top-level names of the packages that a source text imports, anywhere in it, also by name at run time."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0] if node.level == 0 and node.module else package)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                names.add(node.args[0].value.split(".")[0])
    return names


def modules(*where: str) -> list[Path]:
    """The Python files of those folders, and those files, that exist."""
    files = [ROOT / name for name in where if name.endswith(".py") and (ROOT / name).exists()]
    return sorted(files + [path for name in where for path in (ROOT / name).rglob("*.py")])


def test_imported_sees_every_way_to_import():
    source = """
import os.path
from streamlit.runtime import x
from . import sibling
def f():
    import torch as t
    importlib.import_module("duckdb.typing")
    __import__("numpy")
"""
    assert imported(source, "core") == {"os", "streamlit", "core", "torch", "duckdb", "numpy"}


@pytest.mark.parametrize("path", modules("core", "cache", "demo"), ids=lambda path: str(path.relative_to(ROOT)))
def test_core_and_cache_work_without_a_browser(path: Path):
    assert not imported(path.read_text("utf-8")) & {"streamlit", "pages", "app"}


@pytest.mark.parametrize("path", modules("pages", "app.py", "serve.py"), ids=lambda path: str(path.relative_to(ROOT)))
def test_pages_know_neither_models_nor_sql(path: Path):
    assert not imported(path.read_text("utf-8")) & {"torch", "transformers", "duckdb"}


@pytest.mark.parametrize("path", modules("cache"), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_store_knows_no_torch_and_of_core_only_the_errors(path: Path):
    source = path.read_text("utf-8")
    assert not imported(source) & {"torch", "transformers", "safetensors"}
    from_core = {
        node.module
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "core"
    }
    assert from_core <= {"core.errors"}


@pytest.mark.parametrize(
    "path", modules("core", "cache", "pages", "app.py"), ids=lambda path: str(path.relative_to(ROOT))
)
def test_modules_are_small_and_open_with_their_purpose(path: Path):
    source = path.read_text("utf-8")
    assert len(source.splitlines()) < MAX_LINES
    assert not source.strip() or ast.get_docstring(ast.parse(source))
