"""One browser tab as a real websocket session: opens a link, clicks, waits until the page is drawn.

It sends what Streamlit's front end sends, but of the widgets only the one that was changed (the server merges). Knows
nothing of ExpertScope.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlencode

from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from streamlit.proto.WidgetStates_pb2 import WidgetState
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from .screen import Node, Screen

_GOOD = (ForwardMsg.FINISHED_SUCCESSFULLY, ForwardMsg.FINISHED_FRAGMENT_RUN_SUCCESSFULLY)


class Stuck(RuntimeError):
    """A page was not drawn to its end in time, or the connection broke."""


class Tab:
    """See the module. `patience`: seconds that a page may take."""

    def __init__(self, url: str, *, patience: float = 120.0) -> None:
        self._url, self._patience = url, patience
        self.screen = Screen()
        self._socket: ClientConnection | None = None
        self._tasks: set[asyncio.Task] = set()
        self._timers: dict[str, asyncio.Task] = {}
        self._news = asyncio.Event()
        self._begun = 0  # runs of the whole page, and of fragments that were not drawn by themselves
        self._asked: set[str] = set()
        self._closed = False

    async def open(self, page: str = "", params: dict[str, str] | None = None) -> float:
        """Connect and open a link; seconds until it is drawn. `page`: as it stands in the address."""
        begun = time.perf_counter()
        host = self._url.partition("://")[2]
        self._socket = await connect(
            f"ws://{host}/_stcore/stream", subprotocols=["streamlit"], origin=self._url, max_size=None,  # type: ignore[list-item]
            compression=None, open_timeout=self._patience,
        )  # fmt: skip
        self._task(self._read())
        self.screen.path, self.screen.query = page, urlencode(params or {})
        return await self._run(begun, page_name=page)

    async def close(self) -> None:
        """Close the tab."""
        self._closed = True
        for task in [*self._timers.values()]:
            task.cancel()
        if self._socket is not None:
            await self._socket.close()
        for task in [*self._tasks]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def change(self, node: Node, *, settled: bool = True, **value: Any) -> float:
        """Change a widget: `value` is one field of Streamlit's `WidgetState`. Seconds until the page is drawn;
        `settled`: and nothing is computed for it any more."""
        state = WidgetState(id=node.proto.id)
        for name, given in value.items():
            if name == "string_array_value":
                state.string_array_value.data.extend(given)
            else:
                setattr(state, name, given)
                self.screen.values[node.proto.id] = given
        return await self._run(time.perf_counter(), [state], fragment=node.fragment, settled=settled)

    async def press(self, node: Node, *, settled: bool = True) -> float:
        """Press a button."""
        return await self.change(node, settled=settled, trigger_value=True)

    async def select(self, node: Node, name: str, mark: dict[str, int]) -> float:
        """Click on a mark of a chart's selection."""
        return await self.change(node, string_value=json.dumps({"selection": {name: [mark]}}))

    async def follow(self, page: str, path: str, query: str, *, back: bool = False) -> float:
        """Follow a link inside the app to the page with that hash and path, or (`back`) use the back button."""
        self.screen.path, self.screen.query = path, query
        self.screen.again.clear()
        self._keep_time()
        return await self._run(time.perf_counter(), page=page, back=back)

    # -- the connection ----------------------------------------------------------------------------------------------

    async def _run(
        self, begun: float, widgets: Iterable[WidgetState] = (), *, fragment: str = "", page: str = "",
        page_name: str = "", back: bool = False, settled: bool = True,
    ) -> float:  # fmt: skip
        """Ask for a run, and wait until nothing is drawn or computed any more."""
        before = self._begun
        if fragment:
            self._asked.add(fragment)
        await self._send(widgets, fragment=fragment, page=page, page_name=page_name, back=back)
        deadline = time.monotonic() + self._patience
        while not (self._begun > before and self.screen.ended in _GOOD and not (settled and self.screen.computing)):
            self._news.clear()
            if self._closed:
                raise Stuck("the connection was closed")
            left = deadline - time.monotonic()
            try:
                await asyncio.wait_for(self._news.wait(), max(left, 0.0))
            except TimeoutError:
                raise Stuck(f"not drawn within {self._patience:g} s") from None
        self._asked.discard(fragment)
        return self._last - begun

    async def _send(
        self, widgets: Iterable[WidgetState] = (), *, fragment: str = "", page: str = "", page_name: str = "",
        back: bool = False, by_itself: bool = False,
    ) -> None:  # fmt: skip
        assert self._socket is not None
        message = BackMsg()
        rerun = message.rerun_script
        rerun.query_string = self.screen.query
        rerun.widget_states.widgets.extend(widgets)
        if not page_name:
            rerun.page_script_hash = page or self.screen.page
        rerun.page_name, rerun.fragment_id = page_name, fragment
        rerun.is_auto_rerun, rerun.is_history_navigation = by_itself, back
        rerun.cached_message_hashes.extend(self.screen.hashes)
        about = rerun.context_info
        about.timezone, about.timezone_offset, about.locale, about.color_scheme = "UTC", 0, "en-GB", "light"
        about.url = f"{self._url}/{self.screen.path}"
        with contextlib.suppress(ConnectionClosed):
            await self._socket.send(message.SerializeToString())

    async def _read(self) -> None:
        assert self._socket is not None
        try:
            async for data in self._socket:
                assert isinstance(data, bytes)
                kind = self.screen.apply(data)
                if kind == "new_session":
                    ours = not self.screen.fragments or not self._asked.isdisjoint(self.screen.fragments)
                    self._begun += ours
                    self._keep_time()
                elif kind == "script_finished":
                    self._last = time.perf_counter()
                    self._keep_time()
                    self._news.set()
        except ConnectionClosed:
            pass
        finally:
            if not self._closed:
                self._closed = True
                self.screen.broken.append("the server closed the connection")
            self._news.set()

    def _keep_time(self) -> None:
        """Timers for what is drawn by itself, and for nothing else."""
        for fragment in set(self._timers) - set(self.screen.again):
            self._timers.pop(fragment).cancel()
        for fragment, seconds in self.screen.again.items():
            if fragment not in self._timers:
                self._timers[fragment] = self._task(self._by_itself(fragment, seconds))

    async def _by_itself(self, fragment: str, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            await self._send(fragment=fragment, by_itself=True)

    def _task(self, work: Any) -> asyncio.Task:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
