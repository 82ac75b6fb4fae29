"""A viewer without a browser: a websocket session of a running server, the texts on its screen, clicks on buttons."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from urllib.parse import urlencode, urlsplit

from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

WAIT = 120.0


class Session:
    """One viewer of one page. `url`: of the server; `params`: the address's query."""

    def __init__(self, url: str, page: str = "", **params: object) -> None:
        parts = urlsplit(url)
        self._socket = connect(
            f"ws://{parts.netloc}/_stcore/stream", subprotocols=["streamlit"], max_size=None, open_timeout=WAIT
        )
        self._page, self._query = page, urlencode(params)
        self.buttons: dict[str, str] = {}
        self.said: list[str] = []
        """Every text that was drawn: alerts, Markdown, progress bars."""
        self.finished = 0
        self._changed = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()
        self._run()

    def _run(self, *, click: str = "") -> None:
        message = BackMsg()
        message.rerun_script.query_string = self._query
        message.rerun_script.page_name = self._page
        if click:
            message.rerun_script.widget_states.widgets.add(id=click, trigger_value=True)
        self._socket.send(message.SerializeToString())

    def click(self, label: str) -> None:
        """Press the button with this label; waits until there is one."""
        self.until(lambda: label in self.buttons)
        self._run(click=self.buttons[label])

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until what the server sent makes `condition()` true; fails after `WAIT` seconds."""
        with self._changed:
            assert self._changed.wait_for(condition, WAIT), f"not within {WAIT:g} s; on the screen: {self.said[-20:]}"

    def saying(self, words: str) -> None:
        """Wait until some text with these words is drawn."""
        self.until(lambda: any(words in text for text in self.said))

    def _read(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            for payload in self._socket:
                with self._changed:
                    self._take(ForwardMsg.FromString(payload))
                    self._changed.notify_all()

    def _take(self, message: ForwardMsg) -> None:
        self.finished += message.WhichOneof("type") == "script_finished"
        element = message.delta.new_element
        kind = element.WhichOneof("type")
        if kind == "button":
            self.buttons[element.button.label] = element.button.id
        elif kind == "progress":
            self.said.append(element.progress.text)
        elif kind in ("markdown", "alert", "exception"):
            part = getattr(element, kind)
            self.said.append(part.message if kind == "exception" else part.body)

    def close(self) -> None:
        """Leave."""
        self._socket.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
