"""The log: one JSON line per event, on stderr, from which anything that looks like a key has been struck.

What a request or a job is about (`job`, `lane`, `key`, `attempt`, `request_id`, `trace_id`) is said once, where it becomes known, and
stands in every line of that thread or greenlet from then on: ids of ours, never what somebody sent.
"""

from __future__ import annotations

import json
import logging
import logging.config
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from models.platform import token_forms

_PREFIXES = (*token_forms.OURS, *token_forms.UPSTREAM)
_NAMES = (*token_forms.QUERY_NAMES, *token_forms.SECRET_NAMES)
# Pattern, replacement, and parts of which one stands in lower case in all that the pattern matches.
_SECRETS = (
    (re.compile(rf"(?<![A-Za-z0-9])({'|'.join(_PREFIXES)})[^\s\"',}}]{{3,}}"), r"\1…", tuple(_PREFIXES)),
    (re.compile(r"(?i)\b(bearer|basic)\s+[^\s\"',}]+"), r"\1 …", ("bearer", "basic")),
    (re.compile(r"(?i)\b([a-z][a-z0-9+.\-]*://)[^/\s@\"']+@"), r"\1…@", ("://",)),
    (re.compile(rf"(?i)\b({'|'.join(_NAMES)})=[^&\s\"']+"), r"\1=…", tuple({f"{name.lower()}=" for name in _NAMES})),
)
# Two lines a job between them; the job's own events are in Postgres.
_TALKATIVE = ("httpx2", "httpcore2", "openai", "kombu", "amqp", "celery.worker.strategy", "celery.app.trace")
_JSON = json.JSONEncoder(default=str)
_ORDINARY = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


# Looked for first: the patterns would take ten times as long as all else that makes a line.
_SUSPECT = tuple({sign for _, _, signs in _SECRETS for sign in signs})
_about: ContextVar[dict[str, object] | None] = ContextVar("about", default=None)


def bind(**about: object) -> None:
    """Lines of this thread or greenlet are about this from now on, and about nothing of before."""
    _about.set(_known(about))


def extend(**about: object) -> None:
    """And about this; None takes nothing away. Without effect where nothing was begun."""
    begun = _about.get()
    if begun is not None:
        begun.update(_known(about))


@contextmanager
def bound(**about: object) -> Iterator[None]:
    """Inside, lines are about this; afterwards about what they were before."""
    token = _about.set(_known(about))
    try:
        yield
    finally:
        _about.reset(token)


def redact(text: str) -> str:
    """The text without keys, tokens, secrets of webhooks and passwords in addresses."""
    for pattern, instead, _ in _SECRETS:
        text = pattern.sub(instead, text)
    return text


class Lines(logging.Formatter):
    """One JSON object a line: at, level, logger, event, what the thread is about, and the fields given as `extra`; without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"at": at, "level": record.levelname.lower(), "logger": record.name, "event": record.getMessage()}
        line |= _about.get() or {}
        line |= {name: value for name, value in vars(record).items() if name not in _ORDINARY and value is not None}
        if record.exc_info or record.exc_text:
            line["traceback"] = record.exc_text or self.formatException(record.exc_info)  # type: ignore[arg-type]  # one of both is there
        said = _JSON.encode(line)
        small = said.lower()
        if any(sign in small for sign in _SUSPECT):
            return _JSON.encode({name: _redact_field(value) for name, value in line.items()})
        return said


def config(level: str) -> dict[str, Any]:
    """For logging.config.dictConfig."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"lines": {"()": "models.telemetry.logs.Lines"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "lines"}},
        "root": {"level": level.upper(), "handlers": ["stderr"]},
        "loggers": {name: {"level": "WARNING"} for name in _TALKATIVE},
    }


def configure(level: str) -> None:
    """This process logs so from now on."""
    logging.config.dictConfig(config(level))


def _known(about: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in about.items() if value is not None}


def _redact_field(value: object) -> object:
    return value if isinstance(value, (bool, int, float)) else redact(value if isinstance(value, str) else json.dumps(value, default=str))
