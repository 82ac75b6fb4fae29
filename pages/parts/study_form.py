"""The form of a new study: every setting visible and editable, what is wrong said beside the field.

A preset fills the form; what is typed wins. The study begins with a click, in the background.
"""

from __future__ import annotations

import re
from typing import Any

import streamlit as st

from core import facts
from core.cli_lists import LIST
from core.errors import ExpertScopeError, InputError
from core.requests import Fact, ModelSpec
from core.study.cases import CASE_SETS, SCAN
from core.study.explain import CHOICES, GROUPS, HELP, PRESET_WORDS
from core.study.settings import BUNDLED, PRESETS, StudySettings, preset

from . import address, base, library_lists, model_panel, study_state, text

ALWAYS = ("n", "seed")
"""Settings that stand in the open; the others are in the expanders."""
GROUP_TITLES = {
    "facts": "Facts and filters",
    "corruption": "Corruption",
    "selection": "Selection and controls",
    "statistics": "Statistics",
}
FIELDS = {"model", "name", "facts", "cases", *HELP}
"""Fields beside which something can be said."""
DEMO_NAME = "demo"
_MODEL, _PROBLEM = "es_study_model", "es_study_problem"


def draw(*, first: bool) -> None:
    """The form; `first`: there is no study yet, so the demo is offered at a click."""
    if first:
        st.button(
            "Start the demo study", type="primary", icon=":material/play_arrow:", on_click=_start_demo,
            help="256 bundled facts, the demo model, preset demo. It takes a minute or two on two cores.",
        )  # fmt: skip
        with st.expander("Start another one"):
            _form()
    else:
        st.subheader("New study", anchor=False)
        _form()


@st.fragment
def _form() -> None:
    """A fragment: typing redraws only this."""
    spec: ModelSpec = st.session_state.get(_MODEL, ModelSpec())
    problem: tuple[str, str] | None = st.session_state.get(_PROBLEM)
    with st.grid(2, min_column_width=330, gap="large"):
        left, right = st.container(), st.container()
    with left:
        model_panel.draw(spec, place="study ", changed=_set_model)
        _said("model", problem)
        source, listed, cases = _facts(problem)
    with right:
        chosen = _preset(spec, source)
        base_settings = preset(chosen).replace(model=spec, facts=source or "file", cases=cases)
        taken = {status.name for status in base.workbench().studies.all()}
        suggested = _free(chosen if spec.name == "demo" else f"{spec.name.split('/')[-1]}-{chosen}", taken)
        name = st.text_input("Name", suggested, key=address.key(f"study name {suggested}"), max_chars=120)
        wrong = [_name_problem(name, taken)]
        if wrong[0]:
            st.error(text.plain(wrong[0]))
        else:
            _said("name", problem)
        settings, errors = _fields(ALWAYS, base_settings, chosen, problem, columns=2, least=130)
        wrong += errors
    with st.expander("All settings", expanded=False):
        for group, names in GROUPS.items():
            st.markdown(f"**{GROUP_TITLES[group]}**")
            settings, errors = _fields([n for n in names if n not in ALWAYS], settings, chosen, problem, columns=3)
            wrong += errors
    changed = [n for group in GROUPS.values() for n in group if getattr(settings, n) != getattr(preset(chosen), n)]
    if changed:
        st.caption(f"Changed from the preset: {', '.join(n.replace('_', ' ') for n in changed)}.")
    wrong = [w for w in wrong if w]
    if wrong:
        st.caption("The study cannot begin like this: see what is marked above.")
    ready = not wrong and listed is not None
    if st.button(
        "Start the study", type="primary", icon=":material/play_arrow:", disabled=not ready, key="es_study_start",
        help=None if listed is not None else "Choose a list of facts first.",
    ):  # fmt: skip
        start(name, settings, listed)
    if problem is not None and problem[0] not in FIELDS:
        st.error(text.plain(problem[1]))


def start(name: str, settings: StudySettings, listed: list[Fact]) -> None:
    """Begin the study and look at it, or note what is wrong beside its field."""
    st.session_state.pop(_PROBLEM, None)
    try:
        begun = base.workbench().studies.start(name, settings, listed)
    except ExpertScopeError as error:
        st.session_state[_PROBLEM] = (getattr(error, "field", ""), text.on_page(str(error)))
    else:
        study_state.look(study=begun)
    address.rerun()


def _start_demo() -> None:
    address.touch()
    desk = base.workbench().studies
    begun = study_state.doing(lambda: desk.start(DEMO_NAME, preset("demo"), facts.bundled()))
    if begun is not None:
        study_state.look(study=begun)


def _set_model(spec: ModelSpec) -> None:
    st.session_state[_MODEL] = spec


def _preset(spec: ModelSpec, source: str | None) -> str:
    default = "demo" if spec.name == "demo" and source == BUNDLED else "paper"
    chosen = st.segmented_control(
        "Preset", list(PRESETS), default=default, required=True, wrap=True, key=address.key(f"study preset {default}"),
        help="Fills the form. Every setting can be changed afterwards.",
    )  # fmt: skip
    st.caption(PRESET_WORDS[chosen])
    return chosen


def _facts(problem: tuple[str, str] | None) -> tuple[str | None, list[Fact] | None, str]:
    """(name of the list, the facts, the case set); None where there is no list yet."""
    key = address.key("study source")
    stored = base.workbench().fact_lists.names()
    source = st.segmented_control(
        "Facts", [BUNDLED, *(["a list"] if stored else []), "a file"], default=BUNDLED, required=True, key=key,
        wrap=True,
        help="The bundled facts belong to the demo model. A list: of the Library page. A file: CounterFact as JSON, "
        "JSONL, CSV or Parquet.",
    )  # fmt: skip
    listed, name, cases = None, None, SCAN
    if source == "a list":
        listed, name = _stored(stored)
    elif source == BUNDLED:
        try:
            listed, name = facts.bundled(), BUNDLED
        except ExpertScopeError as error:
            st.error(text.error(error))
    else:
        listed, name = _uploaded()
    if source != BUNDLED:
        cases = st.selectbox(
            "Case set", [SCAN, *CASE_SETS], key=address.key("study cases"),
            format_func=lambda c: "scan the list" if c == SCAN else f"{c}: the paper's own facts and split",
            help="The paper's case ids with their split can be had where the list is CounterFact itself.",
        )  # fmt: skip
    if listed:
        relations = len({fact.relation for fact in listed if fact.relation})
        again = "" if source == BUNDLED else library_lists.repeated(listed)
        st.caption(f"{len(listed):,} facts, {relations} relations.{again}")
    _said("facts", problem)
    _said("cases", problem)
    return name, listed, cases


def _stored(names: list[str]) -> tuple[list[Fact] | None, str | None]:
    """A list of the Library, named as the command line names it."""
    key = address.key("study list")
    chosen = st.selectbox("List of facts", names, key=key, label_visibility="collapsed")
    try:
        return list(base.workbench().fact_lists.get(chosen)), f"{LIST}{chosen}"
    except ExpertScopeError as error:
        st.error(text.error(error))
        return None, None


def _uploaded() -> tuple[list[Fact] | None, str | None]:
    file = st.file_uploader(
        "File of facts", type=["json", "jsonl", "csv", "tsv", "parquet"], key=address.key("study upload"),
        label_visibility="collapsed",
    )  # fmt: skip
    if file is None:
        return None, None
    known: tuple[str, list[Fact] | None, str] | None = st.session_state.get("es_study_list")
    if known is None or known[0] != file.file_id:  # read once, not at every keystroke
        try:
            known = (file.file_id, facts.read(file.getvalue(), file.name), "")
        except ExpertScopeError as error:
            known = (file.file_id, None, text.error(error))
        st.session_state["es_study_list"] = known
    if known[2]:
        st.error(known[2])
    return known[1], file.name


def _fields(
    names: Any, settings: StudySettings, chosen: str, problem: tuple[str, str] | None, *, columns: int, least: int = 210
) -> tuple[StudySettings, list[str]]:
    """Widgets for some settings: the settings with what they say, and what is wrong."""
    wrong = []
    with st.grid(columns, min_column_width=least, gap="small"):
        for name in names:
            with st.container(gap="xsmall"):
                raw, error = _widget(name, getattr(settings, name), address.key(f"study {chosen} {name}"))
                if not error:
                    try:
                        settings = settings.replace(**{name: raw})
                    except InputError as found:
                        error = text.on_page(str(found))
                if error:
                    st.error(text.plain(error))
                    wrong.append(error)
                else:
                    _said(name, problem)
    return settings, wrong


def _widget(name: str, value: Any, key: str) -> tuple[Any, str]:
    """(what the widget says, what is wrong with it)."""
    label, help_ = name.replace("_", " "), f"{HELP[name][0].upper()}{HELP[name][1:]}."
    if isinstance(value, bool):
        return st.toggle(label, value, key=key, help=help_), ""
    if name in CHOICES:
        return st.selectbox(label, CHOICES[name], index=CHOICES[name].index(value), key=key, help=help_), ""
    if isinstance(value, tuple):
        typed = st.text_input(label, " ".join(f"{v:g}" for v in value), key=key, help=help_)
        return _numbers(label, typed)
    if name == "fresh_seed":
        return st.number_input(label, value=value, step=1, key=key, help=help_, placeholder="automatic"), ""
    step = 1 if isinstance(value, int) else 0.05 if 0 <= value < 1 else 0.5
    form = None if isinstance(value, int) else "%g"
    typed = st.number_input(label, value=value, step=step, format=form, key=key, help=help_)
    return typed, f"{label} is empty. Give a number." if typed is None else ""


def _numbers(label: str, typed: str) -> tuple[tuple[float, ...], str]:
    parts = [part for part in re.split(r"[\s,;]+", typed) if part]
    try:
        return tuple(float(part) for part in parts), "" if parts else f"{label} is empty. Give at least one number."
    except ValueError:
        return (), f"{label} is {typed!r}. Give numbers with spaces between them, such as 1 2.5 4."


def _name_problem(name: str | None, taken: set[str]) -> str:
    if not (name or "").strip():
        return "The study has no name. Give it one."
    if name.strip() in taken:
        return f"There is a study {name.strip()!r} already. Choose another name."
    return ""


def _free(name: str, taken: set[str]) -> str:
    """The name, or the first of name-2, name-3, … that is free."""
    number = 1
    while (found := name if number == 1 else f"{name}-{number}") in taken:
        number += 1
    return found


def _said(field: str, problem: tuple[str, str] | None) -> None:
    """What was wrong with this field when the study was to begin."""
    if problem is not None and problem[0] == field:
        st.error(text.plain(problem[1]))
