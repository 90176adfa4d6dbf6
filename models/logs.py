"""The log: one JSON line per event, on stderr, from which anything that looks like a key has been struck."""

from __future__ import annotations

import json
import logging
import logging.config
import re
from datetime import UTC, datetime
from typing import Any

_SECRETS = (
    (re.compile(r"\b(sk|ns|nsop|gw)-[A-Za-z0-9_\-]{3,}"), r"\1-…"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[^\s\"',}]+"), r"\1 …"),
    (re.compile(r"whsec_[^\s\"',}]+"), "whsec_…"),
    (re.compile(r"(?i)\b([a-z][a-z0-9+.\-]*://)[^/\s@\"']+@"), r"\1…@"),
    (re.compile(r"(?i)\b(api_?key|access_token|signature|sentinel_password)=[^&\s\"']+"), r"\1=…"),
)
# Two lines a job between them; the job's own events are in Postgres.
_TALKATIVE = ("httpx2", "httpcore2", "openai", "kombu", "amqp", "celery.worker.strategy", "celery.app.trace")
_ORDINARY = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def redact(text: str) -> str:
    """The text without keys, tokens, secrets of webhooks and passwords in addresses."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


class Redaction(logging.Filter):
    """No handler behind this one sees a secret: in the message, its arguments, the fields or the traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redact(record.getMessage()), None
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text, record.exc_info = redact(record.exc_text), None
        for name, value in vars(record).items():
            if name not in _ORDINARY and value is not None:
                setattr(record, name, _redact_field(value))
        return True


class Lines(logging.Formatter):
    """One JSON object a line: at, level, logger, event, and the fields given as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        line |= {name: value for name, value in vars(record).items() if name not in _ORDINARY and value is not None}
        if record.exc_info or record.exc_text:
            line["traceback"] = record.exc_text or self.formatException(record.exc_info)  # type: ignore[arg-type]  # one of both is there
        return json.dumps(line, default=str)


def config(level: str) -> dict[str, Any]:
    """For logging.config.dictConfig."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"redaction": {"()": "models.logs.Redaction"}},
        "formatters": {"lines": {"()": "models.logs.Lines"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "filters": ["redaction"], "formatter": "lines"}},
        "root": {"level": level.upper(), "handlers": ["stderr"]},
        "loggers": {name: {"level": "WARNING"} for name in _TALKATIVE},
    }


def configure(level: str) -> None:
    """This process logs so from now on."""
    logging.config.dictConfig(config(level))


def _redact_field(value: object) -> object:
    return value if isinstance(value, (bool, int, float)) else redact(value if isinstance(value, str) else json.dumps(value, default=str))
