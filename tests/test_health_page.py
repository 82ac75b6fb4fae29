"""The Health page tells how the server is, without what viewers typed."""

from __future__ import annotations

import json
import os

import psutil
from streamlit.testing.v1 import AppTest
from test_trace_page import APP, WAIT, bench, engine, finished, opened, shown  # noqa: F401

from core import health
from core.requests import Fact, TraceRequest

SECRET = Fact(prompt="{} told nobody", subject="Zaphod", true="Arthur", foil="Ford")


def test_it_shows_model_queue_and_memory_and_no_prompt(bench, engine):  # noqa: F811
    import threading

    before = health.look(bench)
    assert (before.model, before.jobs, before.ended, before.studies) == ("", [], {}, 0)
    finished(opened(), bench)
    engine.gate = threading.Event()
    engine.begun.clear()
    running = bench.submit(TraceRequest(fact=SECRET))
    waiting = bench.submit(TraceRequest(fact=SECRET, seed=1))
    assert engine.begun.wait(WAIT)
    now = health.look(bench)
    assert now.model == "demo" and now.ended == {"done": 1}
    assert [(job["job"], job["state"], job["queue"]) for job in now.jobs] == [
        (running.id, "running", "traces"), (waiting.id, "waiting", "traces"),
    ]  # fmt: skip
    rss = psutil.Process(os.getpid()).memory_info().rss
    assert abs(now.memory - rss) < 0.3 * rss and now.memory_total == psutil.virtual_memory().total
    assert json.loads(json.dumps(now.to_dict()))["jobs"][0]["job"] == running.id
    page = AppTest.from_file(str(APP), default_timeout=60).switch_page("pages/Health.py").run()
    assert not page.exception
    values = {metric.label: metric.value for metric in page.metric}
    assert (values["model"], values["queue"], values["ended of late"]) == ("demo", "1, 1 waiting", "1 done")
    assert "Zaphod" not in shown(page) + json.dumps(now.to_dict()) + str(page.dataframe[0].value)
    engine.gate.set()
    assert running.wait(WAIT) and waiting.wait(WAIT)


def test_trouble_with_the_store_is_said(bench, monkeypatch):  # noqa: F811
    from core.workbench import StoreStatus

    monkeypatch.setattr(bench, "store_status", lambda: StoreStatus(error="The disk is full."))
    assert "The disk is full." in health.look(bench).problems
    page = AppTest.from_file(str(APP), default_timeout=60).switch_page("pages/Health.py").run()
    assert "disk is full" in " ".join(error.value for error in page.error)
