"""Tables, figures, published numbers and the report: the right numbers in the right places, and text stays text."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace

import altair as alt
import drawn
import numpy as np
import pandas as pd
import pytest
import study_worlds as worlds
import vl_convert

from core import palette, stats
from core.requests import Fact
from core.study import figures, findings, published, report, tables, words
from core.study import rows as table
from core.study.text import overview

QUICK = {
    "resamples": 200, "flips": 200, "noise": 3.0, "draws": 1, "min_clean_contrast": 1.0, "min_drop": 0.5,
    "model": {"name": "demo"},
}  # fmt: skip
FUNNEL = {"records": 90, "scanned": 60, "unusable": 0, "objects": 2, "clean_contrast": 5, "drop": 13, "kept": 40}
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&\"'\u2028"


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return worlds.study(worlds.one_expert(n=40))


@pytest.fixture(scope="module")
def found(rows) -> findings.Findings:
    facts = [Fact("{} is in", f"subject {i}", f"true {i}", f"foil {i}", case_id=100 + 7 * i) for i in range(40)]
    return findings.find(rows, QUICK, FUNNEL, name="one", facts=facts)


@pytest.fixture(scope="module")
def pictures(found):
    return figures.figures(found.analysis, found.tables)


# ---- tables ---------------------------------------------------------------------------------------------------------


def test_every_table_has_a_title_and_there_is_one_for_every_part(found):
    assert list(found.tables) == list(tables.TITLES)
    empty = {name for name, content in found.tables.items() if content.empty}
    assert empty == {"published"}
    pd.testing.assert_frame_equal(
        found.tables["funnel"][["step", "facts"]], pd.DataFrame(FUNNEL.items(), columns=["step", "facts"])
    )


def test_layer_curves_are_the_means_and_intervals_of_each_half(found, rows):
    curve = found.tables["layers"].set_index(["split", "layer"])
    assert len(curve) == 6
    for (split, layer), line in curve.iterrows():
        mine = rows[(rows.kind == "layer") & (rows.stage == "main") & (rows.layer == layer) & (rows.split == split)]
        again = stats.estimate(mine.sort_values("scan_index").rescue.to_numpy(), resamples=200)
        assert [line["mean"], line.ci_low, line.ci_high] == pytest.approx([again.mean, again.ci_low, again.ci_high])
        assert line.n == 20
        assert line.selected == (layer == 1)


def test_the_expert_table_agrees_with_the_summary_where_they_meet(found):
    experts = found.tables["experts"].set_index("name")
    mine, summary = experts.loc["L1E005"], found.summary
    assert experts.selected.sum() == 1
    assert mine.selected
    assert mine.v_mean_all == pytest.approx(summary["expert_rescue"]["mean"])
    assert mine.v_mean_active == pytest.approx(summary["expert_rescue_active_only"]["mean"])
    for column, name in (("v_specificity", "mean"), ("v_specificity_low", "ci_low"), ("v_specificity_high", "ci_high")):
        assert mine[column] == pytest.approx(summary["specificity"][name])
    assert mine.v_specificity_n == summary["specificity"]["n"] == 20
    assert mine.recurrence == summary["recurrence"]
    assert mine.v_n_active == summary["activity"]["validation"]["active"]


def test_coalitions_are_compared_with_the_layer_patch_and_the_drop(found):
    coalitions, summary = found.tables["coalitions"].set_index("quantity"), found.summary
    assert coalitions.share_of_layer_patch["layer_rescue"] == 1.0
    share = summary["clean_topk"]["mean"] / summary["layer_rescue"]["mean"]
    assert coalitions.share_of_layer_patch["clean_topk"] == pytest.approx(share)
    drop = summary["beside"]["drop"]["mean"]
    assert coalitions.restoration["clean_topk"] == pytest.approx(summary["clean_topk"]["mean"] / drop)


def test_the_facts_table_has_a_row_for_each_fact_and_what_it_says(found, rows):
    facts = found.tables["facts"]
    assert list(facts.scan_index) == list(range(40))
    assert list(facts.true[:2]) == ["true 0", "true 1"]
    assert facts.prompt[3] == "subject 3 is in"
    assert facts.clean_contrast.tolist() == pytest.approx([6.0] * 40)
    validation = facts[facts.split == "validation"]
    assert fmean(validation.layer_rescue) == pytest.approx(found.summary["layer_rescue"]["mean"])
    assert facts[facts.split == "discovery"].layer_rescue.isna().all()


# ---- published ------------------------------------------------------------------------------------------------------


def test_the_published_numbers_stand_beside_ours(rows):
    settings = QUICK | {"model": {"name": "/models/Qwen3-30B-A3B-Base/"}}
    found = findings.find(rows, settings, FUNNEL, name="q")
    beside = found.tables["published"].set_index("quantity")
    assert list(beside.loc[["layer", "expert"], "marker"]) == ["other", "other"]
    assert list(beside.loc["expert", ["ours_name", "published_name"]]) == ["L01E005", "L44E069"]
    numbers = beside.loc["layer_rescue", ["published", "published_low", "published_high"]]
    assert numbers.tolist() == [0.901, 0.752, 1.053]
    for quantity in ("layer_rescue", "expert_rescue", "specificity"):
        line = beside.loc[quantity]
        assert line.ours == found.summary[quantity]["mean"]
        assert line.marker == ("inside" if line.published_low <= line.ours <= line.published_high else "outside")
    assert beside.loc["layer_rescue", "marker"] == "outside"
    assert beside.loc["clean-active, share of discovery facts", "ours"] == found.summary["recurrence"]
    assert beside.loc["stability grid, share the same", "ours"] == 1.0
    noise = found.tables["noise"].set_index(["quantity", "noise"])["mean"]
    for level in (1, 2, 3, 4):
        assert beside.loc[f"expert_rescue at noise {level}", "ours"] == pytest.approx(noise["expert_rescue", level])
    assert np.isnan(beside.loc["layer_rescue L42", "ours"])
    assert "published" in figures.figures(found.analysis, found.tables)


def test_inside_is_inside_and_the_same_is_the_same():
    paper = published.PAPERS["Mixtral-8x7B-v0.1"]
    estimate = {"mean": 0.34, "ci_low": 0.1, "ci_high": 0.6, "positive_fraction": 0.7}
    summary = dict.fromkeys(("layer_rescue", "expert_rescue", "specificity", "clean_topk", "routing_union"), estimate)
    summary |= {"settings": {"model": "mistralai/mixtral-8x7b-v0.1"}, "layer": 19, "expert": "L19E006", "beside": {},
                "activity": None, "rank": {}, "stability": None, "held_out": None}  # fmt: skip
    curve = pd.DataFrame(columns=["layer", "split", "mean", "ci_low", "ci_high"])
    marker = published.beside(summary, curve, pd.DataFrame()).set_index("quantity").marker
    assert [marker["layer"], marker["expert"]] == ["same", "same"]
    for name in ("layer_rescue", "expert_rescue", "specificity", "clean_topk", "routing_union"):
        number = paper.numbers[name]
        assert marker[name] == ("inside" if number.low <= 0.34 <= number.high else "outside")
    assert marker["layer_rescue"] == "inside"
    assert marker["expert_rescue"] == "outside"
    assert marker["layer_rescue L21"] is None or pd.isna(marker["layer_rescue L21"])


def test_which_settings_have_published_numbers():
    assert published.paper_of({"model": {"name": "Qwen/Qwen3-30B-A3B-Base"}}).layer == 44
    assert published.paper_of({"model": {"name": "demo"}}) is None
    relaxed = published.paper_of({"model": "Qwen/Qwen3-30B-A3B-Base", "min_clean_contrast": 0.5, "min_drop": 0.25})
    assert relaxed.numbers["layer_rescue"].mean == 0.846


# ---- figures --------------------------------------------------------------------------------------------------------


def marks(picture, kind: str) -> list[dict]:
    """Everything of one mark type that Vega draws."""
    return drawn.items(picture.standalone(width=600), kind)


def test_every_spec_is_valid(pictures):
    for picture in pictures.values():
        alt.LayerChart.from_dict(picture.standalone(width=500, title="t"), validate=True)


def test_a_study_without_an_expert_is_drawn_too_in_dark_and_with_odd_names():
    rows = worlds.study(worlds.each_its_own(n=24))
    rows["relation"] = [f"'); alert(1)// {r}" for r in rows.relation]
    found = findings.find(rows, QUICK | {"model": {"name": "Qwen3-30B-A3B-Base"}}, FUNNEL, name="x")
    drawn = figures.figures(found.analysis, found.tables, palette=palette.DARK)
    assert list(drawn) == [name for name in figures.TITLES if name != "controls"]
    for name, picture in drawn.items():
        svg = vl_convert.vegalite_to_svg(picture.standalone(width=500))
        assert "NaN" not in svg, name
        assert palette.DARK.background in svg, name


def test_layer_curves_are_drawn_where_their_numbers_say(found, pictures):
    curve = found.tables["layers"]
    dots = marks(pictures["layer_curves"], "symbol")
    assert len(dots) == len(curve)
    xs = sorted({round(item["x"], 2) for item in dots})
    for item, line in zip(dots, curve.itertuples(), strict=True):
        assert xs.index(round(item["x"], 2)) == line.layer
    heights = [-item["y"] for item in dots]
    assert np.corrcoef(heights, curve["mean"])[0, 1] == pytest.approx(1.0)
    rules = [item for item in marks(pictures["layer_curves"], "rule") if item.get("strokeDash")]
    assert [round(rule["x"], 2) for rule in rules] == [xs[1]]


def test_the_grid_shows_the_expert_of_every_cell(found, pictures):
    texts = [item["text"] for item in marks(pictures["stability"], "text")]
    assert sorted(texts) == sorted(found.tables["stability"].name)
    frames = [item for item in marks(pictures["stability"], "rect") if item.get("stroke") == palette.LIGHT.expert]
    assert len(frames) == found.summary["stability"]["same"] == 25


def test_the_scatter_marks_winner_and_two_stage_selection(found, pictures):
    symbols = marks(pictures["joint_search"], "symbol")
    rings = [item for item in symbols if item.get("stroke") == palette.LIGHT.expert]
    assert len(symbols) - len(rings) == found.summary["joint_search"]["pairs"]
    assert len(rings) == 2
    assert {item["text"] for item in marks(pictures["joint_search"], "text")} == {"L1E005"}
    preset = [p for p in pictures["joint_search"].spec["params"] if p["name"] == "expert"]
    assert preset[0]["select"]["fields"] == ["layer", "expert"]


def test_missing_means_are_shown_as_missing():
    own = worlds.study(worlds.one_expert(n=24))
    found = findings.find(own[~own.kind.str.startswith("equal_norm")], QUICK, FUNNEL, name="x")
    picture = figures.figures(found.analysis, found.tables)["controls"]
    assert [item["text"] for item in marks(picture, "text")].count("– missing") == 3, "the pair and its difference"
    assert len(marks(picture, "symbol")) == len(found.tables["controls"]) - 3


def test_tooltips_state_interval_and_number_of_facts(found, pictures):
    told = next(t for t in pictures["controls"].tables.values() if "t_value" in t).set_index("label")
    line = found.tables["controls"].set_index("quantity").loc["gate_matched_specificity"]
    tip = told.loc["gate-matched specificity"]
    assert tip.t_value == f"{line['mean']:+.3f} [{line.ci_low:+.3f}, {line.ci_high:+.3f}]".replace("-", "−")
    assert tip.t_facts == f"{line.n} facts, {line.n_missing} missing"
    assert line.n + line.n_missing == 20


# ---- words ----------------------------------------------------------------------------------------------------------


def test_captions_say_the_numbers(found):
    said = words.captions(found)
    joint = found.analysis.joint
    assert f"{joint.n_pairs} pairs of 3 layers were searched" in said["joint_search"]
    assert f"{joint.validation.mean:+.3f}" in said["joint_search"]
    assert f"shrinks by {joint.shrinkage:.3f}".replace("-", "−") in said["joint_search"]
    assert "25 of 25 selections find the same expert." in said["stability"]
    assert "5 of 5 folds" in said["held_out_relations"]
    assert "Layer 1 has the highest mean rescue" in said["layer_curves"]
    assert "40 facts were kept of 60 scanned (90 in the list)." == words.funnel_sentence(found)
    text = " ".join(words.method(found))
    assert "at least 50 % of the discovery facts" in text
    assert "200 bootstrap resamples of facts" in text


def test_of_many_experts_it_is_said_how_many_are_drawn(found, monkeypatch):
    assert "drawn" not in words.captions(found)["experts"]
    monkeypatch.setattr(words, "EXPERT_ROWS", len(found.tables["experts"]) - 1)
    said = words.captions(found)["experts"]
    assert f" {len(found.tables['experts']) - 1} of them are drawn, candidates first" in said


# ---- report ---------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Tags, text by section, and scripts of a report."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.scripts: list[tuple[dict, str]] = []
        self.text: list[str] = []
        self._script: dict | None = None
        self.feed(content.decode())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self._script = dict(attrs)

    def handle_data(self, data):
        if self._script is not None:
            self.scripts.append((self._script, data))
            self._script = None
        else:
            self.text.append(data)


def test_the_report_is_self_contained_and_has_everything(found, pictures):
    content = report.page(found, pictures)
    page = Page(content)
    assert not [attrs for _, attrs in page.tags if {"src", "href"} & set(attrs)], "nothing is loaded"
    assert not re.search(rb"@import|url\(", content.split(b"<script")[0])
    text = " ".join(page.text)
    assert f"Verdict: {found.summary['verdict']}" in text
    for line in found.summary["verdict_words"]:
        assert line in text
    ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert {f"figure-{name}" for name in pictures} <= ids
    assert len(pictures) == 10
    calls = re.findall(r'^draw\("(\w+)", (\{.*\})\);$', page.scripts[-1][1], flags=re.M)
    assert [name for name, _ in calls] == [name for name in report.SECTIONS if name in pictures]
    curve = json.loads(dict(calls)["layer_curves"])
    values = next(data for data in curve["datasets"].values() if data and "ci_low" in data[0])
    assert [row["mean"] for row in values] == pytest.approx(list(found.tables["layers"]["mean"]))
    origin = next(body for attrs, body in page.scripts if attrs.get("id") == "expertscope")
    assert json.loads(origin)["settings"] == found.settings
    for name in QUICK:
        assert name in text
    assert words.DEMO in text


@pytest.mark.parametrize(
    ("floor", "single", "means"),
    [(0.4, "below 0.4 logits", "Means over 20 facts below about 0.089 logits"), (2e-3, "below 0.002 logits", None)]
    + [(9e-4, None, None), (None, None, None), (float("nan"), None, None), ("much", None, None)],
)
def test_what_could_be_rounding_is_said_beside_the_figures(found, floor, single, means):
    """Of a mean over 20 validation facts √20 times less than of one."""
    there = dataclasses.replace(found, provenance={"noise_floor": floor, "dtype": "bfloat16"})
    captions = words.captions(there)
    for text in (words.how_to_read(there), captions["relations"]):
        assert ("within rounding (bfloat16)" in text and single in text) if single else "rounding" not in text
    for name in words.MEANS:
        assert (means in captions[name]) if means else ("rounding" not in captions[name])
    if single:
        text = " ".join(Page(report.page(there, {})).text)
        assert text.count(single) == 2 and text.count("Means over") == (len(words.MEANS) if means else 0)


def test_where_noise_does_not_reach_all_of_the_subject_the_verdict_says_so(rows, found):
    there = findings.find(rows, QUICK, FUNNEL, name="one", provenance={"notes": ["The corruption is <partial>."]})
    assert there.summary["cautions"] == [*found.summary["cautions"], "The corruption is <partial>."]
    study = SimpleNamespace(
        rows=table.table(rows), settings=SimpleNamespace(to_dict=lambda: QUICK, n=40), state="done",
        funnel=SimpleNamespace(counts=FUNNEL), provenance=there.provenance,
    )  # fmt: skip
    assert "\nCaution: The corruption is <partial>.\n" in overview(study)
    assert "The corruption is <partial>." in " ".join(Page(report.page(there, {})).text)
    odd = findings.find(rows, QUICK, FUNNEL, name="one", provenance={"notes": "not a list"})
    assert odd.summary["cautions"] == found.summary["cautions"]


def evil_study(rows: pd.DataFrame, *, state: str = "done") -> SimpleNamespace:
    """A study whose every text wants to be markup."""
    rows = rows.assign(relation=EVIL, subject=[f"{EVIL} {i}" for i in rows.scan_index])
    settings = QUICK | {"model": {"name": EVIL, "revision": EVIL}, "facts": EVIL, EVIL: EVIL}
    facts = [Fact(EVIL + "{}", f"{EVIL} {i}", EVIL, EVIL, relation=EVIL) for i in range(40)]
    return SimpleNamespace(
        name=EVIL, settings=SimpleNamespace(to_dict=lambda: settings), state=state, rows=table.table(rows), kept=facts,
        provenance={"dtype": EVIL, "device": EVIL, "notes": [EVIL], "versions": {EVIL: EVIL}},
        funnel=SimpleNamespace(counts={**FUNNEL, EVIL: 3}),
    )  # fmt: skip


def test_nothing_that_was_typed_becomes_markup(rows, found, pictures):
    evil = findings.of_study(evil_study(rows))
    page = Page(report.page(evil, figures.figures(evil.analysis, evil.tables)))
    plain = Page(report.page(found, pictures))
    names = [tag for tag, _ in page.tags]
    assert names.count("script") == [tag for tag, _ in plain.tags].count("script") == 3
    assert "img" not in names
    assert not any(attr.startswith("on") for _, attrs in page.tags for attr in attrs)
    text = " ".join(page.text)
    assert text.count("alert(1)") > 100, "shown as text: in title, settings, relations, facts"
    for _, body in page.scripts:
        assert "</script>" not in body


def test_an_unfinished_study_says_so_and_has_a_report(rows):
    early = rows[rows.kind.isin(["layer"])]
    study = evil_study(early, state="cancelled")
    found = findings.of_study(study)
    content = report.page(found, figures.figures(found.analysis, found.tables))
    assert b"This study is cancelled" in content
    nothing = findings.find(table.table([]), QUICK, {}, name="nothing yet")
    assert b"Nothing was measured on validation facts" in report.page(nothing, {})
    assert figures.figures(nothing.analysis, nothing.tables) == {}


def test_everything_is_written_and_the_files_agree(rows, tmp_path):
    settings = SimpleNamespace(to_dict=lambda: QUICK)
    study = SimpleNamespace(name="one", settings=settings, state="done", rows=rows, kept=[], provenance={"dtype": "f"},
                            funnel=SimpleNamespace(counts=FUNNEL))  # fmt: skip
    written = report.write(study, tmp_path / "a" / "b")
    folder = tmp_path / "a" / "b"
    assert sorted(p for p in folder.rglob("*") if p.is_file()) == sorted(written)
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    main, rest = (pd.read_parquet(folder / f"rows{part}.parquet") for part in ("", "_robustness"))
    assert len(main) + len(rest) == len(rows)
    assert set(main.stage) == {"main"}
    # as somebody would who knows the columns only
    at = main[(main.split == "validation") & (main.layer == summary["layer"])]
    expert = at[(at.kind == "expert") & (at.expert == int(summary["expert"].split("E")[1]))].set_index("case_id").rescue
    layer = at[at.kind == "layer"].set_index("case_id").rescue
    controls = at[at.kind == "control_random"].groupby("case_id").rescue.mean()
    assert layer.mean() == pytest.approx(summary["layer_rescue"]["mean"])
    everybody = expert.reindex(layer.index).fillna(0.0)
    assert everybody.mean() == pytest.approx(summary["expert_rescue"]["mean"])
    assert (everybody - controls).mean() == pytest.approx(summary["specificity"]["mean"])
    names = {p.stem for p in (folder / "tables").glob("*.csv")}
    assert names == {p.stem for p in (folder / "tables").glob("*.parquet")} == set(tables.TITLES)
    for name in ("experts", "stability"):
        csv, parquet = pd.read_csv(folder / f"tables/{name}.csv"), pd.read_parquet(folder / f"tables/{name}.parquet")
        pd.testing.assert_frame_equal(csv, parquet, check_dtype=False)
    drawn = {p.stem for p in (folder / "figures").glob("*.png")}
    assert drawn == {p.stem for p in (folder / "figures").glob("*.svg")} == set(figures.TITLES) - {"published"}
    for path in (folder / "figures").glob("*.svg"):
        assert "NaN" not in path.read_text("utf-8"), path
    assert (folder / "report.html").read_bytes().startswith(b"<!DOCTYPE html>")


def test_the_documents_recipes_give_the_summary_again(rows, tmp_path, monkeypatch):
    settings = SimpleNamespace(to_dict=lambda: QUICK)
    study = SimpleNamespace(name="one", settings=settings, state="done", rows=rows, kept=[], provenance={},
                            funnel=SimpleNamespace(counts=FUNNEL))  # fmt: skip
    monkeypatch.setattr(figures, "figures", lambda *args: {})
    report.write(study, tmp_path / "DIR")
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).resolve().parent.parent / "docs" / "study.md").read_text("utf-8")
    recipes = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    assert len(recipes) == 2
    for recipe in recipes:
        assert recipe.count("assert") >= 1
        exec(compile(recipe, "docs/study.md", "exec"), {})
    for name in table.COLUMNS:
        assert f"`{name}`" in text
    assert all(f"`{kind}`" in text for kind in table.KINDS)
