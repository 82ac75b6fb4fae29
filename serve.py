"""`python serve.py [options]`: `streamlit run app.py [options]`, with what the first page needs imported meanwhile.

Streamlit imports a page's modules when its first viewer is waiting for it; here that happens while the server starts.
And the process is gone within two seconds of SIGTERM or SIGINT, whatever it does just then.
"""

import importlib
import sys
import threading
from pathlib import Path

from streamlit.web import cli

from core import closing

APP = Path(__file__).with_name("app.py")


def import_early() -> None:
    """Import the page's modules, and what they import only when they need it."""
    for name in ("pages.parts.trace_page", "pandas", "pyarrow", "altair", "duckdb"):
        importlib.import_module(name)


if __name__ == "__main__":
    closing.end_soon()
    threading.Thread(target=import_early, daemon=True).start()
    sys.exit(cli.main(["run", str(APP), *sys.argv[1:]]))
