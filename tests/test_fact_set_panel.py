"""The widgets that choose facts, on a page of their own: what is chosen is told, and said in facts."""

from __future__ import annotations

import re

import pytest
from streamlit.testing.v1 import AppTest

from cache.fact_lists import FactLists
from core.fact_sets import FactSet, choose
from core.requests import Fact
from core.workbench import Workbench
from pages.parts import base

LISTED = [Fact("The {} is", f"s{i}", "a", "b", case_id=i, relation="xy"[i % 2]) for i in range(20)]


def page():
    import streamlit as st

    from core.fact_sets import FactSet
    from core.links import Reader
    from pages.parts import address, base, fact_set_panel

    here = address.Address("test", read=lambda p: FactSet.from_query(Reader(p)), write=FactSet.to_query)
    current = here.begin()
    fact_set_panel.draw(current, changed=here.change, place="test ")
    here.write()
    st.session_state["chosen"] = base.facts_of(here.value)
    address.end()


@pytest.fixture
def bench(tmp_path, monkeypatch):
    made = Workbench(None, fact_lists=FactLists(tmp_path / "store.duckdb"))
    monkeypatch.setattr(base, "workbench", lambda: made)
    made.fact_lists.put("mine", LISTED)
    yield made
    made.close()


def opened(**params: str) -> AppTest:
    app = AppTest.from_function(page)
    for name, value in params.items():
        app.query_params[name] = value
    return ran(app)


def ran(what) -> AppTest:
    """The page after it ran, or after a widget changed."""
    app = what.run()
    assert not app.exception, app.exception
    return app


def said(app: AppTest) -> str:
    return re.sub(r"\\(.)", r"\1", "\n".join(c.value for c in app.caption))


def params(app: AppTest) -> dict[str, str]:
    return {name: values[0] if isinstance(values, list) else values for name, values in app.query_params.items()}


def test_every_choice_is_told_and_in_the_address(bench):
    app = opened()
    assert app.session_state["chosen"] == choose(FactSet(), base.bundled().values())
    ran(app.selectbox[0].select("mine"))
    assert app.session_state["chosen"] == tuple(LISTED) and "All 20 facts of 2 relations." in said(app)
    ran(app.multiselect[0].select("y"))
    how_many, seed = app.number_input
    ran(how_many.set_value(4))
    ran(app.number_input[1].set_value(3))
    expected = FactSet("mine", ("y",), 4, 3)
    assert app.session_state["chosen"] == choose(expected, LISTED)
    assert params(app) == expected.to_query()
    assert "4 of 10 facts of 1 relation, drawn with seed 3." in said(app)
    ran(app.number_input[0].set_value(None))
    assert params(app)["n"] == "all" and len(app.session_state["chosen"]) == 10
    ran(app.selectbox[0].select("bundled"))
    assert params(app) == {"n": "all", "facts_seed": "3"}  # another list has other relations


def test_a_link_is_shown_as_it_is_and_what_is_missing_is_said(bench):
    app = opened(facts="mine", relations="x|z", n="5")
    assert app.multiselect[0].value == ["x", "z"] and len(app.session_state["chosen"]) == 5
    assert "The list has no relation z." in said(app)
    gone = opened(facts="no such list")
    assert gone.session_state["chosen"] == ()
    assert "no list of facts" in gone.error[0].value and gone.selectbox[0].value == "no such list"
