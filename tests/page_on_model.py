"""A page without a browser, on a small random model that really answers: what the tests of several pages share."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import checkpoints
import pytest
import tokenizers_for_tests
from streamlit.testing.v1 import AppTest

from cache import Store
from core.checks import ensure_checked
from core.moe import MoeModel
from core.requests import Fact
from core.workbench import Engine, StoreStatus, Workbench
from pages.parts import base, pictures

WAIT = 60.0
APP = Path(__file__).resolve().parent.parent / "app.py"


def small_model() -> MoeModel:
    """A random model of a few layers that knows words."""
    found = MoeModel(checkpoints.build("qwen2_moe"), tokenizers_for_tests.tokenizer("prefix_space"))
    ensure_checked(found)
    return found


@contextlib.contextmanager
def workbench_for(model: MoeModel, facts: Sequence[Fact], store: Path) -> Iterator[Workbench]:
    """The workbench of all pages drawn inside: this model, these as the bundled facts, a store in the file `store`."""
    with Store.open(store) as opened_store, pytest.MonkeyPatch.context() as monkeypatch:
        engine = Engine(lambda name, **options: model, lambda *a, **o: [], lambda *a: None)
        made = Workbench(opened_store, engine=engine)
        monkeypatch.setattr(made, "store_status", lambda: StoreStatus(limit=10**9))
        monkeypatch.setattr(made, "warm_up", lambda: None)
        monkeypatch.setattr(base, "workbench", lambda: made)
        monkeypatch.setattr(base, "bundled", lambda: {fact.case_id: fact for fact in facts})
        monkeypatch.setattr(pictures, "_cache", type(pictures._cache)())
        yield made
        made.close(WAIT)


def open_page(script: str, params: Mapping[str, str]) -> AppTest:
    """The page `pages/<script>.py` by a link with these parameters, after every job has ended."""
    page = AppTest.from_file(str(APP), default_timeout=60).switch_page(f"pages/{script}.py")
    for name, value in params.items():
        page.query_params[name] = value
    return drawn(page.run())


def drawn(page: AppTest) -> AppTest:
    """The page after every job has ended."""
    deadline = time.monotonic() + WAIT
    while page.get("progress"):
        assert time.monotonic() < deadline, shown(page)
        for job in base.workbench().jobs.all():
            assert job.wait(WAIT)
        page.run()
    assert not page.exception, page.exception
    return page


def shown(page: AppTest) -> str:
    """All text on the page as it reads, one string."""
    kinds = ("markdown", "caption", "warning", "error", "info", "subheader")
    parts = [element.value for kind in kinds for element in getattr(page, kind)]
    parts += [element.proto.body for element in page.get("html")]
    return re.sub(r"\\(.)", r"\1", "\n".join(str(part) for part in parts))


def params_of(page: AppTest) -> dict[str, str]:
    """The parameters of the page's link."""
    return {name: values[0] if isinstance(values, list) else values for name, values in page.query_params.items()}


def control(page: AppTest, kind: str, label: str):
    """The widget of that kind with that label."""
    return next(found for found in getattr(page, kind) if found.label == label)
