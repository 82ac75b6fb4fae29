"""Downloads: readable by other programs, with request and provenance along, and deaf to what a person typed."""

from __future__ import annotations

import csv
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pandas as pd
import pyarrow.parquet as pq
import pytest
from fake_results import fake_result
from PIL import Image

from core import charts, export, views
from core.requests import Fact, TraceRequest
from core.tables import long_table

EVIL = Fact(
    prompt="</script><script>alert(1)</script> {}\nsecond line # not a comment",
    subject='"><img src=x onerror=alert(2)>&amp;',
    true="a,b",
    foil="-->",
    case_id=3,
)
EVIL_TOKENS = ["</script>", "<!--", '"><img src=x onerror=alert(1)>', "a,b\nc", "'", "\\", "\u2028", "#x"]


@pytest.fixture(scope="module")
def result():
    return fake_result(request=TraceRequest(fact=EVIL, draws=2), tokens=EVIL_TOKENS, subject=[2, 3], n_layers=3)


@pytest.fixture(scope="module")
def picture(result):
    return charts.layer_token(result)


def test_csv_says_where_it_comes_from_and_reads_back_exactly(result):
    table = views.layer_cells(result)
    data = export.csv(table, result, "layer x token\nmap")
    lines = data.decode().split("\n")
    assert lines[0] == "# ExpertScope: layer x token map"
    assert TraceRequest.from_dict(json.loads(lines[1].removeprefix("# request: "))) == result.request
    assert json.loads(lines[2].removeprefix("# provenance: "))["tokens"] == EVIL_TOKENS
    assert not lines[export.CSV_COMMENTS].startswith("#")
    back = pd.read_csv(io.BytesIO(data), skiprows=export.CSV_COMMENTS, keep_default_na=True)
    assert list(back.columns) == list(table.columns)
    assert list(back.token) == list(table.token)
    pd.testing.assert_frame_equal(back[views.MEASURES], table[views.MEASURES], check_dtype=False)


@pytest.mark.parametrize("text", ["a\x00b\x1b\x08", "\u202eאב👩\u200d👧\ufffe\uffff", "x" * 3000])
def test_characters_that_xml_cannot_hold_end_no_download(text):
    request = TraceRequest(fact=Fact("{} is\x00", text, "t\x1b", "f"))
    result = fake_result(request=request, tokens=[text, " b\x00", "c", "d", "e", "f"], n_layers=2)
    picture = charts.layer_token(result)
    shown = "".join(ElementTree.fromstring(export.svg(picture, result, f"of {text}")).itertext())
    assert "of " + re.sub("[\x00-\x1f\ufffe\uffff]", "", text)[:20] in shown
    Image.open(io.BytesIO(export.png(picture, result, f"of {text}"))).verify()
    assert b"</html>" in export.page(picture, result, f"of {text}")


FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1+1", '=LINK("http://x/?"&A1,"a")', "a\r=1+1", "a\n=1+1", '",=1+1,"']


def test_no_text_leaves_its_cell_of_a_csv_and_none_is_changed():
    facts = [Fact(f"{{}} {f}", f.strip(), f.strip(), "b", case_id=n, relation=f) for n, f in enumerate(FORMULAS)]
    results = [fake_result(request=TraceRequest(fact=fact), tokens=[*FORMULAS[:5], fact.true]) for fact in facts]
    for result in results:
        table = long_table([result])
        data = export.csv(table, result, "=1+1\n=2")
        text = io.StringIO(data.decode(), newline="")
        assert [next(text)[0] for _ in range(export.CSV_COMMENTS)] == ["#"] * export.CSV_COMMENTS
        rows = list(csv.DictReader(text, strict=True))
        assert len(rows) == len(table)
        for column in ("prompt", "subject", "true", "relation", "token"):
            assert [row[column] for row in rows] == list(table[column].fillna("").astype(str)), column


def test_parquet_carries_request_and_provenance(result):
    table = views.expert_grid(result, 7)
    read = pq.read_table(io.BytesIO(export.parquet(table, result, "experts")))
    about = json.loads(read.schema.metadata[b"expertscope"])
    assert about["what"] == "experts"
    assert TraceRequest.from_dict(about["request"]) == result.request
    assert about["provenance"]["fingerprint"] == result.provenance.fingerprint
    pd.testing.assert_frame_equal(read.to_pandas(), table, check_dtype=False)


def test_the_long_frame_survives_parquet(result):
    read = pq.read_table(io.BytesIO(export.parquet(result.frame, result, "all"))).to_pandas()
    assert len(read) == len(result.frame)
    assert list(read.contrast) == pytest.approx(list(result.frame.contrast))


def test_png_is_an_image_with_its_origin(result, picture):
    image = Image.open(io.BytesIO(export.png(picture, result, "Layer map")))
    image.load()
    assert image.format == "PNG"
    assert image.width >= 2 * export.WIDTH
    assert json.loads(image.text["ExpertScope"]) == json.loads(json.dumps(export.origin(result)))


def test_svg_is_well_formed_and_shows_the_fact(result, picture):
    root = ElementTree.fromstring(export.svg(picture, result, "Layer map"))
    names = [element.tag.rsplit("}")[-1] for element in root.iter()]
    assert "script" not in names
    assert "img" not in names
    metadata = next(e for e in root.iter() if e.tag.endswith("metadata"))
    assert json.loads(metadata.text)["request"]["fact"]["subject"] == EVIL.subject
    shown = "".join(root.itertext())
    assert "Layer map" in shown
    assert EVIL.subject in shown


class Scripts(HTMLParser):
    """Collects elements and the contents of the scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.scripts: list[tuple[dict, str]] = []
        self._in: dict | None = None

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "script":
            self._in = dict(attrs)

    def handle_data(self, data):
        if self._in is not None:
            self.scripts.append((self._in, data))
            self._in = None


def test_html_is_self_contained_and_nothing_typed_becomes_markup(result, picture):
    text = export.page(picture, result, "Layer <map>").decode()
    parser = Scripts()
    parser.feed(text)
    assert parser.tags.count("script") == 3
    assert "img" not in parser.tags
    assert not re.search(r'(src|href)="https?:', text)
    origin = next(body for attrs, body in parser.scripts if attrs.get("id") == "expertscope")
    assert json.loads(origin)["request"]["fact"]["prompt"] == EVIL.prompt
    call = parser.scripts[-1][1]
    spec, _ = json.JSONDecoder().raw_decode(call.removeprefix('vegaEmbed("#chart", '))
    values = next(iter(spec["datasets"].values()))
    cells = views.layer_cells(result)
    assert [row["layer"] for row in values] == list(cells.layer)
    assert [row["value"] for row in values] == pytest.approx(list(cells.restoration))
    assert "Layer &lt;map&gt;" in text


@pytest.mark.parametrize("subject", ["a/../../b", "東京", "", "x" * 500, "a b\tc"])
def test_file_names_are_plain(subject):
    result = fake_result(request=TraceRequest(fact=Fact("{} is", subject, "a", "b"), draws=1), n_layers=2)
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", export.file_stem(result, "layer-token"))
