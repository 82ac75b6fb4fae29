"""The open file itself: what it keeps in memory, and Ctrl+C in the middle of its work."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cache.database import acquire, let_go, release


def test_blocks_are_kept_in_memory_only_while_the_file_is_used(tmp_path):
    def in_memory(cursor):
        return cursor.execute("SELECT sum(memory_usage_bytes) FROM duckdb_memory()").fetchall()[0][0]

    def limit(cursor):
        return cursor.execute("SELECT current_setting('memory_limit')").fetchall()

    database = acquire(tmp_path / "s.duckdb")
    try:
        usual = database.read(limit)
        database.write(lambda cursor: cursor.execute("CREATE TABLE big AS SELECT random() r FROM range(10_000_000)"))
        total = database.read(lambda cursor: cursor.execute("SELECT sum(r) FROM big").fetchall())
        assert database.read(in_memory) > 60e6

        def while_used(cursor):
            thread = threading.Thread(target=let_go)
            thread.start()
            thread.join(30)
            return in_memory(cursor), limit(cursor)

        assert database.read(while_used)[0] > 60e6  # it is not taken from who uses it
        let_go()
        assert database.read(in_memory) < 34e6
        assert database.read(limit) == usual
        assert database.read(lambda cursor: cursor.execute("SELECT sum(r) FROM big").fetchall()) == total
    finally:
        release(database)
    let_go()  # nothing is open


LONG = "SELECT sum(a.i * b.i) FROM range(1000000) a(i), range(1000000) b(i) WHERE a.i % 7 <> b.i % 5"
IN_THE_MIDDLE = {
    "a query": """
database = Database(path)
interrupted(lambda: database.read(lambda cursor: cursor.execute(LONG).fetchall()))
""",
    "opening": """
migrate = module.migrate
module.migrate = lambda cursor: cursor.execute(LONG)
interrupted(lambda: Database(path))
module.migrate = migrate
database = Database(path)
""",
    "compacting": """
database = Database(path)
database.write(lambda cursor: cursor.execute("CREATE TABLE big AS SELECT random() FROM range(10000000)"))
interrupted(database.compact)
database.write(lambda cursor: cursor.execute("DROP TABLE big"))
database.compact()
assert database.size() < 10_000_000, database.size()
""",
}


@pytest.mark.skipif(os.name == "nt", reason="needs SIGINT")
@pytest.mark.parametrize("moment", IN_THE_MIDDLE)
def test_ctrl_c_interrupts_and_the_store_can_be_used(moment, tmp_path):
    script = f"""
import os, pathlib, signal, sys, threading
from cache import database as module
from cache.database import Database
LONG = {LONG!r}
path = pathlib.Path(sys.argv[1])
signal.signal(signal.SIGINT, signal.default_int_handler)
def interrupted(work):
    threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGINT)).start()
    try: print("went on", work())
    except KeyboardInterrupt: print("interrupted")
{IN_THE_MIDDLE[moment]}
print(database.read(lambda cursor: cursor.execute("SELECT 7").fetchall()))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "s.duckdb")], cwd=Path(__file__).parent.parent,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.split() == ["interrupted", "[(7,)]"], done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["s.duckdb"]
