"""Presenting a page: one HTML file of what is on it, and a script that gets the same numbers without it.

Every picture and table with a download menu is noted as the page is drawn; the report is made of those when it is
asked for, in Streamlit's download thread.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import streamlit as st

if TYPE_CHECKING:  # charts take most of a second to import: a page's head is on the screen by then
    import pandas as pd
    from streamlit.delta_generator import DeltaGenerator

    from core import export
    from core.derived import DerivedResult
    from core.fact_sets import FactSet
    from core.picture import Picture
    from core.present import Part
    from core.script import Script

_NOTED, _LAST, _PLACE = "es_noted", "es_last_noted", "es_present"
HELP = "One HTML file of what is on this page: charts that stay interactive, captions, tables, settings. Works offline."


@dataclass(frozen=True)
class Noted:
    """A part of the page, and the result that it shows (None: it says where it comes from in its own way)."""

    part: Part
    result: export.Result | None


@dataclass(frozen=True)
class Place:
    """Where a page's buttons stand, what its report is called and begins with; what it offers beside its figures (see
    `offer`, `uses`); `of_result`: the script of a result, where the page has one of its own."""

    container: DeltaGenerator
    name: str
    title: str
    findings: tuple[str, ...] = ()
    script: Script | None = None
    about: Any = None
    of_result: Callable[[Any], Script] | None = None
    results: tuple[export.Result, ...] = ()


def begin() -> None:
    """At the top of every page: nothing is on it yet."""
    st.session_state[_NOTED] = {}
    st.session_state.pop(_LAST, None)
    st.session_state.pop(_PLACE, None)


def note(
    name: str, title: str, picture: Picture | None, table: pd.DataFrame | None, result: export.Result | None,
    *, caption: str = "",
) -> None:  # fmt: skip
    """Note a picture, a table or both under `name`; drawn again (by a fragment), it takes the old one's place.
    `caption`: plain text that stands below it in the report."""
    from core.present import Part

    _noted()[name] = Noted(Part(title, picture, table, caption), result)
    st.session_state[_LAST] = name


def caption(text: str) -> None:
    """A caption (Markdown) on the page, and in the report below what was noted last."""
    st.caption(text)
    _add(text)


def sentence(text: str) -> None:
    """The same as running text (Markdown)."""
    st.markdown(text)
    _add(text)


def _add(text: str) -> None:
    name = st.session_state.get(_LAST, "")
    if (last := _noted().get(name)) is not None:
        part = dataclasses.replace(last.part, caption=f"{last.part.caption} {_without_escapes(text)}".strip())
        _noted()[name] = Noted(part, last.result)


def intro(text: str) -> None:
    """A caption (Markdown) on the page that is about all below it, and one of the sentences with which the report
    begins. Needs `place`."""
    st.caption(text)
    spot: Place = st.session_state[_PLACE]
    say([*spot.findings, _without_escapes(text)])


def place(name: str, title: str, *, script: Callable[[Any], Script] | None = None) -> None:
    """Where the two buttons will stand: called in a page's head. `name`: of the page; `title`: of its report; `script`:
    of a result, where the page knows a shorter one than `core.script.of_result`."""
    spot = st.container(horizontal=True, vertical_alignment="center", width="content")
    st.session_state[_PLACE] = Place(spot, name, title, of_result=script)


def say(findings: Sequence[str]) -> None:
    """Sentences with which the report begins."""
    spot: Place = st.session_state[_PLACE]
    st.session_state[_PLACE] = dataclasses.replace(spot, findings=tuple(findings))


def offer(about: Any, script: Script | None = None) -> None:
    """What is noted can be had as a report also where it shows no result. `about`: where it comes from (JSON values);
    `script`: how to get it again, beside those of the results."""
    spot: Place = st.session_state[_PLACE]
    st.session_state[_PLACE] = dataclasses.replace(spot, about=about, script=script)


def uses(*results: export.Result) -> None:
    """What is on the page beside its figures comes from these too: the report names them, the script gets them."""
    spot: Place = st.session_state[_PLACE]
    st.session_state[_PLACE] = dataclasses.replace(spot, results=results)


def of_set(result: DerivedResult, *, fact_set: FactSet) -> Script:
    """The script of a result; short where its facts are those of `fact_set`."""
    from core import script

    from . import base

    its = result.request.facts
    whole = fact_set if len(its) > 1 and base.facts_of(fact_set) == its else None
    return script.of_derived(result.request, bundled=base.bundled().get, fact_set=whole)


def notes() -> list[str]:
    """What has to be said of the numbers on the page (`export.notes`), each sentence once."""
    results = _results(st.session_state.get(_PLACE))
    if not results:
        return []
    from core import export

    return list(dict.fromkeys(note for result in results for note in export.notes(result)))


def end() -> None:
    """At the end of every page: the buttons, if the page has a place for them and something to present. The parts are
    read when the report is asked for: what a fragment draws anew is in it as it is then."""
    spot: Place | None = st.session_state.pop(_PLACE, None)
    noted = _noted()
    results = _results(spot)
    if spot is None or not (results or (noted and spot.about is not None)):
        return
    from core import script

    from . import base

    write = spot.of_result or functools.partial(script.of_result, bundled=base.bundled().get)
    made = script.together([write(result) for result in results] + ([spot.script] if spot.script else []))
    stem = re.sub(r"[^A-Za-z0-9.-]+", "_", f"{spot.name}_{spot.title}").strip("_.-")[:100]
    report = functools.partial(_page, spot, noted, tuple(results), made)
    with spot.container:
        st.download_button(
            "Report", report, file_name=f"{stem}.html", mime="text/html", on_click="ignore", help=HELP,
            icon=":material/description:", key=f"es_report_{spot.name}",
        )  # fmt: skip
        if not (made.command or made.python):
            return
        with st.popover("Script", icon=":material/terminal:", key=f"es_script_{spot.name}"):
            if made.command:
                st.caption("The same numbers on the command line, in the project's folder:")
                st.code(made.command, language="bash", wrap_lines=True)
            if made.python:
                st.caption("The same numbers in Python:")
                st.code(made.python, language="python", wrap_lines=True)


def _results(spot: Place | None) -> list[export.Result]:
    """The results that the page shows, each once."""
    shown = [one.result for one in _noted().values() if one.result is not None]
    return list({id(result): result for result in [*(spot.results if spot else ()), *shown]}.values())


def _without_escapes(markdown: str) -> str:
    return re.sub(r"\\(.)", r"\1", markdown)


def _noted() -> dict[str, Noted]:
    return st.session_state.setdefault(_NOTED, {})


def _page(spot: Place, noted: dict[str, Noted], results: tuple[export.Result, ...], script: Script) -> bytes:
    from core import export, present

    lines = dict.fromkeys(line for result in results for line in export.caption(result))
    origins = [export.origin(result) for result in results]
    if spot.about is not None:
        origins.append(spot.about)
    return present.page(
        spot.title, [one.part for one in noted.values()], findings=spot.findings, lines=list(lines),
        script=script if script.command or script.python else None,
        about=origins[0] if len(origins) == 1 else origins,
    )  # fmt: skip
