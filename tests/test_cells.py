"""Questions about cells against plain hooked forwards: other sites and windows of layers."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from fake_results import FRANCE
from test_interventions import CLEAN, CORRUPT, SUBJECT, Bench
from test_minimal import DRAWS, LIMIT, ByHand, question

from core import views
from core.cells import asking, tables
from core.cells.measure import Case
from core.cells.site_map import site_layers, site_map
from core.derived import derive
from core.errors import InputError
from core.models import load_model
from core.requests import TraceRequest
from core.sites import ATTENTION, LAYER, MOE, RESIDUAL, SITES, window_around
from core.trace import trace

PARTS = {MOE: ["moe"], ATTENTION: ["attention"], LAYER: ["attention", "moe"], RESIDUAL: ["residual"]}


@pytest.fixture(scope="module", params=["granitemoe", "deepseek_v3", "qwen3_next"])
def asked(request: pytest.FixtureRequest) -> tuple[Bench, Case, ByHand]:
    bench = Bench(request.param)
    trace_request, fact, by_hand = question(bench)
    return bench, Case.of(bench.model, trace_request, fact), by_hand


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("window", [1, 3])
def test_a_map_at_any_site_and_window_is_that_of_hooks(asked, site: str, window: int) -> None:
    bench, case, by_hand = asked
    found = site_map(bench.model, case, site, window)
    layers, n = site_layers(bench.model, site), bench.model.n_layers
    assert layers == [la for la in range(n) if site in (ATTENTION, RESIDUAL) or la in bench.moe]
    rows = found.rows.set_index(["layer", "pos", "draw"])
    assert sorted(rows.index) == list(itertools.product(layers, range(bench.n), range(DRAWS)))
    largest = 0.0
    for layer, pos in itertools.product(layers, (0, SUBJECT[-1], 5, bench.n - 1)):
        here = [la for la in window_around(layer, window, n) if la in layers]
        changes = [
            bench.write(name, la, pos, bench.seen[CLEAN][name, la][pos]) for la in here for name in PARTS[site]
        ]
        for draw in range(DRAWS):
            wanted = by_hand.at(draw, CORRUPT, *changes)
            row = rows.loc[layer, pos, draw]
            assert row.contrast == pytest.approx(wanted, abs=LIMIT)
            assert row.rescue == pytest.approx(wanted - by_hand.corrupt[draw], abs=LIMIT)
            assert row.restoration == pytest.approx(row.rescue / (by_hand.clean - by_hand.corrupt[draw]), abs=1e-3)
            largest = max(largest, abs(row.rescue))
    assert largest > 0.01  # the patches matter
    left = rows[rows.index.get_level_values("pos") < SUBJECT[0]]
    assert (left.rescue == 0).all()


def test_windows_are_romes() -> None:
    for layer, width, n in itertools.product(range(12), range(1, 15), (1, 7, 12)):
        if layer < n:
            theirs = range(max(0, layer - width // 2), min(n, layer - (-width // 2)))
            assert window_around(layer, width, n) == theirs and layer in theirs


def test_what_no_model_has_is_said() -> None:
    bench = Bench("granitemoe")
    request, fact, _ = question(bench)
    case = Case.of(bench.model, request, fact)
    with pytest.raises(InputError, match="no site 'head'"):
        site_map(bench.model, case, "head", 1)
    with pytest.raises(InputError, match="window is 0"):
        site_map(bench.model, case, MOE, 0)


REQUESTS = [
    TraceRequest(FRANCE, noise=2.5, draws=3, seed=7, special_tokens="off", object_tokens="paper", first_token=True),
    TraceRequest(FRANCE, corruption="replace", draws=2, seed=4),
    TraceRequest(FRANCE, corruption="replace", replacement=("Spain", "Peru")),
]


@pytest.mark.parametrize("request_", REQUESTS)
def test_a_question_carries_the_traces_settings(request_: TraceRequest) -> None:
    derived = asking.ask("site_map", request_, site=ATTENTION, window=2)
    assert asking.question(derived) == request_.replace(experts="none")
    assert {name: derived.get()[name] for name in ("site", "window")} == {"site": ATTENTION, "window": 2}


def test_what_cannot_change_a_number_makes_no_other_question() -> None:
    for request, changes in zip(REQUESTS[1:], ({"noise": 1.0}, {"noise": 1.0, "seed": 3}), strict=True):
        same = request.replace(experts="all", **changes)
        assert asking.ask("site_map", same, site=MOE, window=1) == asking.ask("site_map", request, site=MOE, window=1)


@pytest.fixture(scope="module")
def demo():
    return load_model("demo")


def test_layer_patches_of_one_layer_are_the_traces_own(demo) -> None:
    result = trace(demo, FRANCE, draws=2, seed=3)
    answer = derive(demo, asking.ask("site_map", result.request, site=MOE, window=1))
    assert answer.values["layers"] == demo.moe_layers
    ours = views.layer_cells(tables.at_site(result, answer))
    pd.testing.assert_frame_equal(ours, views.layer_cells(result), check_exact=False, atol=LIMIT, rtol=0)
    assert np.isfinite(ours.rescue_sd).all() and ours.rescue_sd.max() > 0.01
