"""Presenting a page: one HTML file of what is on it, and a script that gets the same numbers without it.

Every picture and table with a download menu is noted as the page is drawn; the report is made of those when it is
asked for, in Streamlit's download thread.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import streamlit as st

if TYPE_CHECKING:  # charts take most of a second to import: a page's head is on the screen by then
    import pandas as pd

    from core import export
    from core.picture import Picture
    from core.present import Part
    from core.script import Script

_PARTS, _LAST = "es_parts", "es_last_part"
HELP = "One HTML file of what is on this page: charts that stay interactive, captions, tables, settings. Works offline."


def begin() -> None:
    """At the top of every page: nothing is on it yet."""
    st.session_state[_PARTS] = {}
    st.session_state.pop(_LAST, None)


def record(name: str, title: str, picture: Picture | None, table: pd.DataFrame | None) -> None:
    """Note a picture, a table or both under `name`; drawn again (by a fragment), it takes the old one's place."""
    from core.present import Part

    st.session_state.setdefault(_PARTS, {})[name] = Part(title, picture, table)
    st.session_state[_LAST] = name


def caption(text: str) -> None:
    """A caption (Markdown) on the page, and in the report below what was noted last."""
    from core.present import Part

    st.caption(text)
    parts: dict[str, Part] = st.session_state.get(_PARTS, {})
    last = parts.get(st.session_state.get(_LAST, ""))
    if last is not None:
        shown = re.sub(r"\\(.)", r"\1", text)
        joined = f"{last.caption} {shown}".strip()
        parts[st.session_state[_LAST]] = Part(last.title, last.picture, last.table, joined)


def draw(name: str, title: str, result: export.Result, script: Script, *, findings: Sequence[str] = ()) -> None:
    """The two buttons. `name`: of the page; `title`: of the report; `findings`: its first sentences. What is on the
    page is read when the report is asked for, so the buttons may stand above it."""
    parts = st.session_state.setdefault(_PARTS, {})
    stem = re.sub(r"[^A-Za-z0-9.-]+", "_", f"{name}_{title}").strip("_.-")[:100]
    make = functools.partial(_page, title, parts, result, script, tuple(findings))
    st.download_button(
        "Report", make, file_name=f"{stem}.html", mime="text/html", on_click="ignore", help=HELP,
        icon=":material/description:", key=f"es_report_{name}",
    )  # fmt: skip
    with st.popover("Script", icon=":material/terminal:", key=f"es_script_{name}"):
        if script.command:
            st.caption("The same numbers on the command line, in the project's folder:")
            st.code(script.command, language="bash", wrap_lines=True)
        st.caption("The same numbers in Python:")
        st.code(script.python, language="python", wrap_lines=True)


def _page(
    title: str, parts: dict[str, Part], result: export.Result, script: Script, findings: tuple[str, ...]
) -> bytes:
    from core import export, present

    return present.page(
        title, list(parts.values()), findings=findings, lines=export.caption(result), script=script,
        about=export.origin(result),
    )  # fmt: skip
