"""What one browser tab shows: Streamlit's messages applied one by one, as its own front end applies them.

Only as far as a viewer needs it: the elements, the address, whether a script runs, what is drawn anew by itself. The
charts' data stay bytes until they are looked at. Knows no network and nothing of ExpertScope.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd
import pyarrow as pa
from streamlit.proto.Alert_pb2 import Alert
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

KEPT_RUNS = 2
"""For so many runs a message that the server may refer to by its hash is kept."""
_VALUED = ("number_input", "selectbox")


@dataclass
class Node:
    """An element of the page, the fragment that drew it, and the run in which it was drawn last."""

    element: Any
    fragment: str
    run: str

    @property
    def kind(self) -> str:
        return self.element.WhichOneof("type") or ""

    @property
    def proto(self) -> Any:
        return getattr(self.element, self.kind)


@dataclass(frozen=True)
class Chart:
    """A Vega-Lite chart: its element's message, its tables read when they are asked for."""

    proto: Any

    @property
    def key(self) -> str:
        return key_of(self.proto.id)

    @cached_property
    def tables(self) -> list[pd.DataFrame]:
        return [read_table(one.data.data) for one in self.proto.datasets]

    def table(self, *columns: str) -> pd.DataFrame | None:
        """The first table with these columns."""
        return next((table for table in self.tables if set(columns) <= set(table)), None)

    @cached_property
    def spec(self) -> dict[str, Any]:
        return json.loads(self.proto.spec)


def read_table(data: bytes) -> pd.DataFrame:
    """A table as it travels."""
    with pa.ipc.open_stream(data) as reader:
        return reader.read_all().to_pandas()


def key_of(widget: str) -> str:
    """The key that a page gave to a widget; empty where it gave none."""
    key = widget.split("-", 2)[-1] if widget.startswith("$$ID-") else ""
    return "" if key == "None" else key


@dataclass
class Screen:
    """The state of one tab. `run`: id of the newest run, `fragments`: those that it draws (none: the whole page);
    `ended`: how the newest run ended, None while it goes on; `page`, `path`: the page's hash, and as it stands in the
    address, `query`: the address's parameters; `again`: fragments drawn by themselves, and how often (seconds);
    `received`: bytes; `values`: what was typed into widgets, by their ids."""

    nodes: dict[tuple[int, ...], Node] = field(default_factory=dict)
    run: str = ""
    fragments: tuple[str, ...] = ()
    ended: int | None = None
    page: str = ""
    path: str = ""
    query: str = ""
    again: dict[str, float] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    session: str = ""
    received: int = 0
    values: dict[str, Any] = field(default_factory=dict)
    _known: dict[str, tuple[Any, int]] = field(default_factory=dict)
    _runs: int = 0

    def apply(self, data: bytes) -> str:
        """One message; returns its kind."""
        message = ForwardMsg.FromString(data)
        self.received += len(data)
        kind = message.WhichOneof("type") or ""
        handle = getattr(self, f"_{kind}", None)
        if handle is not None:
            handle(message)
        return kind

    @property
    def hashes(self) -> list[str]:
        """Of the messages that need not be sent again."""
        return list(self._known)

    # -- what is there -----------------------------------------------------------------------------------------------

    def elements(self, *kinds: str) -> Iterator[Any]:
        """The messages of all elements of these kinds, in the order of the page."""
        for _, node in sorted(self.nodes.items()):
            if node.kind in kinds:
                yield node.proto

    @property
    def charts(self) -> list[Chart]:
        return [Chart(proto) for proto in self.elements("vega_lite_chart")]

    def chart(self, key: str) -> Chart | None:
        """The chart whose key begins so."""
        return next((chart for chart in self.charts if chart.key.startswith(key)), None)

    def table(self, *columns: str) -> pd.DataFrame | None:
        """The first table (not of a chart) with these columns."""
        for proto in self.elements("dataframe"):
            table = read_table(proto.arrow_data.data)
            if set(columns) <= set(table):
                return table
        return None

    @property
    def metrics(self) -> dict[str, str]:
        return {proto.label: proto.body for proto in self.elements("metric")}

    @property
    def text(self) -> str:
        """All text, without tags and Markdown's signs."""
        parts = [proto.body for proto in self.elements("markdown", "html", "heading")]
        plain = html.unescape(re.sub(r"<[^>]*>", "", "\n".join(parts)))
        return re.sub(r"\\(.)|\*\*", lambda sign: sign[1] or "", plain)

    @property
    def computing(self) -> bool:
        """A bar says that something is computed for this page."""
        return any(True for _ in self.elements("progress"))

    @property
    def problems(self) -> list[str]:
        """Exceptions that were on the page at any time, red boxes, and what the session itself said went wrong."""
        return self.broken + [f"error: {proto.body}" for proto in self.elements("alert") if proto.format == Alert.ERROR]

    def widget(self, kind: str, *, label: str = "", key: str = "") -> Node | None:
        """The first widget of that kind with that label, or whose key begins so."""
        for _, node in sorted(self.nodes.items()):
            if node.kind != kind or (label and node.proto.label != label):
                continue
            if not key or key_of(node.proto.id).startswith(key):
                return node
        return None

    def value(self, node: Node) -> Any:
        """What a number field or a selection shows: what was typed or set last, else its default."""
        return self.values.get(node.proto.id, _default(node.proto))

    # -- messages ----------------------------------------------------------------------------------------------------

    def _new_session(self, message: ForwardMsg) -> None:
        new = message.new_session
        self.run, self.ended = message.metadata.run.script_run_id, None
        self.fragments = tuple(message.metadata.run.fragment_ids)
        self.session = new.initialize.session_id
        if self.fragments:
            return
        self.again.clear()
        if new.page_script_hash != self.page:
            self.nodes.clear()
            self.page = new.page_script_hash

    def _navigation(self, message: ForwardMsg) -> None:
        self.page = message.navigation.page_script_hash
        page = next(page for page in message.navigation.app_pages if page.page_script_hash == self.page)
        self.path = "" if page.is_default else page.url_pathname

    def _delta(self, message: ForwardMsg) -> None:
        if message.hash and message.metadata.cacheable:
            self._known[message.hash] = (message.delta, self._runs)
        self._draw(message.metadata, message.delta)

    def _ref_hash(self, message: ForwardMsg) -> None:
        if message.ref_hash not in self._known:
            self.broken.append("the server referred to a message that this tab does not have")
            return
        delta, _ = self._known[message.ref_hash]
        self._known[message.ref_hash] = (delta, self._runs)
        self._draw(message.metadata, delta)

    def _draw(self, where: Any, delta: Any) -> None:
        path = tuple(where.delta_path)
        if delta.WhichOneof("type") == "new_element":
            node = self.nodes[path] = Node(delta.new_element, delta.fragment_id, self.run)
            if node.kind == "exception":
                self.broken.append(f"exception {node.proto.type}: {node.proto.message}")
            elif node.kind in _VALUED and node.proto.set_value:
                self.values[node.proto.id] = _value(node.proto)
        elif delta.WhichOneof("type") == "add_block":
            self.nodes.pop(path, None)

    def _script_finished(self, message: ForwardMsg) -> None:
        self.ended = message.script_finished
        if self.ended in (ForwardMsg.FINISHED_SUCCESSFULLY, ForwardMsg.FINISHED_FRAGMENT_RUN_SUCCESSFULLY):
            self.nodes = {path: node for path, node in self.nodes.items() if not self._stale(node)}
            if not self.fragments:
                self._runs += 1
                self._known = {name: kept for name, kept in self._known.items() if self._runs - kept[1] <= KEPT_RUNS}

    def _stale(self, node: Node) -> bool:
        return node.run != self.run and (not self.fragments or node.fragment in self.fragments)

    def _page_info_changed(self, message: ForwardMsg) -> None:
        self.query = message.page_info_changed.query_string

    def _auto_rerun(self, message: ForwardMsg) -> None:
        self.again[message.auto_rerun.fragment_id] = message.auto_rerun.interval

    def _stop_auto_rerun(self, message: ForwardMsg) -> None:
        for fragment in message.stop_auto_rerun.fragment_ids:
            self.again.pop(fragment, None)

    def _session_event(self, message: ForwardMsg) -> None:
        if message.session_event.WhichOneof("type") == "script_compilation_exception":
            self.broken.append(f"the page cannot be read: {message.session_event.script_compilation_exception.message}")

    def _page_not_found(self, message: ForwardMsg) -> None:
        self.broken.append(f"page not found: {message.page_not_found.page_name}")


def _value(proto: Any) -> Any:
    return proto.raw_value if hasattr(proto, "raw_value") else proto.value


def _default(proto: Any) -> Any:
    if not hasattr(proto, "raw_value"):
        return proto.default
    return proto.options[proto.default] if proto.HasField("default") else None
