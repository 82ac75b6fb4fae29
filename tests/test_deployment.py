"""Which models a shared dashboard loads, and what its log says: nothing that a viewer typed."""

from __future__ import annotations

import inspect
import io
import json
import logging
import re
import tomllib
from pathlib import Path

import pytest
from fake_results import FRANCE, fake_result

from core import logs
from core.deployment import VARIABLE, allowed, check_allowed, is_allowed, listed
from core.errors import InputError, ModelError
from core.jobs import JobRegistry
from core.progress import SILENT
from core.requests import ModelSpec, TraceRequest
from core.workbench import Engine, Workbench

WAIT = 10.0


@pytest.mark.parametrize(
    ("setting", "name", "expected"),
    [
        (None, "any/thing", True),
        ("", "demo", False),
        ("demo", "demo", True),
        ("demo", "org/name", False),
        (" demo , org/name ", "org/name", True),
        ("org/name", "org/name2", False),
        ("org/*", "org/anything", True),
        ("org/*", "organ/anything", False),
        ("org/*", "org/", False),
        ("{models}", "{models}/one", True),
        ("{models}", "{models}", True),
        ("{models}", "{models}/../secret", False),
        ("{models}", "{models}/link", False),
        ("{models}", "{secret}", False),
        ("{models}", "{models}2", False),
        ("demo", "{models}/one", False),
        ("demo", "\x00", False),
        ("demo", "x" * 5000, False),
    ],
)
def test_a_model_is_loaded_only_if_it_is_named_or_lies_in_a_named_folder(tmp_path: Path, setting, name, expected):
    for folder in ("models/one", "models2", "secret"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "models" / "link").symlink_to(tmp_path / "secret")
    where = {"{models}": str(tmp_path / "models"), "{secret}": str(tmp_path / "secret")}
    for mark, path in where.items():
        setting = setting and setting.replace(mark, path)
        name = name.replace(mark, path)
    entries = allowed({} if setting is None else {VARIABLE: setting})
    assert is_allowed(name, entries) is expected


@pytest.mark.parametrize(
    ("setting", "revision", "expected"),
    [
        ("org/name", None, True),
        ("org/name", "refs/pr/1", False),
        ("org/*", "v1", False),
        ("org/name@v1", "v1", True),
        ("org/name@v1", None, True),
        ("org/name@v1", "v2", False),
        ("org/name@*", "anything", True),
        ("org/*@*", "anything", True),
        ("other/name@*", "v1", False),
        (None, "refs/pr/1", True),
    ],
)
def test_of_a_hub_model_only_the_named_revisions_are_loaded(monkeypatch, setting, revision, expected):
    entries = allowed({} if setting is None else {VARIABLE: setting})
    assert is_allowed("org/name", entries, revision=revision) is expected
    if expected:
        check_allowed(ModelSpec("org/name", revision), {} if setting is None else {VARIABLE: setting})
    else:
        with pytest.raises(ModelError, match=f"does not load org/name at the revision {revision}"):
            check_allowed(ModelSpec("org/name", revision), {VARIABLE: setting})
    assert listed(("org/name", "org/name@v1", "org/*@*")) == ["org/name"]


@pytest.fixture
def bench():
    def trace(model, requests, **_):
        return [fake_result(request=request) for request in requests]

    made = Workbench(None, engine=Engine(lambda name, **_: object(), trace, lambda *_: None))
    yield made
    made.close()


def test_the_workbench_refuses_what_is_not_allowed_wherever_it_is_asked(bench, monkeypatch, tmp_path):
    monkeypatch.setenv(VARIABLE, "demo")
    other = TraceRequest(fact=FRANCE, model=ModelSpec("some/where"))
    for ask in (
        lambda: bench.lookup(other),
        lambda: bench.live(FRANCE, other.model, special_tokens="auto", object_tokens="space", first_token=False),
        lambda: bench.long_work(other.model, SILENT).__enter__(),
    ):
        with pytest.raises(ModelError, match="does not load some/where.*(?s:.*)demo"):
            ask()
    job = bench.submit(other)
    assert job.wait(WAIT) and isinstance(job.error, ModelError)
    assert bench.model_state(other.model).detail == "This dashboard does not load it."
    assert [entry.id for entry in bench.catalogue()] == ["demo"]
    allowed_job = bench.submit(TraceRequest(fact=FRANCE))
    assert allowed_job.wait(WAIT) and allowed_job.error is None
    (tmp_path / "models" / "one").mkdir(parents=True)
    (tmp_path / "models" / "one" / "config.json").write_text("{}")
    monkeypatch.setenv(VARIABLE, f"demo,my/model,your/*,{tmp_path / 'models'}")
    assert [entry.id for entry in bench.catalogue()] == ["demo", "my/model", str(tmp_path / "models" / "one")]


@pytest.fixture
def log():
    """Configures our log into a text, given the environment; undone afterwards."""
    before = {name: (logging.getLogger(name).propagate, logging.getLogger(name).level) for name in logs.OURS}
    stream = io.StringIO()
    factory = logging.getLogRecordFactory()
    yield lambda environ: (logs.configure(environ, stream), stream)[1]
    logging.setLogRecordFactory(factory)
    for name, (propagate, level) in before.items():
        logger = logging.getLogger(name)
        logger.handlers = [h for h in logger.handlers if not isinstance(h.formatter, logs.Lines)]
        logger.propagate = propagate
        logger.setLevel(level)


SECRET = "my secret subject\n{}"


def ran(log, environ) -> list[dict]:
    stream = log(environ)
    registry = JobRegistry()

    def wrong(progress):
        raise InputError(f"{SECRET} is not in the prompt.", field="subject")

    def broken(progress):
        raise RuntimeError(SECRET)

    jobs = [registry.submit(work, SECRET, work, lane=lane) for work, lane in ((wrong, ""), (broken, "derived"))]
    jobs.append(registry.submit("fine", SECRET, lambda progress: 1))
    assert all(job.wait(WAIT) for job in jobs) and registry.close(WAIT)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    by_job = {job.id: [line for line in lines if line.get("job") == job.id] for job in jobs}
    assert [[line["event"] for line in mine] for mine in by_job.values()] == [
        ["job begun", "job ended"], ["job begun", "job failed", "job ended"], ["job begun", "job ended"],
    ]  # fmt: skip
    ends = [mine[-1] for mine in by_job.values()]
    assert [(end["state"], end["error"], end["lane"]) for end in ends] == [
        ("failed", "InputError", "trace"), ("failed", "ExpertScopeError", "derived"), ("done", None, "trace"),
    ]  # fmt: skip
    assert all(end["seconds"] >= 0 and end["level"] == "info" for end in ends)
    return lines


def test_the_log_is_json_lines_with_job_ids_and_without_what_was_typed(log):
    lines = ran(log, {})
    assert "secret" not in json.dumps(lines)
    (failed,) = [line for line in lines if line["event"] == "job failed"]
    assert failed["error"] == "RuntimeError" and failed["level"] == "error"
    assert any("test_deployment.py" in place and "broken" in place for place in failed["at"])


def test_prompts_are_logged_only_when_asked_for(log):
    lines = ran(log, {"EXPERTSCOPE_LOG_PROMPTS": "1"})
    assert all(line["title"] == SECRET for line in lines)
    assert [line["message"] for line in lines if "message" in line] == [SECRET]


@pytest.mark.parametrize(("prompts", "there"), [("", False), ("1", True)])
def test_what_libraries_log_of_an_exception_does_not_quote_it_either(log, prompts, there):
    log({"EXPERTSCOPE_LOG_PROMPTS": prompts})
    stream = io.StringIO()
    logger = logging.getLogger("streamlit.a_library")  # its own handler and format, as Streamlit's loggers have
    logger.propagate = False
    logger.handlers = [logging.StreamHandler(stream)]
    try:
        raise ValueError(SECRET)
    except ValueError as error:
        logger.exception("Uncaught app execution")
        logger.error("100 %% of it: %s", error, exc_info=error)
    said = stream.getvalue()
    assert ("secret" in said) == there
    assert said.count("ValueError") >= 2 and "test_deployment.py" in said and "100 % of it" in said
    logger.info("no exception: %s", "x")
    logger.handlers = []


def test_the_level_is_a_setting(log):
    for level, expected in (("error", 1), ("off", 0), ("nonsense", 3)):
        stream = log({"EXPERTSCOPE_LOG": level})
        stream.truncate(0)
        stream.seek(0)
        logger = logging.getLogger("core.jobs")
        logger.error("a")
        logger.warning("b")
        logs.event(logger, "c")
        assert len(stream.getvalue().splitlines()) == expected


def test_the_server_is_for_this_machine_alone_unless_told_otherwise():
    """Nothing in the configuration opens it, and what Streamlit guards by itself stays guarded."""
    root = Path(__file__).resolve().parent.parent
    config = tomllib.loads((root / ".streamlit" / "config.toml").read_text("utf-8"))
    assert config["server"]["address"] == "127.0.0.1"
    assert config["server"]["maxUploadSize"] == 50
    assert config["client"]["showErrorDetails"] == "none"
    assert not {"enableXsrfProtection", "enableCORS", "enableStaticServing"} & set(config["server"])
    (run,) = re.findall(r"serve\.py (.*)", (root / "Makefile").read_text("utf-8"))
    assert "--server.address 127.0.0.1" in run


def test_streamlit_still_asks_once_whether_it_runs_at_a_prompt():
    """What `serve.ask_no_prompt` answers for it; under another name Streamlit would ask again, and cost a viewer."""
    from streamlit import delta_generator

    import serve

    delta_generator._use_warning_has_been_displayed = False
    serve.ask_no_prompt()
    source = inspect.getsource(delta_generator._maybe_print_use_warning)
    assert "if not _use_warning_has_been_displayed:" in source and delta_generator._use_warning_has_been_displayed
