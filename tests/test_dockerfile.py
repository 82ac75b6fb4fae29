"""The Dockerfile against the repository: it copies what there is and what is needed, installs what is pinned, and runs
as a user of its own."""

from __future__ import annotations

import ast
import fnmatch
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TEXT = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text("utf-8"), flags=re.MULTILINE))
STEPS = [tuple(line.split(maxsplit=1)) for line in TEXT.splitlines() if line.strip()]
IGNORED = (ROOT / ".dockerignore").read_text("utf-8").split()


def copied() -> set[str]:
    return {source for step, rest in STEPS if step == "COPY" for source in rest.split()[:-1]}


def test_everything_that_is_copied_is_there_and_not_left_out_of_the_context():
    assert copied()
    for source in copied():
        assert (ROOT / source).exists(), source
        assert not any(fnmatch.fnmatch(source, pattern) for pattern in IGNORED), source


def test_everything_that_runs_is_copied():
    own = {path.name for path in ROOT.iterdir() if path.is_dir() and list(path.glob("*.py"))}
    own -= {"tests", "bench", ".ci"}
    needed = {"app.py", "serve.py", ".streamlit", *own}
    assert {"core", "cache", "pages", "demo"} <= own and needed <= copied()
    for name in (path for path in copied() if path.endswith(".py")):
        imported = {
            node.names[0].name.split(".")[0] if isinstance(node, ast.Import) else (node.module or "").split(".")[0]
            for node in ast.walk(ast.parse((ROOT / name).read_text("utf-8")))
            if isinstance(node, ast.Import | ast.ImportFrom)
        }
        assert {top for top in imported if (ROOT / top).is_dir()} <= copied(), name


def test_secrets_and_stores_stay_outside():
    for private in (".streamlit/secrets.toml", ".git", "demo/store.duckdb", "core/store.duckdb.wal"):
        assert any(fnmatch.fnmatch(private, pattern) for pattern in IGNORED), private
    assert "/.streamlit/secrets.toml" in (ROOT / ".gitignore").read_text("utf-8").split()


def test_it_installs_the_pinned_versions_for_the_python_that_the_tests_ran_with():
    (base,) = (rest for step, rest in STEPS if step == "FROM")
    target = re.search(r'target-version = "py(\d)(\d+)"', (ROOT / "pyproject.toml").read_text("utf-8"))
    assert base == f"python:{target[1]}.{target[2]}-slim"
    commands = [part for step, rest in STEPS if step == "RUN" for part in re.split("&&|;", rest)]
    installs = [part for part in commands if "pip install" in part]
    assert len(installs) == 2 and all("-c constraints.txt" in part for part in installs)
    assert "-r requirements.txt" in installs[-1]


def test_it_runs_as_a_user_of_its_own_that_can_write_its_data_only():
    order = [step for step, _ in STEPS]
    (made,) = (rest for step, rest in STEPS if step == "RUN" and "useradd" in rest)
    (user,) = (rest for step, rest in STEPS if step == "USER")
    assert user == "expertscope" and "--uid" in made and made.endswith("chown expertscope /data")
    assert order.index("USER") > max(i for i, step in enumerate(order) if step in ("RUN", "COPY"))
    assert order.index("USER") < order.index("CMD")
    environment = dict(pair.split("=", 1) for step, rest in STEPS if step == "ENV" for pair in rest.split())
    assert environment["EXPERTSCOPE_HOME"] == "/data" and ("VOLUME", "/data") in STEPS
    assert environment["HF_HOME"].startswith("/data/")


def test_the_server_listens_where_the_health_check_asks():
    (command,) = (json.loads(rest) for step, rest in STEPS if step == "CMD")
    assert command[:2] == ["python", "serve.py"]
    port = command[command.index("--server.port") + 1]
    assert ("EXPOSE", port) in STEPS
    (check,) = (rest for step, rest in STEPS if step == "HEALTHCHECK")
    assert f"http://127.0.0.1:{port}/_stcore/health" in check
