"""`python serve.py [options]`: `streamlit run app.py [options]`, with what the first page needs imported meanwhile.

Streamlit imports a page's modules when its first viewer is waiting for it; here that happens while the server starts.
The process stays about as small as what it holds: what the C library keeps for later goes back to the system.
And it is gone within two seconds of SIGTERM or SIGINT, whatever it does just then.
"""

import contextlib
import importlib
import sys
import threading
import time
from pathlib import Path

from streamlit.web import cli

from core import closing
from core.errors import ExpertScopeError
from core.room import few_heaps, trim

APP = Path(__file__).with_name("app.py")
TRIM_SECONDS = 15.0
"""Between two times."""


def import_early() -> None:
    """Import the page's modules, read the bundled facts, then import what the page needs only after its head."""
    for name in ("pages.parts.trace_page", "duckdb", "pyarrow"):
        importlib.import_module(name)
    with contextlib.suppress(ExpertScopeError):  # the page says what is missing
        importlib.import_module("core.facts").bundled()
    importlib.import_module("pages.parts.maps")


def trim_often() -> None:
    """Without end."""
    while True:
        time.sleep(TRIM_SECONDS)
        trim()


if __name__ == "__main__":
    few_heaps()
    closing.end_soon()
    for work in (import_early, trim_often):
        threading.Thread(target=work, daemon=True).start()
    sys.exit(cli.main(["run", str(APP), *sys.argv[1:]]))
