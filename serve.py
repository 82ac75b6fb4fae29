"""`python serve.py [options]`: `streamlit run app.py [options]`, with what the first page needs imported meanwhile.

Streamlit imports a page's modules when its first viewer is waiting for it; here that happens while the server starts.
And the process is gone within two seconds of SIGTERM or SIGINT, whatever it does just then.
"""

import contextlib
import importlib
import sys
import threading
from pathlib import Path

from streamlit.web import cli

from core import closing
from core.errors import ExpertScopeError

APP = Path(__file__).with_name("app.py")


def import_early() -> None:
    """Import the page's modules, read the bundled facts, then import what the page needs only after its head."""
    for name in ("pages.parts.trace_page", "duckdb", "pyarrow"):
        importlib.import_module(name)
    with contextlib.suppress(ExpertScopeError):  # the page says what is missing
        importlib.import_module("core.facts").bundled()
    importlib.import_module("pages.parts.maps")


if __name__ == "__main__":
    closing.end_soon()
    threading.Thread(target=import_early, daemon=True).start()
    sys.exit(cli.main(["run", str(APP), *sys.argv[1:]]))
