"""What becomes of every fact's values: who counts, means and intervals, the facts behind, links, pictures. No model."""

from __future__ import annotations

import dataclasses

import altair as alt
import numpy as np
import pandas as pd
import pytest
import vl_convert
from scipy import stats as scipy_stats

from core import links, stats
from core.averages import charts, link, tables
from core.averages.questions import NOBODY, cells_request, experts_request
from core.derived import DerivedResult
from core.fact_sets import FactSet
from core.links import SHARED
from core.palette import DARK
from core.picture import designed
from core.requests import Fact, ModelSpec, TraceRequest
from core.roles import BEFORE, FIRST_SUBJECT, FURTHER, LAST, LAST_SUBJECT, MIDDLE_SUBJECT, ROLES
from core.views import SHARED_INDEX

SUBJECTS = ("Rome", "Rome", "Oslo", "Bonn", "Cairo")
DROPS = (4.0, 2.0, 8.0, 0.3, 1.0)
FACTS = tuple(Fact("{} is", name, "a", "b", case_id=10 + i) for i, name in enumerate(SUBJECTS))
PROVENANCE = {"n_layers": 4, "moe_layers": [1, 2, 3], "n_experts": 4, "has_shared": True}


def facts_table() -> pd.DataFrame:
    return pd.DataFrame({
        "fact": range(5), "case_id": [f.case_id for f in FACTS], "relation": "r", "subject": SUBJECTS, "prompt": "p",
        "true": "a", "foil": "b", "clean_contrast": 5.0, "corrupt_contrast": 5.0 - np.array(DROPS), "drop": DROPS,
    })  # fmt: skip


ROLES_OF = [
    [BEFORE, FIRST_SUBJECT, MIDDLE_SUBJECT, MIDDLE_SUBJECT, LAST_SUBJECT, LAST],
    [BEFORE, LAST_SUBJECT, FURTHER, LAST],
    [FIRST_SUBJECT, LAST_SUBJECT, LAST],
    [LAST_SUBJECT, LAST],
    [FIRST_SUBJECT, MIDDLE_SUBJECT, LAST_SUBJECT, LAST],
]


def cells_table(seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = [
        (fact, layer, pos, role, f"t{pos}", 0.0 if role == BEFORE else rng.normal(1))
        for fact, roles in enumerate(ROLES_OF) for layer in (1, 2, 3) for pos, role in enumerate(roles)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["fact", "layer", "pos", "role", "token", "rescue"])


@pytest.fixture(scope="module")
def result() -> DerivedResult:
    left_out = [{"case_id": 99, "subject": "Nowhere", "why": "It has no token."}]
    request = cells_request(TraceRequest(NOBODY), FACTS)
    return DerivedResult(request, {"facts": facts_table(), "cells": cells_table()}, {"left_out": left_out}, PROVENANCE)


@pytest.fixture(scope="module")
def experts() -> DerivedResult:
    """Experts at middle subject tokens: facts 0 (two tokens) and 4 (one)."""
    cells = cells_table()
    rows = [
        (0, 1, 2, 3, 0.6, 1.0), (0, 1, 3, 3, 0.4, 3.0), (0, 1, 2, 1, 0.3, 0.5), (4, 1, 1, 1, 0.2, -2.5),
        (0, 2, 2, SHARED_INDEX, np.nan, 0.2), (0, 2, 3, SHARED_INDEX, np.nan, 0.4),
        (4, 2, 1, SHARED_INDEX, np.nan, 0.6),
    ]  # fmt: skip
    return DerivedResult(
        experts_request(TraceRequest(NOBODY), FACTS, role=MIDDLE_SUBJECT),
        {
            "facts": facts_table(), "cells": cells[cells.role == MIDDLE_SUBJECT],
            "experts": pd.DataFrame(rows, columns=["fact", "layer", "pos", "expert", "router_weight", "rescue"]),
        },
        {"left_out": []},
        PROVENANCE,
    )  # fmt: skip


def by_hand(result: DerivedResult, layer: int, role: str, kept=(0, 1, 2, 4)) -> tuple[list[float], list[float], list]:
    """(each fact's mean over its tokens of the role, its drop, its subject)."""
    values, drops, subjects = [], [], []
    cells = result.tables["cells"]
    for fact in kept:
        some = [r.rescue for r in cells.itertuples() if (r.fact, r.layer, r.role) == (fact, layer, role)]
        if some:
            values.append(sum(some) / len(some))
            drops.append(DROPS[fact])
            subjects.append(SUBJECTS[fact])
    return values, drops, subjects


def test_a_role_is_averaged_over_its_tokens_then_over_the_facts_that_count(result):
    table = tables.role_table(result)  # the drop of fact 3 is below 0.5
    assert list(table.columns) == tables.ROLE_COLUMNS
    assert BEFORE not in set(table.role), "nothing comes of it"
    for row in table.itertuples():
        values, drops, subjects = by_hand(result, row.layer, row.role)
        assert (row.n, row.n_missing) == (len(values), 4 - len(values))
        assert row.rescue == pytest.approx(np.mean(values))
        assert row.restoration == pytest.approx(np.mean(values) / np.mean(drops)), "never a mean of ratios"
        assert row.positive_fraction == np.mean(np.array(values) > 0)
        one = stats.estimate(values, units=subjects)
        assert [row.rescue_low, row.rescue_high] == pytest.approx([one.ci_low, one.ci_high], nan_ok=True)
    assert table[(table.layer == 1) & (table.role == MIDDLE_SUBJECT)].n_tokens.item() == 3
    further = table[table.role == FURTHER]
    assert further.n.tolist() == [1, 1, 1] and further.rescue_low.isna().all(), "one subject has no interval"


def test_the_threshold_says_who_counts_and_why_others_do_not(result):
    counted = tables.count(result)
    assert counted == tables.Counted(chosen=6, cannot=1, small_drop=1, kept=4)
    said = tables.facts_in_words(counted)
    assert said == ("4 of 6 facts; left out: 1 cannot be traced by this model and 1 has a drop below 0.5 logits.")
    assert list(tables.left_out(result).case_id) == [99, 13]
    assert "0.3 logits, is below 0.5" in tables.left_out(result).why[1]
    every = tables.role_table(result, min_drop=None)
    assert every[every.role == LAST].n.tolist() == [5, 5, 5]
    assert list(tables.left_out(result, min_drop=None).case_id) == [99]
    assert tables.facts_in_words(tables.count(result, min_drop=None), min_drop=None).startswith("5 of 6 facts")
    nobody = tables.role_table(result, min_drop=50.0)
    assert nobody.rescue.isna().all() and (nobody.n == 0).all()
    assert tables.count(result, min_drop=50.0).kept == 0


def test_a_small_mean_drop_makes_restoration_missing(result):
    facts = facts_table().assign(drop=[0.09, -0.02, 0.04, 0.0, 0.01])
    small = dataclasses.replace(result, tables={**result.tables, "facts": facts})
    table = tables.role_table(small, min_drop=None)
    assert table[table.role == LAST].restoration.isna().all() and table[table.role == LAST].rescue.notna().all()


def test_ratio_bands_are_scipys_paired_bootstrap_of_the_ratio_of_means():
    rng = np.random.default_rng(4)
    x, whole = rng.normal(1, 2, 30), rng.gamma(3, 1, 30)

    def ratio(a, b, axis):
        return a.mean(axis=axis) / b.mean(axis=axis)

    theirs = scipy_stats.bootstrap(
        (x, whole), ratio, paired=True, n_resamples=5000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    mean, low, high = stats.ratio_bands(x[:, None], whole, least=0.05)
    assert (mean[0], low[0], high[0]) == pytest.approx((x.mean() / whole.mean(), theirs.low, theirs.high))
    # a column with gaps is the same question about the facts that are there
    gaps = np.where(np.arange(30) % 3 == 0, np.nan, x)
    both = stats.ratio_bands(np.stack([x, gaps], axis=1), whole, least=0.05)
    there = ~np.isnan(gaps)
    alone = stats.ratio_bands(x[there, None], whole[there], least=0.05)
    assert [part[1] for part in both] == pytest.approx([part[0] for part in alone])
    # facts of one unit stay together: one unit has no interval, and its facts one mean
    together = stats.ratio_bands(x[:, None], whole, least=0.05, units=["a"] * 30)
    assert together[0][0] == mean[0] and np.isnan(together[1][0])
    # where a resample's own whole may vanish there is no interval
    assert np.isnan(stats.ratio_bands(x[:, None], whole - whole.mean() + 0.1, least=0.05)[1][0])


def test_bands_of_many_columns_do_not_depend_on_how_they_are_cut(monkeypatch):
    table = np.random.default_rng(1).normal(size=(12, 9))
    whole = stats.bands(table), stats.ratio_bands(table, np.full(12, 2.0), least=0.1)
    monkeypatch.setattr(stats, "_COLUMNS", 2)
    cut = stats.bands(table), stats.ratio_bands(table, np.full(12, 2.0), least=0.1)
    for one, other in zip([*whole[0], *whole[1]], [*cut[0], *cut[1]], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


def test_the_facts_behind_a_cell_are_its_average(result):
    table = tables.role_table(result)
    for row in table.itertuples():
        behind = tables.behind_cell(result, row.layer, row.role)
        assert len(behind) == 4 and behind.rescue.notna().sum() == row.n
        assert behind.rescue.mean() == pytest.approx(row.rescue)
        assert behind.rescue.dropna().is_monotonic_decreasing
    behind = tables.behind_cell(result, 2, MIDDLE_SUBJECT).set_index("fact")
    cells = result.tables["cells"]
    own = cells[(cells.fact == 0) & (cells.layer == 2) & (cells.role == MIDDLE_SUBJECT)]
    assert behind.pos[0] == own.pos[own.rescue.abs().idxmax()] and behind.tokens[0] == "t2t3"
    assert behind.restoration[0] == pytest.approx(own.rescue.mean() / 4.0)
    assert behind.pos.isna()[1] and behind.n_tokens[1] == 0, "it has no such token"


def test_an_expert_counts_0_where_it_is_not_clean_active_and_is_missing_without_the_role(experts):
    table = tables.expert_table(experts).set_index("name")
    assert list(table.index) == ["L1E003", "L2shared", "L1E001"]
    first, other, shared = table.loc["L1E003"], table.loc["L1E001"], table.loc["L2shared"]
    assert (first.n, first.n_missing, first.n_active, first.recurrence) == (2, 2, 1, 0.5)
    assert first.rescue == pytest.approx((2.0 + 0.0) / 2) and first.rescue_active == pytest.approx(2.0)
    assert first.restoration == pytest.approx(1.0 / 2.5) and first.router_weight == pytest.approx(0.5)
    assert other.rescue == pytest.approx((0.25 - 2.5) / 2) and other.rescue_active == pytest.approx((0.5 - 2.5) / 2)
    assert shared.rescue == pytest.approx((0.3 + 0.6) / 2) and np.isnan(shared.router_weight)
    for row in tables.expert_table(experts).itertuples():
        behind = tables.behind_expert(experts, row.layer, row.expert)
        assert behind.rescue.mean() == pytest.approx(row.rescue) and len(behind) == 4
        assert (behind.clean_active.sum(), behind.clean_active.isna().sum()) == (row.n_active, row.n_missing)
    behind = tables.behind_expert(experts, 1, 1).set_index("fact")
    assert behind.pos[0] == 2, "the token at which it is clean-active"
    nobody = tables.behind_expert(experts, 3, 2).set_index("fact")
    assert nobody.rescue[0] == 0 and not nobody.clean_active[0] and nobody.pos.notna()[0]


# ---- links -------------------------------------------------------------------------------------------------------


VIEW = link.AveragesView(
    asked=TraceRequest(NOBODY, ModelSpec("org/m", "main", "bfloat16"), noise=2.5, draws=3, seed=7, first_token=True),
    facts=FactSet(relations=("a", "b"), n=None, seed=4), site="attention", window=10, min_drop=0.25,
    measure="rescue", role=LAST_SUBJECT, layer=3, expert=2,
)  # fmt: skip


def test_links_say_everything_and_are_read_back():
    replaced = TraceRequest(NOBODY, corruption="replace", replacement=("Spain",))
    for view in (
        link.AveragesView(), VIEW, dataclasses.replace(VIEW, min_drop=None, expert=SHARED),
        dataclasses.replace(VIEW, min_drop=0.0, expert=None, layer=None), link.AveragesView(asked=replaced),
    ):  # fmt: skip
        assert link.from_query(link.to_query(view)) == view
    assert link.to_query(link.AveragesView()) == {"model": "demo", "noise": "3", "draws": "1", "seed": "0"}


@pytest.mark.parametrize(
    ("name", "value"),
    [("site", "mlp"), ("window", "0"), ("window", "x"), ("min_drop", "-1"), ("min_drop", "nan"), ("role", "subject"),
     ("show", "x"), ("layer", "-3"), ("n", "0"), ("draws", "no"), ("noise", "-1")],
)  # fmt: skip
def test_whatever_a_link_says_wrongly_is_the_default_and_named(name, value):
    view = link.from_query({name: value})
    assert dataclasses.replace(view, problems=()) == link.AveragesView()
    assert len(view.problems) == 1 and name in view.problems[0]


def test_what_an_answer_does_not_have_is_dropped_and_named():
    shape = {"layers": [0, 1, 2, 3], "moe_layers": [1, 2, 3], "n_layers": 4, "n_experts": 4, "shared": False}
    for layer, expert, kept in ((3, 2, (3, 2)), (9, None, (None, None)), (1, 4, (1, None)), (0, 1, (0, None)),
                                (2, SHARED, (2, None))):  # fmt: skip
        view, problems = link.check(dataclasses.replace(VIEW, layer=layer, expert=expert), **shape)
        assert (view.layer, view.expert) == kept and len(problems) == (kept != (layer, expert))
    assert link.from_query({"expert": "3"}).problems == (
        "The link names an expert but no layer, so no expert is marked.",
    )


def test_the_way_to_the_trace_page_keeps_the_settings():
    there = link.trace_link(VIEW, FACTS[0], bundled=False, layer=3, pos=1, expert=2)
    query = links.to_query(there.request, there.view, bundled=there.bundled)
    again = links.from_query(query, bundled=lambda _: None, default=NOBODY)
    assert again.request.fact == FACTS[0] and again.request.draws == 3 and again.request.noise == 2.5
    assert (again.view.layer, again.view.pos, again.view.expert, again.view.is_base) == (3, 1, 2, True)
    cell = link.trace_link(VIEW, FACTS[0], bundled=False, layer=3, pos=1).view
    assert (cell.site, cell.window, cell.layer, cell.pos) == ("attention", 10, 3, 1)


# ---- pictures ----------------------------------------------------------------------------------------------------


def drawn(picture) -> str:
    spec = picture.standalone(width=700)
    alt.LayerChart.from_dict(spec, validate=True)
    return vl_convert.vegalite_to_svg(spec)


def test_pictures_hold_every_average_and_what_is_chosen(result, experts):
    table = tables.role_table(result)
    svg = drawn(charts.role_map(table, n_layers=4, layer=2, role=LAST, palette=DARK))
    assert svg.count('aria-roledescription="rect mark"') == len(table) + 1, "and the frame of the chosen cell"
    row = table[(table.layer == 2) & (table.role == LAST)].iloc[0]
    shown = charts.interval(row.restoration, row.restoration_low, row.restoration_high)
    assert shown in svg and "layer 2, last token" in svg
    assert ROLES.index(LAST) in charts.role_map(table, n_layers=4).tables["cells"].role.to_numpy()
    curves = drawn(charts.role_curves(table, n_layers=4, measure="rescue", role=LAST))
    assert curves.count('aria-roledescription="circle"') == len(table)
    grid = drawn(
        charts.expert_map(
            tables.expert_table(experts), n_layers=4, n_experts=4, moe_layers=(1, 2, 3), has_shared=True, n_facts=4,
            layer=1, expert=3,
        )
    )  # fmt: skip
    assert "L1E003" in grid and "L2shared" in grid and "nothing to patch" in grid and "0 in every fact" in grid
    assert "1 of 2 facts" in grid and "2, 2 without such a token" in grid


def test_roles_are_named_so_that_a_sentence_can_go_on():
    assert [charts.role_label(role) for role in ROLES] == [
        "before subject", "first subject token", "middle subject token", "last subject token", "further token",
        "last token",
    ]  # fmt: skip


def test_what_is_missing_is_drawn_as_missing(result):
    nobody = tables.role_table(result, min_drop=50.0)
    svg = drawn(charts.role_map(nobody, n_layers=4))
    assert "–" in svg
    assert 'aria-roledescription="circle"' not in drawn(charts.role_curves(nobody, n_layers=4))


def test_averages_of_other_facts_need_no_other_design(result, experts):
    some = {min_drop: tables.role_table(result, min_drop=min_drop) for min_drop in (0.0, 50.0)}
    shape = {"n_layers": 4, "n_experts": 4, "moe_layers": (1, 2, 3)}
    grids = {min_drop: tables.expert_table(experts, min_drop=min_drop) for min_drop in some}
    for draw in (
        lambda at, **chosen: charts.role_map(some[at], n_layers=4, **chosen),
        lambda at, role=None, **_: charts.role_curves(some[at], n_layers=4, role=role),
        lambda at, layer=None, **_: charts.expert_map(grids[at], **shape, layer=layer, expert=layer),
    ):
        designed.cache_clear()
        one, two = draw(0.0), draw(50.0, layer=2, role=LAST)
        assert designed.cache_info().misses == 1
        assert one.spec != two.spec
        assert one.standalone(width=300)["datasets"] != two.standalone(width=300)["datasets"]
        assert draw(0.0).spec == one.spec, "nothing of the other is left"
