"""The Method page's worked example and the tour: the numbers in their words are those of the result's own rows."""

from __future__ import annotations

import re

import pytest
from fake_results import fake_result

from core import method, tour
from core.requests import TraceRequest
from core.results import expert_name


def numbers(lines: tuple[str, ...]) -> list[float]:
    return [float(x) for x in re.findall(r"-?\d+\.\d+", " ".join(lines))]


@pytest.fixture(params=[1, 3], ids=["one draw", "three draws"])
def result(request):
    from fake_results import FRANCE

    return fake_result(request=TraceRequest(fact=FRANCE, draws=request.param), seed=5)


def rescue(result, kind, layer, pos, expert=None):
    """Mean rescue over all draws, a draw without a row counting 0, from the long frame."""
    frame = result.frame
    rows = frame[(frame.kind == kind) & (frame.layer == layer) & (frame.pos == pos)]
    if expert is not None:
        rows = rows[rows.expert == expert]
    return rows.rescue.sum() / result.request.draws


def test_each_step_works_out_what_its_formula_says(result):
    steps = method.worked_example(result)
    frame = result.frame
    for step, kind in zip(steps[:2], ("clean", "corrupt"), strict=False):
        rows = frame[frame.kind == kind]
        true, foil, contrast = numbers(step.worked)
        assert true == pytest.approx(rows.true_logit.mean(), abs=6e-4)
        assert abs(foil) == pytest.approx(abs(rows.foil_logit.mean()), abs=6e-4)
        assert contrast == pytest.approx(rows.contrast.mean(), abs=6e-4)
    drop = frame[frame.kind == "clean"].contrast.mean() - frame[frame.kind == "corrupt"].contrast.mean()
    assert numbers(steps[2].worked)[-1] == pytest.approx(drop, abs=6e-4)
    last = len(result.provenance.tokens) - 1
    by_layer = {layer: rescue(result, "layer", layer, last) for layer in result.provenance.moe_layers}
    layer = max(by_layer, key=by_layer.get)
    assert f"layer {layer}," in steps[3].title
    patched, corrupt, found, top, bottom, share = numbers(steps[3].worked)
    assert found == top == pytest.approx(by_layer[layer], abs=6e-4) and bottom == pytest.approx(drop, abs=6e-4)
    assert share == pytest.approx(by_layer[layer] / drop, abs=6e-4)
    clean_active = frame[(frame.kind == "expert") & (frame.layer == layer) & (frame.pos == last) & frame.clean_active]
    singles = {int(e): rescue(result, "expert", layer, last, e) for e in clean_active.expert.unique()}
    best = max(singles, key=singles.get)
    assert expert_name(layer, best) in steps[4].title
    assert numbers(steps[4].worked)[0] == pytest.approx(singles[best], abs=6e-4)
    both = [rescue(result, kind, layer, last) for kind in ("expert", "shared")]
    assert numbers(steps[5].worked)[0] == pytest.approx(sum(both), abs=6e-4)
    assert len(steps) == (6 if result.request.draws == 1 else 7)


def test_every_formula_can_be_read_as_plain_text(result):
    steps = method.worked_example(result)
    replaced = method.worked_example(fake_result(request=result.request.replace(corruption="replace")))
    for step in (*steps, *replaced):
        assert step.text.startswith(step.words) and not re.search(r"[\\{}]", step.text), step.text
        for line in step.worked:
            for value in re.findall(r"\d+\.\d+", line):
                assert value in step.text
    told = steps[3].text
    assert "rescue = Δ_patched − Δ_corrupt" in told and "restoration = rescue ÷ drop" in told


def test_without_a_drop_nothing_is_divided_by_it():
    steps = method.worked_example(fake_result(drop=0.01))
    assert "frac" not in " ".join(steps[3].worked) and numbers(steps[2].worked)[-1] == pytest.approx(0.01, abs=1e-3)


def test_the_tour_shows_what_it_speaks_of(result):
    stops = tour.stops(result)
    assert len(stops) == 5
    frame = result.frame
    cells = frame[frame.kind == "layer"].groupby(["layer", "pos"]).rescue.mean()
    layer, pos = cells.idxmax()
    assert (stops[2].view.layer, stops[2].view.pos) == (layer, pos)
    assert f"{cells.max():+.3f}" in stops[2].words
    chosen = stops[3].view
    assert expert_name(chosen.layer, chosen.expert) in stops[3].words
    assert chosen.pos == len(result.provenance.tokens) - 1
    alone = rescue(result, "expert", chosen.layer, chosen.pos, chosen.expert)
    assert f"{alone:+.3f}".replace("-", "−") in stops[3].words
    assert f"{result.clean_contrast:.3f}" in stops[0].words and f"{result.drop:.3f}" in stops[1].words
