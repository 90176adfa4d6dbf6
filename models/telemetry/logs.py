"""Structured logging: one JSON line per event, on stderr. Text that looks like a key is redacted.

A context variable holds the ids of the current request or job (`job`, `lane`, `key`, `attempt`, `request_id`, `trace_id`). They are
bound once, and the formatter adds them to every line of that thread or greenlet. They are ids of this system, never a caller's content.
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
# Pattern, replacement, and lower-case substrings: every match of the pattern contains one of them.
_SECRETS = (
    (re.compile(rf"(?<![A-Za-z0-9])({'|'.join(_PREFIXES)})[^\s\"',}}]{{3,}}"), r"\1…", tuple(_PREFIXES)),
    (re.compile(r"(?i)\b(bearer|basic)\s+[^\s\"',}]+"), r"\1 …", ("bearer", "basic")),
    (re.compile(r"(?i)\b([a-z][a-z0-9+.\-]*://)[^/\s@\"']+@"), r"\1…@", ("://",)),
    (re.compile(rf"(?i)\b({'|'.join(_NAMES)})=[^&\s\"']+"), r"\1=…", tuple({f"{name.lower()}=" for name in _NAMES})),
)
# Together these log two lines a job; the events of the job are in Postgres.
_VERBOSE_LOGGERS = ("httpx2", "httpcore2", "openai", "kombu", "amqp", "celery.worker.strategy", "celery.app.trace")
_JSON = json.JSONEncoder(default=str)
_STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
# A line without any of these substrings is not redacted: the patterns take ten times as long as the rest of the formatting.
_SECRET_SIGNS = tuple({sign for _, _, signs in _SECRETS for sign in signs})
_context: ContextVar[dict[str, object] | None] = ContextVar("log_context", default=None)


def bind(**fields: object) -> None:
    """Replaces the log context of this thread or greenlet by these fields."""
    _context.set(_without_none(fields))


def extend(**fields: object) -> None:
    """Adds fields to the log context; None removes nothing. No effect where `bind` was not called."""
    context = _context.get()
    if context is not None:
        context.update(_without_none(fields))


@contextmanager
def bound(**fields: object) -> Iterator[None]:
    """Binds these fields inside the block, and restores the context afterwards."""
    token = _context.set(_without_none(fields))
    try:
        yield
    finally:
        _context.reset(token)


def redact(text: str) -> str:
    """The text without keys, tokens, webhook secrets and passwords in URLs."""
    for pattern, instead, _ in _SECRETS:
        text = pattern.sub(instead, text)
    return text


class JsonFormatter(logging.Formatter):
    """Formats a record as a JSON object: at, level, logger, event, the log context, and the fields of `extra`; secrets are redacted."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"at": at, "level": record.levelname.lower(), "logger": record.name, "event": record.getMessage()}
        line |= _context.get() or {}
        line |= {name: value for name, value in vars(record).items() if name not in _STANDARD_FIELDS and value is not None}
        if record.exc_info or record.exc_text:
            line["traceback"] = record.exc_text or self.formatException(record.exc_info)  # type: ignore[arg-type]  # one of the two is set
        encoded = _JSON.encode(line)
        lowered = encoded.lower()
        if any(sign in lowered for sign in _SECRET_SIGNS):
            return _JSON.encode({name: _redact_field(value) for name, value in line.items()})
        return encoded


def config(level: str) -> dict[str, Any]:
    """The configuration for logging.config.dictConfig."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"lines": {"()": "models.telemetry.logs.JsonFormatter"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "lines"}},
        "root": {"level": level.upper(), "handlers": ["stderr"]},
        "loggers": {name: {"level": "WARNING"} for name in _VERBOSE_LOGGERS},
    }


def configure(level: str) -> None:
    """Configures logging in this process."""
    logging.config.dictConfig(config(level))


def _without_none(fields: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in fields.items() if value is not None}


def _redact_field(value: object) -> object:
    return value if isinstance(value, (bool, int, float)) else redact(value if isinstance(value, str) else json.dumps(value, default=str))
