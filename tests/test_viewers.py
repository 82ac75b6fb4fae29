"""Viewers at once (bench/viewers): what they are shown is what they asked; and what checks them sees what is wrong."""

from __future__ import annotations

import asyncio
import dataclasses
import random

import numpy as np
import pytest
import torch
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

from bench.served import serve
from bench.viewers import load
from bench.viewers.checks import wrong
from bench.viewers.places import TRACE, Place
from bench.viewers.process import Sample, allowed, growth
from bench.viewers.report import quantile
from bench.viewers.screen import Screen
from bench.viewers.viewer import Viewer, some_world
from core import facts
from core.links import Link, View
from core.requests import TraceRequest


@pytest.fixture(scope="module")
def shared():
    torch.set_num_threads(1)
    return load.prepare(some_world(facts.bundled(), n=2, per_set=2, sets=2, seeds=2))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serve(tmp_path_factory.mktemp("viewers")) as server:
        yield server
    assert not load.failures_in(server.said), server.said[-6000:]


@pytest.mark.slow
def test_viewers_at_once_see_what_they_asked_for(server, shared):
    found = asyncio.run(load.watched(
        server, shared, viewers=3, studies=0, every=0.1, seconds=600, wild=False, seed=5, clicks=5,
    ))  # fmt: skip
    assert found.wrong == [] and not found.said
    assert len(found.looks) == 3 * 6 and found.left["sessions"] == 0
    assert len({look.page for look in found.looks}) >= 4


def test_a_wrong_number_on_the_screen_is_seen(server, shared):
    """The same screens against answers that are a little different, one at a time."""
    at = Link(TraceRequest(shared.world.facts[0]), View(layer=6, pos=1), True)
    one = shared.answers[at.request]
    expert = int(np.flatnonzero(one.routed[6, 1])[0])

    async def look() -> Screen:
        viewer = Viewer(0, server.url, shared, random.Random(0))
        place, step = viewer._by_link(Place(TRACE, at))
        assert (await viewer._look("link", (place, step))).wrong == ()
        await viewer.leave()
        return viewer.screen

    screen = asyncio.run(look())

    def said(request: TraceRequest = at.request, view: View = at.view, **changes) -> str:
        answers = load.Answers.__new__(load.Answers)
        answers._traced = {request: dataclasses.replace(one, **changes)}
        place = Place(TRACE, Link(request, view, True))
        return " ".join(wrong(place, screen, answers, shared.world.known))

    def moved(values: np.ndarray, *at: int) -> np.ndarray:
        out = values.copy()
        out[at] += 0.01
        return out

    assert said() == ""
    assert "chart es_cells has other numbers" in said(rescue=moved(one.rescue, 3, 2))
    assert "“The whole layer patch here” says" in said(rescue=moved(one.rescue, 6, 1))
    assert "chart es_experts has other numbers" in said(experts=moved(one.experts, 6, 1, expert))
    assert "other rescues than were computed" in said(experts=moved(one.experts, 6, 1, expert))
    assert "the head says" in said(clean=one.clean + 0.03)
    assert "the head says" in said(p_true=(one.p_true[0], one.p_true[1] + 0.02))
    routed = one.routed.copy()
    routed[6, 2, np.flatnonzero(~routed[6, 2])[0]] = True
    assert "the routing of layer 6" in said(routed=routed)
    assert "the address is" in said(at.request.replace(noise=2.5))
    assert "the address is" in said(view=View(layer=6, pos=2))
    screen.values[screen.widget("number_input", label="Noise level").proto.id] = 2.5
    assert "the field Noise level shows 2.5, not 3.0" in said()


def message(run: str = "1", **fields) -> ForwardMsg:
    """A message of a run; `path` and `text`: an element of text, `fragment`: drawn by it, `keep`: under that hash."""
    out = ForwardMsg()
    if "fragments" in fields:
        out.metadata.run.script_run_id = run
        out.metadata.run.fragment_ids.extend(fields["fragments"])
        out.new_session.page_script_hash = "page"
    elif "ended" in fields:
        out.script_finished = fields["ended"]
    else:
        out.metadata.delta_path.extend(fields["path"])
        if "ref" in fields:
            out.ref_hash = fields["ref"]
            return out
        out.delta.new_element.markdown.body = fields["text"]
        out.delta.fragment_id = fields.get("fragment", "")
        out.hash, out.metadata.cacheable = fields.get("keep", ""), "keep" in fields
    return out


def test_a_screen_forgets_what_the_next_run_does_not_draw():
    screen = Screen()

    def show(*messages: ForwardMsg) -> str:
        for one in messages:
            screen.apply(one.SerializeToString())
        return " ".join(text for text in screen.text.split())

    done = message(ended=ForwardMsg.FINISHED_SUCCESSFULLY)
    early = message(ended=ForwardMsg.FINISHED_EARLY_FOR_RERUN)
    of_fragment = message(ended=ForwardMsg.FINISHED_FRAGMENT_RUN_SUCCESSFULLY)
    first = [message(path=[0, 0], text="a", keep="hash"), message(path=[0, 1], text="b"),
             message(path=[0, 2], text="c", fragment="f")]  # fmt: skip
    assert show(message("1", fragments=[]), *first, done) == "a b c"
    assert screen.hashes == ["hash"]
    assert show(message("2", fragments=["f"]), of_fragment) == "a b"
    assert show(message("3", fragments=[]), message(path=[0, 0], text="A"), early) == "A b"
    assert show(message("4", fragments=[]), message(path=[0, 1], ref="hash"), done) == "a"
    assert screen.problems == []
    show(message(path=[0, 1], ref="another"))
    assert screen.problems == ["the server referred to a message that this tab does not have"]


def test_growth_is_the_slope_after_the_first_minute():
    def samples(per_minute: float, jump: int = 0) -> list[Sample]:
        memory = [1e8 + 1e9 * min(t, 60) / 60 + per_minute * max(t - 60, 0) / 60 for t in range(300)]
        return [Sample(t, int(memory[t]) + jump * (t > 200), 1, 1, 0.0) for t in range(0, 300, 2)]

    assert growth(samples(5e6)) == pytest.approx(5e6, rel=1e-3)
    assert growth(samples(0)) == 0
    assert growth(samples(0, jump=10**7)) == 0  # a single jump is no growth
    assert growth(samples(5e6)[:60]) is None  # too short to say
    assert allowed(samples(0)) == pytest.approx(0.01 * 1.1e9)
    assert [quantile([4.0, 1.0, 3.0, 2.0], share) for share in (0.0, 0.5, 0.95, 1.0)] == [1.0, 3.0, 4.0, 4.0]
