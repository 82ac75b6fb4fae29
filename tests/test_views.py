"""The tables behind the pictures, against plain loops over the long frame."""

from __future__ import annotations

import statistics

import numpy as np
import pandas as pd
import pytest
from fake_results import FRANCE, fake_result

from core import views
from core.requests import TraceRequest


@pytest.fixture(scope="module", params=[1, 3])
def result(request):
    return fake_result(request=TraceRequest(fact=FRANCE, draws=request.param, experts="all"), dense=(2,), shared=True)


def rows_of(result, kind, **where):
    """Plain dictionaries of the frame's rows."""
    out = []
    for row in result.frame.to_dict("records"):
        if row["kind"] == kind and all(row[name] == value for name, value in where.items()):
            out.append(row)
    return out


def check(row, rows, result):
    """One aggregated row against the draws' rows; draws without one count 0."""
    n = result.request.draws
    corrupt = {r["draw"]: r for r in rows_of(result, "corrupt")}
    rescues = [r["rescue"] for r in rows] + [0.0] * (n - len(rows))
    true = [r["true_logit"] - corrupt[r["draw"]]["true_logit"] for r in rows] + [0.0] * (n - len(rows))
    foil = [r["foil_logit"] - corrupt[r["draw"]]["foil_logit"] for r in rows] + [0.0] * (n - len(rows))
    drops = [result.clean_contrast - c["contrast"] for c in corrupt.values()]
    assert row.rescue == pytest.approx(statistics.fmean(rescues))
    assert row.restoration == pytest.approx(statistics.fmean(rescues) / statistics.fmean(drops))
    assert row.rescue_min == pytest.approx(min(rescues))
    assert row.rescue_max == pytest.approx(max(rescues))
    assert row.true_shift == pytest.approx(statistics.fmean(true))
    assert row.foil_shift == pytest.approx(statistics.fmean(foil))
    assert row.rescue == pytest.approx(row.true_shift - row.foil_shift)
    assert row.draws == n
    if hasattr(row, "direct"):
        assert row.direct == pytest.approx(statistics.fmean([r["direct"] for r in rows] + [0.0] * (n - len(rows))))
    if n > 1:
        assert row.rescue_sd == pytest.approx(statistics.stdev(rescues), abs=1e-9)
    else:
        assert np.isnan(row.rescue_sd)


def test_layer_cells(result):
    cells = views.layer_cells(result)
    prov = result.provenance
    assert list(zip(cells.layer, cells.pos, strict=True)) == [
        (layer, pos) for layer in prov.moe_layers for pos in range(len(prov.tokens))
    ]
    for row in cells.itertuples():
        check(row, rows_of(result, "layer", layer=row.layer, pos=row.pos), result)
        assert row.token == prov.tokens[row.pos]
        assert row.subject == (row.pos in prov.subject_positions)
        here = result.routing[(result.routing.layer == row.layer) & (result.routing.pos == row.pos)]
        assert row.margin_clean == pytest.approx(here.margin[here.run == "clean"].iloc[0])
        assert row.margin_corrupt == pytest.approx(here.margin[here.run == "corrupt"].min())
        assert row.near_tie_corrupt == here.near_tie[here.run == "corrupt"].any()
        heaviest = here[here.run == "clean"].sort_values("router_weight").iloc[-1]
        assert row.experts_clean.startswith(f"E{heaviest.expert:03d} {heaviest.router_weight:.3f}, E")


@pytest.mark.parametrize("pos", [0, 4, 5])
def test_expert_grid(result, pos):
    grid = views.expert_grid(result, pos)
    prov, n = result.provenance, result.request.draws
    every = [(layer, e) for layer in prov.moe_layers for e in [*range(prov.n_experts), views.SHARED_INDEX]]
    assert list(zip(grid.layer, grid.expert, strict=True)) == every
    for row in grid.itertuples():
        if row.expert == views.SHARED_INDEX:
            rows = rows_of(result, "shared", layer=row.layer, pos=pos)
            assert (row.status, row.column, row.name) == ("always on", "shared", f"L{row.layer}shared")
            check(row, rows, result)
            continue
        routing = result.routing.query("layer == @row.layer and pos == @pos and expert == @row.expert")
        clean, corrupt = routing[routing.run == "clean"], routing[routing.run == "corrupt"]
        expected = {
            (True, True): views.BOTH,
            (True, False): views.CLEAN_ONLY,
            (False, True): views.CORRUPT_ONLY,
            (False, False): views.NOT_ROUTED,
        }
        assert row.status == expected[len(clean) > 0, len(corrupt) > 0]
        assert row.corrupt_draws == len(corrupt)
        assert row.router_weight_clean == pytest.approx(clean.router_weight.sum())
        assert row.router_weight_corrupt == pytest.approx(corrupt.router_weight.sum() / n)
        rows = rows_of(result, "expert", layer=row.layer, pos=pos, expert=row.expert)
        if row.status == views.NOT_ROUTED:
            assert rows == []
            assert np.isnan(row.rescue)
        else:
            check(row, rows, result)
            layer = np.mean([r["rescue"] for r in rows_of(result, "layer", layer=row.layer, pos=pos)])
            assert np.isnan(row.share) if abs(layer) < 0.01 else row.share == pytest.approx(row.rescue / layer)


def test_some_expert_is_routed_in_some_draws_only():
    """The case that a mean over the rows that are there would get wrong does occur in these tests."""
    result = fake_result(request=TraceRequest(fact=FRANCE, draws=3, experts="all"))
    counts = result.frame[result.frame.kind == "expert"].groupby(["layer", "pos", "expert"]).size()
    assert (counts < 3).any()


def test_active_experts_are_the_routed_ones_best_first(result):
    grid = views.expert_grid(result, 5)
    for layer in result.provenance.moe_layers:
        table = views.active_experts(result, layer, 5)
        routed = grid[(grid.layer == layer) & (grid.status != views.NOT_ROUTED)]
        assert set(table.name) == set(routed.name)
        assert list(table.rescue) == sorted(table.rescue, reverse=True)


def test_routing_strip(result):
    n = result.request.draws
    for layer in result.provenance.moe_layers:
        strip = views.routing_strip(result, layer)
        seen = {}
        for row in result.routing[result.routing.layer == layer].itertuples():
            clean, corrupt, draws = seen.get((row.pos, row.expert), (0.0, 0.0, 0))
            if row.run == "clean":
                clean = row.router_weight
            else:
                corrupt, draws = corrupt + row.router_weight / n, draws + 1
            seen[row.pos, row.expert] = clean, corrupt, draws
        assert set(zip(strip.pos, strip.expert, strict=True)) == set(seen)
        for row in strip.itertuples():
            clean, corrupt, draws = seen[row.pos, row.expert]
            assert (row.router_weight_clean, row.router_weight_corrupt) == pytest.approx((clean, corrupt))
            assert row.corrupt_draws == draws
            names = {(True, True): views.BOTH, (True, False): views.CLEAN_ONLY, (False, True): views.CORRUPT_ONLY}
            assert row.change == names[clean > 0, draws > 0]


def test_tokens_before_the_subject_are_routed_alike(result):
    strip = views.routing_strip(result, 1)
    before = strip[strip.pos < min(result.provenance.subject_positions)]
    assert (before.change == views.BOTH).all()
    assert list(before.router_weight_clean) == pytest.approx(list(before.router_weight_corrupt))


def test_no_drop_no_restoration():
    result = fake_result(drop=0.04)
    assert views.layer_cells(result).restoration.isna().all()
    assert views.layer_cells(result).rescue.notna().all()
    assert views.expert_grid(result, 5).restoration.isna().all()


@pytest.mark.parametrize(
    ("clean", "drop", "n"), [(6, 5, 0), (0.99, 0.6, 1), (1.0, 0.5, 0), (2, 0.49, 1), (0.5, 0.2, 2)]
)
def test_the_papers_filter(clean, drop, n):
    assert len(views.filter_problems(fake_result(clean=clean, drop=drop))) == n


def test_labels_are_unique_and_short():
    tokens = [" a", " a", "▁a", "Ġa", "\n", "", "x" * 50, "\x00", "é", " "]
    labels = [views.token_label(token, pos) for pos, token in enumerate(tokens)]
    assert len(set(labels)) == len(tokens)
    assert all(len(label) <= 22 and label.isprintable() and label.strip() == label for label in labels)
    assert labels[:5] == ["·a (0)", "·a (1)", "·a (2)", "·a (3)", "↵ (4)"]


def test_next_tokens_and_probabilities():
    result = fake_result()
    tops = views.next_tokens(result, top=3)
    assert tops["clean"] == [(" Paris", 0.91), (" Lyon", 0.03), (" Rome", 0.02)]
    assert [token for token, _ in tops["corrupt"]] == [" London", " Rome", " Madrid"]
    assert tops["corrupt"][0][1] == pytest.approx(0.31)
    assert views.p_true(result) == pytest.approx((0.91, 0.045))


def test_the_best_cell(result):
    best = max(rows_by_cell(result).items(), key=lambda item: item[1])[0]
    assert views.best_cell(result) == best


def rows_by_cell(result):
    cells: dict[tuple[int, int], float] = {}
    for row in rows_of(result, "layer"):
        key = (int(row["layer"]), int(row["pos"]))
        cells[key] = cells.get(key, 0.0) + row["rescue"]
    return cells


def test_tables_hold_plain_values(result):
    for table in (views.layer_cells(result), views.expert_grid(result, 5), views.routing_strip(result, 1)):
        for name, column in table.items():
            assert not isinstance(column.dtype, pd.core.arrays.masked.BaseMaskedDtype), name
