"""The report of a page: one file, offline, with every chart and table in it, and deaf to what a person typed."""

from __future__ import annotations

import dataclasses
import html
import json
import re

import pandas as pd
import pytest
from fake_results import fake_result
from test_export import EVIL, EVIL_TOKENS, Scripts

from core import charts, export, present, script, views
from core.compare import charts as compare_charts
from core.compare import words
from core.compare.tables import Compared
from core.picture import enlarged
from core.present import Part
from core.requests import ModelSpec, TraceRequest

TAG = "</script><img src=x onerror=alert(1)><b>"


@pytest.fixture(scope="module")
def result():
    request = TraceRequest(fact=EVIL, model=ModelSpec(TAG, revision=TAG), draws=2)
    return fake_result(request=request, tokens=EVIL_TOKENS, subject=[2, 3], n_layers=3)


def read(content: bytes) -> Scripts:
    parser = Scripts()
    parser.feed(content.decode())
    return parser


def test_a_report_holds_every_part_and_nothing_typed_becomes_markup(result):
    cells = views.layer_cells(result)
    parts = [
        Part(TAG, charts.layer_token(result), cells, caption=TAG),
        Part("only a table", None, pd.DataFrame({TAG: [TAG, None]})),
        Part("only a picture", charts.layer_expert(result, 7)),
    ]
    made = script.of_trace(result.request, bundled=lambda n: None)
    content = present.page(
        TAG, parts, findings=[TAG], lines=export.caption(result), script=made, about=export.origin(result)
    )
    parser, text = read(content), content.decode()
    assert parser.tags.count("script") == 3 and "img" not in parser.tags and "b" not in parser.tags
    assert not re.search(r'(src|href)="?https?:', text)
    about = next(body for attrs, body in parser.scripts if attrs.get("id") == "expertscope")
    assert json.loads(about) == json.loads(json.dumps(export.origin(result)))
    calls = re.findall(r"^draw\((\d+), (.*)\);$", parser.scripts[-1][1], re.MULTILINE)
    assert [number for number, _ in calls] == ["0", "2"]
    for (_, spec), picture in zip(calls, (parts[0].picture, parts[2].picture), strict=True):
        drawn = json.loads(spec)["datasets"]
        assert {name: len(rows) for name, rows in drawn.items()} == {n: len(t) for n, t in picture.tables.items()}
    shown = html.unescape(text)
    assert made.command in shown and made.python in shown
    assert shown.count(TAG) >= 6
    assert parser.tags.count("table") == 2


def test_the_report_of_a_comparison_has_both_sides(result):
    other = fake_result(request=result.request.replace(noise=1.0), tokens=EVIL_TOKENS, subject=[2, 3], n_layers=3)
    compared = Compared(result, other)
    part = Part("b − a", compare_charts.difference_map(compared), compared.cells)
    lines = export.caption(compared)
    content = present.page(
        "both", [part], findings=words.sentences(compared), lines=lines, about=export.origin(compared)
    )
    parser = read(content)
    assert parser.tags.count("script") == 3 and "img" not in parser.tags
    about = json.loads(next(body for attrs, body in parser.scripts if attrs.get("id") == "expertscope"))
    assert [about[side]["request"]["noise"] for side in "ab"] == [3.0, 1.0]
    assert "noise 3 → noise 1" in content.decode()
    comments = export.csv(compared.cells, compared, "cells").decode().split("\n")[: export.CSV_COMMENTS]
    assert TraceRequest.from_dict(json.loads(comments[2].removeprefix("# b: "))["request"]) == other.request
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", export.file_stem(compared, "compare-a"))


def test_what_has_to_be_said_of_the_numbers_is_in_every_file(result):
    notes = [*result.provenance.notes, "The corruption is <partial>."]
    noted = dataclasses.replace(result, provenance=dataclasses.replace(result.provenance, notes=notes))
    assert export.notes(noted) == notes and export.notes(Compared(result, noted)) == notes
    picture = charts.layer_token(noted)
    said = "Note: The corruption is &lt;partial&gt;."
    assert said in export.page(picture, noted, "t").decode() and said in export.svg(picture, noted, "t").decode()
    assert said in present.page("t", [Part("p", picture)], lines=export.caption(noted)).decode()


def test_long_tables_are_cut_in_the_report_and_said_so():
    content = present.page("t", [Part("long", None, pd.DataFrame({"x": range(1000)}))])
    assert read(content).tags.count("tr") == 201
    assert "The first 200 of 1,000 rows" in content.decode()


def sizes(spec, found=None, name=""):
    found = [] if found is None else found
    if isinstance(spec, dict):
        for key, value in spec.items():
            if key not in ("datasets", "data"):
                sizes(value, found, key)
    elif isinstance(spec, list):
        for value in spec:
            sizes(value, found)
    elif name.lower().endswith("fontsize"):
        found.append(spec)
    return found


def test_large_type_enlarges_all_type_and_no_data(result):
    picture = charts.layer_token(result)
    before = picture.for_page()
    after = enlarged(before, 1.5)
    assert sizes(before) and sizes(after) == pytest.approx([1.5 * size for size in sizes(before)])
    assert after["height"] == round(1.5 * before["height"])
    assert after["datasets"] is before["datasets"]
    assert before == picture.for_page(), "the picture itself stays as it is"
