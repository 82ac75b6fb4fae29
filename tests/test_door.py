"""Who may come in: with a password or a login nobody sees, asks or computes anything before."""

from __future__ import annotations

import pytest
from streamlit.testing.v1 import AppTest
from test_trace_page import APP, JAPAN, bench, engine, finished, opened, params_of, shown  # noqa: F401

from core.links import View, to_query
from core.requests import TraceRequest
from pages.parts import door

PAGES = ["app.py", *sorted(f"pages/{path.name}" for path in (APP.parent / "pages").glob("*.py"))]


@pytest.fixture(autouse=True)
def no_delay(monkeypatch):
    monkeypatch.setattr(door, "DELAY", 0.0)


def at(page_path, params=None):
    page = AppTest.from_file(str(APP), default_timeout=60)
    if page_path != "app.py":
        page.switch_page(page_path)
    for name, value in (params or {}).items():
        page.query_params[name] = value
    return page.run()


@pytest.mark.parametrize("where", PAGES)
def test_without_the_password_every_page_shows_the_door_only(bench, engine, monkeypatch, where):  # noqa: F811
    monkeypatch.setenv(door.PASSWORD, "böse 🔑")
    page = at(where)
    assert not page.exception and [box.label for box in page.text_input] == ["Password"]
    assert len(page.main) <= 3 and not page.sidebar.children and not engine.asked


def test_a_wrong_password_is_refused_and_the_right_one_opens_what_the_link_asked_for(bench, engine, monkeypatch):  # noqa: F811
    monkeypatch.setenv(door.PASSWORD, "böse 🔑")
    request = TraceRequest(fact=JAPAN, noise=2.0)
    page = opened(to_query(request, View(), bundled=True))
    for wrong in ("", "böse", "böse 🔑 "):
        page.text_input[0].set_value(wrong)
        page = page.button[0].click().run()
        assert [e.value for e in page.error] == ["That is not the password."] and not engine.asked
    page.text_input[0].set_value("böse 🔑")
    page = finished(page.button[0].click().run(), bench)
    assert engine.asked == [request] and params_of(page) == to_query(request, View(), bundled=True)
    assert "That is not" not in shown(page)


class User(dict):
    """A stand-in for `st.user`."""

    def __init__(self, logged_in=True, **claims):
        super().__init__(claims)
        self.is_logged_in = logged_in


@pytest.mark.parametrize(
    ("user", "users", "inside"),
    [
        (User(False), "", False),
        (User(email="ada@lab.org"), "", True),
        (User(email="Ada@Lab.org"), "bob@lab.org, ada@lab.org", True),
        (User(email="eve@lab.org"), "ada@lab.org", False),
        (User(email="ada@lab.org", email_verified=False), "ada@lab.org", False),
        (User(), "ada@lab.org", False),
    ],
)
def test_with_a_login_configured_only_its_users_come_in(bench, engine, monkeypatch, user, users, inside):  # noqa: F811
    monkeypatch.setattr(door, "_login_configured", lambda: True)
    monkeypatch.setattr(door.st, "user", user)
    monkeypatch.setenv(door.USERS, users)
    page = finished(opened(), bench)
    assert bool(engine.asked) is inside
    assert bool(page.metric) is inside


def test_without_settings_the_door_is_open(bench, engine):  # noqa: F811
    assert finished(opened(), bench).metric
