"""`python serve.py [options]`: `streamlit run app.py [options]`, with what the first page needs imported meanwhile.

Streamlit imports a page's modules when its first viewer is waiting for it; here that happens while the server starts.
The process stays about as small as what it holds: what the C library keeps for later goes back to the system.
And it is gone within two seconds of SIGTERM or SIGINT, whatever it does just then.
"""

import contextlib
import gc
import importlib
import sys
import threading
import time
from pathlib import Path

from streamlit import delta_generator
from streamlit.web import cli

from core import closing
from core.errors import ExpertScopeError
from core.room import few_heaps, trim

APP = Path(__file__).with_name("app.py")
HEAD_SECONDS = 2.5
"""For a viewer who comes at once: the browser fetches some eighty files from this process before it shows a name."""
TIDY_SECONDS = 15.0
"""Between two times."""
RARELY = 1000
"""So many times as often as in Python's own setting Python looks at young objects before it looks at all of them."""


def import_early() -> None:
    """Import the page's modules, read the bundled facts; a while later import what the page needs after its head."""
    for name in ("pages.parts.trace_page", "duckdb", "pyarrow"):
        importlib.import_module(name)
    with contextlib.suppress(ExpertScopeError):  # the page says what is missing
        importlib.import_module("core.facts").bundled()
    time.sleep(HEAD_SECONDS)
    importlib.import_module("pages.parts.maps")


def tidy_often() -> None:
    """Look for old cycles, if there was any work, let go of the store's blocks, and trim; without end.

    Python itself looks at all objects whenever there are a quarter more of them: while people click that is every few
    seconds, and everybody waits a third of a second.
    """
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, RARELY)
    while True:
        time.sleep(TIDY_SECONDS)
        if gc.get_count()[2] > 0:
            gc.collect()
        importlib.import_module("cache.database").let_go()
        trim()


def ask_no_prompt() -> None:
    """Streamlit looks before its first element whether it runs at a Python prompt. For that Python walks through every
    module there is, a third of a second while others are imported; here the answer is known."""
    delta_generator._use_warning_has_been_displayed = True


if __name__ == "__main__":
    few_heaps()
    ask_no_prompt()
    closing.end_soon()
    for work in (import_early, tidy_often):
        threading.Thread(target=work, daemon=True).start()
    sys.exit(cli.main(["run", str(APP), *sys.argv[1:]]))
