"""Who may come in: everybody, unless a password is set or Streamlit's own login (OIDC) is configured.

`EXPERTSCOPE_PASSWORD`: one password for all. An `[auth]` section in `.streamlit/secrets.toml`: Streamlit asks the
identity provider named there; `EXPERTSCOPE_USERS` (e-mail addresses, separated by commas) then says who of its users
may come in. See docs/operations.md.
"""

from __future__ import annotations

import hmac
import os
import time

import streamlit as st

from . import in_line, text

PASSWORD, USERS = "EXPERTSCOPE_PASSWORD", "EXPERTSCOPE_USERS"
DELAY = 1.0
"""Seconds that a wrong password costs its session."""

_INSIDE = "es_inside"


def check() -> None:
    """Nothing for who may come in; everybody else is asked, and the page ends here."""
    if _login_configured() and not _logged_in():
        st.stop()
    if os.environ.get(PASSWORD) and not st.session_state.get(_INSIDE):
        _ask()
        st.stop()


def _login_configured() -> bool:
    return st.secrets.load_if_toml_exists() and "auth" in st.secrets


def _logged_in() -> bool:
    if not st.user.is_logged_in:
        st.subheader("ExpertScope", anchor=False)
        st.button("Log in", type="primary", on_click=st.login)
        return False
    users = {user.strip().casefold() for user in os.environ.get(USERS, "").split(",") if user.strip()}
    mail = str(st.user.get("email", ""))
    if users and not (st.user.get("email_verified", True) and mail.casefold() in users):
        st.error(f"{text.plain(mail or 'This account')} may not use this dashboard. Ask whoever runs it.")
        st.button("Log out", on_click=st.logout)
        return False
    return True


def _ask() -> None:
    st.subheader("ExpertScope", anchor=False)
    with st.form("es_door", width=420):
        given = st.text_input("Password", type="password", max_chars=1000)
        sent = st.form_submit_button("Come in", type="primary")
    if not sent:
        return
    if hmac.compare_digest(given.encode(), os.fsencode(os.environ[PASSWORD])):
        st.session_state[_INSIDE] = True
        st.rerun()
    with in_line.LINE.outside():
        time.sleep(DELAY)
    st.error("That is not the password.")
