"""Every page with links that somebody made up: it opens, says what cannot be, and shows what it was given as text."""

from __future__ import annotations

import re

import pytest
from fake_results import fake_result
from test_bad_input import READERS
from test_door import PAGES, at
from test_trace_page import bench, engine, finished  # noqa: F401

from core import views

TAG = "<script>alert(1)</script><img src=x onerror=alert(2)>"
VALUES = {
    "html": TAG,
    "sql": "17'; DROP TABLE traces; --",
    "path": "../../../../../../etc/passwd",
    "beyond": "999999",
    "long": "x" * 10_000,
    "markdown": "[a](javascript:alert(3)) ![b](http://x/y.png) :material/home: $x$ **c** `d` {} \u202e",
}
MARKUP = re.compile(r"(?<!\\)(<script|<img|\]\(javascript:|!\[b\]\(|:material/home:)", re.IGNORECASE)
SHOWN = ("markdown", "caption", "warning", "error", "info", "success", "title", "header", "subheader")
NAMES = {
    "app.py": READERS["trace"][2],
    "pages/Health.py": ("model", "show"),
    "pages/Method.py": READERS["trace"][2],
    **{f"pages/{name.capitalize()}.py": READERS[name][2] for name in READERS if name != "trace"},
}


def said(page) -> list[str]:
    """What is shown as Markdown (HTML in it is shown as it is, not taken for markup)."""
    elements = [element for kind in SHOWN for element in getattr(page, kind)]
    assert not any(getattr(element.proto, "allow_html", False) for element in elements)
    return [str(element.value) for element in elements]


def test_every_page_is_here():
    assert set(NAMES) == set(PAGES)


@pytest.mark.parametrize("kind", ["html", "sql", "path", "beyond", "long"])
@pytest.mark.parametrize("where", PAGES)
def test_the_same_bad_value_in_every_parameter(bench, engine, where, kind):  # noqa: F811
    params = dict.fromkeys(NAMES[where], VALUES[kind])
    page = finished(at(where, params), bench)
    checked(page)
    if where == "app.py":
        assert any("The link" in text.replace("\\", "") for text in said(page))


@pytest.mark.parametrize("where", PAGES)
def test_a_model_that_is_there_and_nothing_beside_it(bench, engine, where):  # noqa: F811
    names = [name for name in NAMES[where] if name.split(".")[-1] not in ("model", "revision", "fact", "prompt")]
    page = finished(at(where, dict.fromkeys(names, VALUES["beyond"])), bench)
    checked(page)
    if where == "app.py":
        text = "".join(said(page)).replace("\\", "")
        assert "There is no position 999999" in text and "Layer 999999" in text and page.metric


@pytest.mark.parametrize("section", ["coalition", "minimal"])
def test_a_section_of_the_trace_with_experts_that_are_not_there(bench, engine, section):  # noqa: F811
    active = int(views.active_experts(fake_result(), 2, 5).expert.iloc[0])
    params = {"draws": "2", "layer": "2", "pos": "5", "section": section, "window": "1000", "scope": TAG}
    page = finished(at("app.py", params | {"coalition": f"999999,{active}"}), bench)
    checked(page)
    assert any("no expert 999999" in text for text in said(page))


def test_of_a_model_that_may_not_be_loaded_not_even_its_shape_is_told(bench, engine, tmp_path, monkeypatch):  # noqa: F811
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 7, "num_experts": 13}')

    def told() -> bool:
        page = finished(at("pages/Expert.py", {"model": str(tmp_path), "place": "L2E001"}), bench)
        checked(page)
        return any("7 × 13" in element.help for element in page.text_input)

    assert told()
    monkeypatch.setenv("EXPERTSCOPE_MODELS", "demo")
    assert not told()


@pytest.mark.parametrize("kind", ["html", "markdown"])
def test_a_typed_fact_of_tags_is_text_everywhere(bench, engine, kind):  # noqa: F811
    text = VALUES[kind].replace("{}", "")
    engine.shape |= {"tokens": [text, " capital", " of", " Fr", text, " is"]}
    params = {"prompt": f"{text} {{}} is", "subject": text, "true": text, "foil": f"{text}2", "relation": text}
    page = finished(at("app.py", params | {"layer": "2", "pos": "4", "expert": "1"}), bench)
    checked(page)
    assert {request.fact.subject for request in engine.asked} == {text}


def checked(page) -> None:
    for body in (element.proto.body for element in page.get("html")):
        assert not re.search(r"<script|<img|javascript:alert\(3\)\"", body, re.IGNORECASE), body
    for text in said(page):
        assert not MARKUP.search(text), text
