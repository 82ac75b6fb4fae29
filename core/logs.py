"""The server's log: one JSON object per line, without what viewers typed.

Libraries write lines of their own beside it; the messages of their exceptions, which may quote what was typed, are left
out of them all the same.

`EXPERTSCOPE_LOG` sets the level (`info` unless given; `off` for none). `EXPERTSCOPE_LOG_PROMPTS=1` lets prompts,
subjects and messages that may quote them in; else errors are logged by their kind and place. Knows `logging` only.
"""

from __future__ import annotations

import contextvars
import datetime
import json
import logging
import os
import sys
import traceback
from collections.abc import Mapping
from typing import Any, TextIO

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
OURS = ("core", "cache", "pages")
"""The loggers that it is about."""

_job: contextvars.ContextVar[str] = contextvars.ContextVar("job", default="")


def configure(environ: Mapping[str, str] = os.environ, stream: TextIO | None = None) -> None:
    """Send our loggers' messages to `stream` (stderr). Calling it again replaces what it did before."""
    level = environ.get("EXPERTSCOPE_LOG", "info").strip().lower()
    prompts = environ.get("EXPERTSCOPE_LOG_PROMPTS", "") == "1"
    logging.setLogRecordFactory(logging.LogRecord if prompts else _without_messages)
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(Lines(prompts=prompts))
    for name in OURS:
        logger = logging.getLogger(name)
        for old in [h for h in logger.handlers if isinstance(h.formatter, Lines)]:
            logger.removeHandler(old)
        logger.propagate = False
        logger.setLevel(LEVELS.get(level, logging.CRITICAL + 1 if level == "off" else logging.INFO))
        logger.addHandler(handler)


def working_on(job: str) -> None:
    """From now on what this thread logs carries the id of a piece of work; empty: of none."""
    _job.set(job)


def event(logger: logging.Logger, what: str, **fields: Any) -> None:
    """Log that something happened. `fields`: short JSON values; `private`: a mapping that is left out unless prompts
    may be logged."""
    logger.info(what, extra={"fields": fields})


def _without_messages(*args: Any, **kwargs: Any) -> logging.LogRecord:
    """A record; of an exception in a library's one only its kind and places. (Streamlit logs what a page raises.)"""
    record = logging.LogRecord(*args, **kwargs)
    error = record.exc_info[1] if record.exc_info else None
    if error is None or record.name.split(".")[0] in OURS:
        return record
    try:
        said = record.getMessage()
    except (TypeError, ValueError):  # arguments that do not fit the message
        said = ""
    if quoted := str(error):
        said = said.replace(quoted, "...")
    record.msg, record.args = f"{said} [{type(error).__name__}; {'; '.join(_places(error))}]", None
    record.exc_info = None
    return record


def _places(error: BaseException) -> list[str]:
    places = traceback.extract_tb(error.__traceback__)
    return [f"{place.filename}:{place.lineno} {place.name}" for place in places]


class Lines(logging.Formatter):
    """Records as JSON lines: time (UTC), level, module, event, its fields, and of an error the kind and the places."""

    def __init__(self, *, prompts: bool) -> None:
        super().__init__()
        self._prompts = prompts

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds")
        fields = dict(getattr(record, "fields", {}))
        private = fields.pop("private", {})
        line = {"time": when, "level": record.levelname.lower(), "module": record.name, "event": record.getMessage()}
        if job := _job.get():
            line["job"] = job
        line |= fields | (private if self._prompts else {})
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            line["error"] = type(error).__name__
            line["at"] = _places(error)
            if self._prompts:
                line["message"] = str(error)
        return json.dumps(line, default=str)
