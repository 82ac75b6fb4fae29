"""Presenting a page: one HTML file of what is on it, and a script that gets the same numbers without it.

Every picture and table with a download menu is noted as the page is drawn; the report is made of those when it is
asked for, in Streamlit's download thread.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import streamlit as st

if TYPE_CHECKING:  # charts take most of a second to import: a page's head is on the screen by then
    import pandas as pd

    from core import export
    from core.picture import Picture
    from core.present import Part
    from core.script import Script

_NOTED, _LAST = "es_noted", "es_last_noted"
HELP = "One HTML file of what is on this page: charts that stay interactive, captions, tables, settings. Works offline."


@dataclass(frozen=True)
class Noted:
    """A part of the page, and the result that it shows (None: it says where it comes from in its own way)."""

    part: Part
    result: export.Result | None


def begin() -> None:
    """At the top of every page: nothing is on it yet."""
    st.session_state[_NOTED] = {}
    st.session_state.pop(_LAST, None)


def note(
    name: str, title: str, picture: Picture | None, table: pd.DataFrame | None, result: export.Result | None
) -> None:
    """Note a picture, a table or both under `name`; drawn again (by a fragment), it takes the old one's place."""
    from core.present import Part

    _noted()[name] = Noted(Part(title, picture, table), result)
    st.session_state[_LAST] = name


def caption(text: str) -> None:
    """A caption (Markdown) on the page, and in the report below what was noted last."""
    st.caption(text)
    name = st.session_state.get(_LAST, "")
    if (last := _noted().get(name)) is not None:
        shown = re.sub(r"\\(.)", r"\1", text)
        part = dataclasses.replace(last.part, caption=f"{last.part.caption} {shown}".strip())
        _noted()[name] = Noted(part, last.result)


def draw(
    name: str, title: str, results: Sequence[export.Result], script: Script, *, findings: Sequence[str] = ()
) -> None:
    """The two buttons. `name`: of the page; `title`: of the report; `results`: what it is about; `findings`: its first
    sentences. The parts are read when the report is asked for, so that the buttons may stand above them."""
    stem = re.sub(r"[^A-Za-z0-9.-]+", "_", f"{name}_{title}").strip("_.-")[:100]
    make = functools.partial(_page, title, _noted(), tuple(results), script, tuple(findings))
    st.download_button(
        "Report", make, file_name=f"{stem}.html", mime="text/html", on_click="ignore", help=HELP,
        icon=":material/description:", key=f"es_report_{name}",
    )  # fmt: skip
    with st.popover("Script", icon=":material/terminal:", key=f"es_script_{name}"):
        st.caption("The same numbers on the command line, in the project's folder:")
        st.code(script.command, language="bash", wrap_lines=True)
        st.caption("The same numbers in Python:")
        st.code(script.python, language="python", wrap_lines=True)


def of_page(name: str, title: str, *, findings: Sequence[str] = ()) -> None:
    """The two buttons for everything that was noted so far: called when the page is drawn to its end. A container that
    was made at its top is the place for them."""
    from core import script

    from . import base

    results = list({id(noted.result): noted.result for noted in _noted().values() if noted.result is not None}.values())
    if not results:
        return
    known = base.bundled().get
    scripts = [script.of_result(result, bundled=known) for result in results]
    draw(name, title, results, script.together(scripts), findings=findings)


def _noted() -> dict[str, Noted]:
    return st.session_state.setdefault(_NOTED, {})


def _page(
    title: str, noted: dict[str, Noted], results: tuple[export.Result, ...], script: Script, findings: tuple[str, ...]
) -> bytes:
    from core import export, present

    lines = dict.fromkeys(line for result in results for line in export.caption(result))
    origins = [export.origin(result) for result in results]
    return present.page(
        title, [one.part for one in noted.values()], findings=findings, lines=list(lines), script=script,
        about=origins[0] if len(origins) == 1 else origins,
    )  # fmt: skip
