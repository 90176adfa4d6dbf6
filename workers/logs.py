"""Logs of the processes behind the API: one event and its ids a line; keys are struck out wherever they appear."""

from __future__ import annotations

import json
import logging
import re
import sys

SECRETS = re.compile(r"\b(?:sk|ns|gw)-[A-Za-z0-9_\-]{6,}|Bearer\s+\S+|whsec_\S+|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)")
STRUCK = "[secret]"
# What every LogRecord has; the rest was given as `extra`.
USUAL = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "data"}


class Line(logging.Formatter):
    """`time level logger event {ids}`."""

    def format(self, record: logging.LogRecord) -> str:
        ids = {name: value for name, value in vars(record).items() if name not in USUAL}
        line = f"{self.formatTime(record)} {record.levelname} {record.name}: {record.getMessage()}"
        if ids:
            line += " " + json.dumps(ids, default=str)
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return SECRETS.sub(STRUCK, line)


def configure(level: str) -> None:
    """Root logs to standard error; the HTTP and OpenAI libraries only when something is wrong."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Line())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # celery.worker.strategy and celery.app.trace say two lines a job; the job's own events are in Postgres.
    for name in ("httpx2", "httpcore2", "openai", "kombu", "amqp", "celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(name).setLevel(logging.WARNING)
