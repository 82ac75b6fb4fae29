"""Lists of facts in the Library's sidebar: choosing one, narrowing it down, new ones from files; and what can be done
with the list at hand as a whole."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import streamlit as st

from core import facts, formats
from core.errors import ExpertScopeError
from core.fact_files import FORMATS
from core.fact_lists import FactList, to_file
from core.fact_sets import BUNDLED
from core.library_link import LibraryView
from core.requests import Fact

from . import address, base, downloads, library_state, text
from .library_state import doing, look

ALL = "all relations"
_REPEATS = "es_library_repeats"
MIME = {".jsonl": "application/jsonl", ".csv": "text/csv", ".parquet": "application/vnd.apache.parquet"}
_MB = 2**20


def sidebar(view: LibraryView) -> None:
    """The list, filters, and where new lists come from."""
    st.markdown("**List of facts**")
    lists = _all()
    _choice(view, lists)
    known = known_facts(view)
    _filters(view, known)
    with st.container(horizontal=True, gap="small"):
        # with the list in the key: a fresh one, closed, once the new list is looked at
        with st.popover("Upload", icon=":material/upload_file:", key=f"es_library_upload {view.source}"):
            _upload(view, {found.name for found in lists})
        with st.popover("New list", icon=":material/add:", key=f"es_library_new {view.source}"):
            key = address.key("library new list")
            st.text_input("Name", key=key, max_chars=120, placeholder="a name for an empty list")
            st.button("Make an empty list", on_click=_make, args=(key, (), "Made here."), key="es_library_make")


def _all() -> list[FactList]:
    """Every list of the store; says why where they cannot be read."""
    try:
        return base.workbench().fact_lists.all()
    except ExpertScopeError as error:
        st.error(text.error(error))
        return []


def names() -> list[str]:
    """The names of the lists of the store."""
    return [found.name for found in _all()]


def known_facts(view: LibraryView) -> tuple[Fact, ...]:
    """The facts of the list; none where there is no such list (the section says so)."""
    try:
        return base.listed(view.source)
    except ExpertScopeError:
        return ()


def shown_facts(view: LibraryView) -> list[Fact]:
    """Those of the list that relation and search leave."""
    known = known_facts(view)
    if not view.search.strip() and view.relation is None:
        return list(known)
    return facts.search(known, view.search, relation=view.relation, limit=None, everywhere=True)


def missing(view: LibraryView) -> bool:
    """Whether there is no list of that name; says so."""
    try:
        base.listed(view.source)
    except ExpertScopeError as error:
        st.warning(text.error(error))
        return True
    return False


def _choice(view: LibraryView, lists: Sequence[FactList]) -> None:
    sizes = {BUNDLED: len(base.bundled())} | {found.name: found.n for found in lists}
    options = list(sizes) if view.source in sizes else [*sizes, view.source]
    key = address.key(f"library list {len(lists)} {view.source}")

    def change() -> None:
        look(source=st.session_state[key])

    st.selectbox(
        "List of facts", options, index=options.index(view.source), key=key, label_visibility="collapsed",
        format_func=lambda name: f"{'Bundled' if name == BUNDLED else name} ({sizes.get(name, 0):,})",
        on_change=address.callback(key, change),
    )  # fmt: skip


def _filters(view: LibraryView, known: Sequence[Fact]) -> None:
    counts = facts.relations(known)
    if counts or view.relation:
        current = view.relation or ALL
        options = [ALL, *counts] if current in (ALL, *counts) else [ALL, *counts, current]
        key = address.key(f"library relation {view.source} {view.relation}")

        def change() -> None:
            chosen = st.session_state[key]
            look(relation=None if chosen == ALL else chosen)

        st.selectbox(
            "Relation", options, index=options.index(current), key=key,
            format_func=lambda r: ALL if r == ALL else f"{r.replace('_', ' ')} ({counts.get(r, 0)})",
            on_change=address.callback(key, change), label_visibility="collapsed",
        )  # fmt: skip
    key = address.key(f"library search {view.source}")

    def find() -> None:
        look(search=st.session_state[key] or "")

    st.text_input(
        "Search", view.search, key=key, type="search", live="300ms", max_chars=200, label_visibility="collapsed",
        placeholder="Search: any words, case_id", on_change=address.callback(key, find),
    )  # fmt: skip


def _upload(view: LibraryView, taken: set[str]) -> None:
    most = int(st.get_option("server.maxUploadSize"))
    st.caption(
        f"CounterFact, or a table with columns prompt, subject, target_true, target_new, relation_id, case_id: "
        f"{', '.join(sorted(FORMATS))}. At most {most} MB."
    )
    file = st.file_uploader(
        "File of facts", type=[ending.removeprefix(".") for ending in FORMATS], label_visibility="collapsed",
        max_upload_size=most, key=address.key(f"library upload {view.source}"),
    )  # fmt: skip
    auto = st.toggle(
        "Foils: the model's most probable other token", key=address.key("library upload auto"),
        help="Whatever the file says. Otherwise a missing foil is drawn from the file's facts of the same relation.",
    )  # fmt: skip
    if file is None:
        return
    read, problem = _read(file, auto)
    if problem:
        st.error(problem)
        return
    relations = len(facts.relations(read))
    st.caption(f"{count(len(read))} of {relations} relation{'' if relations == 1 else 's'}.{repeated(read)}")
    stem = file.name.rsplit(".", 1)[0][:100] or "uploaded"
    suggested = next(n for i in range(1, 10_000) if (n := stem if i == 1 else f"{stem}-{i}") not in taken)
    key = address.key(f"library upload name {file.file_id}")
    st.text_input("Name of the list", suggested, key=key, max_chars=120)
    st.button(
        "Keep as a list", type="primary", on_click=_make, args=(key, read, f"From the file {file.name}."),
        key="es_library_keep", width="stretch",
    )  # fmt: skip


def _read(file, auto: bool) -> tuple[list[Fact], str]:  # noqa: ANN001 - Streamlit's uploaded file
    """The facts of an upload, read once, or what is wrong with it."""
    known: tuple | None = st.session_state.get("es_library_read")
    if known is None or known[0] != (file.file_id, auto):
        try:
            known = ((file.file_id, auto), facts.read(file.getvalue(), file.name, foil="auto" if auto else "file"), "")
        except ExpertScopeError as error:
            known = ((file.file_id, auto), [], text.error(error))
        st.session_state["es_library_read"] = known
    return known[1], known[2]


def _make(key: str, listed: Sequence[Fact], note: str) -> None:
    keep(st.session_state.get(key) or "", listed, note)


def keep(name: str, listed: Sequence[Fact], note: str) -> None:
    """In a callback: a new list, which is then looked at."""
    desk = base.workbench().fact_lists
    made = doing(lambda: desk.put(name, listed, note=note), lambda made: f"Kept {count(len(listed))} as “{made}”.")
    if made is not None:
        look(source=made, section="facts")


def count(n: int) -> str:
    """So many facts, in words."""
    return f"{n:,} fact{'' if n == 1 else 's'}"


def repeated(listed: Sequence[Fact]) -> str:
    """A sentence on facts that are there more than once; empty where none is."""
    n = len(facts.repeats(listed))
    return f" {n:,} of them repeat another: the same prompt, subject and objects." if n else ""


def head(view: LibraryView, shown: Sequence[Fact]) -> None:
    """Name, size and origin of the list, export, renaming, deleting."""
    found = None
    if view.source != BUNDLED:
        try:
            found = base.workbench().fact_lists.find(view.source)
        except ExpertScopeError as error:
            st.error(text.error(error))
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        with st.container(horizontal=True, vertical_alignment="center", width="content"):
            name = "Bundled facts" if view.source == BUNDLED else view.source
            st.markdown(f"##### {text.plain(name)}", width="content")
            if view.source == BUNDLED:
                st.badge("read only", color="gray", icon=":material/lock:")
        with st.container(horizontal=True, vertical_alignment="center", width="content"):
            _export(view, shown)
            if found is not None:
                _manage(found)
    if found is not None:
        size, changed = formats.size(found.bytes), formats.moment(found.updated)
        st.caption(text.plain(f"{found.note} Changed {changed} UTC. {size} in the store.".strip()))
        _repeats(found, known_facts(view))


def _repeats(found: FactList, listed: Sequence[Fact]) -> None:
    """Facts that are there more than once, and the way to be rid of them. Looked for once in each state of a list."""
    key = (found.name, found.updated, len(listed))
    known = st.session_state.get(_REPEATS)
    if known is None or known[0] != key:
        known = st.session_state[_REPEATS] = (key, facts.repeats(listed))
    ids = known[1]
    if not ids:
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption(f"{len(ids):,} of the facts repeat another: the same prompt, subject and objects.")
        library_state.confirm(
            f"Take out {len(ids):,} repeats" if len(ids) > 1 else "Take out 1 repeat",
            f"Take {count(len(ids))} out, each of which is left once",
            lambda: doing(
                lambda: base.workbench().fact_lists.remove(found.name, ids), lambda n: f"Took out {count(n)}."
            ),
            key="repeats",
        )  # fmt: skip


def _export(view: LibraryView, shown: Sequence[Fact]) -> None:
    with st.popover("Export", icon=":material/download:", key="es_library_export", disabled=not shown):
        st.caption(f"The {len(shown):,} facts shown, as files that can be uploaded again.")
        for ending, mime in MIME.items():
            st.download_button(
                ending.removeprefix(".").upper(), functools.partial(to_file, list(shown), ending), mime=mime,
                file_name=f"{downloads.study_stem(view.source)}{ending}", on_click="ignore", width="stretch",
                key=f"es_library_export_{ending}", type="tertiary",
            )  # fmt: skip


def _manage(found: FactList) -> None:
    with st.popover("Rename", icon=":material/edit:", key=f"es_library_rename {found.name}"):
        key = address.key(f"library rename {found.name}")
        st.text_input("Another name", found.name, key=key, max_chars=120)
        st.button("Rename", on_click=_rename, args=(found.name, key), key="es_library_rename_do")
    library_state.confirm(
        "Delete list", f"Delete “{text.plain(found.name)}” with its {count(found.n)}", lambda: _delete(found.name),
        key="list",
    )  # fmt: skip


def _rename(name: str, key: str) -> None:
    new = doing(lambda: base.workbench().fact_lists.rename(name, st.session_state.get(key) or ""))
    if new is not None:
        library_state.HERE.change(library_state.replace(library_state.HERE.value, source=new))


def _delete(name: str) -> None:
    if doing(lambda: base.workbench().fact_lists.delete(name), f"Deleted the list “{name}”.") is not None:
        look(source=BUNDLED)
