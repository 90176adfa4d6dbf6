"""Publishes the events of one call's stream to the readers of its job, and keeps them as the job's transcript."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any

import redis

from models.database import db
from models.jobs import claims
from models.platform import crash_points
from models.platform.errors import Unavailable
from workers.channels import token_stream
from workers.channels.token_stream import Chunk

log = logging.getLogger(__name__)


class StreamPublisher:
    """has_published: an event may have been read, so the call must not be repeated. Event k of the transcript is chunk k."""

    def __init__(self, row: Any) -> None:
        self.has_published = False
        self._ids = {"job_id": row.id, "dispatch_id": row.dispatch_id}
        self._events: list[bytes] = []
        self._published = 0
        self._is_open = True

    @property
    def transcript(self) -> bytes | None:
        """Every event so far; None without events."""
        return b"".join(self._events) or None

    def add(self, event: bytes) -> None:
        """Adds an event, in ASCII with its empty line. Readers get it with the next `flush`."""
        self._events.append(event)

    def flush(self) -> None:
        """Publishes the added events in one round trip. Call it before waiting for more bytes.

        After a failed publish, this call's stream is not published further; the transcript holds the rest.
        """
        if not self._is_open or self._published == len(self._events):
            return
        self._is_open = (self.has_published or self._begin()) and self._publish()

    def end(self) -> None:
        """Shortens the stream's lifetime in Redis: the transcript replaces it."""
        if self.has_published and self._is_open:
            with suppress(redis.RedisError):
                token_stream.shorten_ttl(self._ids["job_id"])

    def _begin(self) -> bool:
        """Marks the job as streaming before the first event can be read: from then on, a lost call fails the job."""
        try:
            with db.begin() as session:
                self.has_published = claims.mark_streaming(session, **self._ids)
        except Unavailable:
            log.warning("a stream is not published: Postgres is unavailable", extra=self._log_fields())
            return False
        if not self.has_published:
            log.warning("a stream is not published: the lease is lost", extra=self._log_fields())
        crash_points.hit("worker.after_relayed")
        return self.has_published

    def _publish(self) -> bool:
        dispatch_id = self._ids["dispatch_id"]
        chunks = [Chunk(dispatch_id, n, self._events[n]) for n in range(self._published, len(self._events))]
        try:
            token_stream.append(chunks, job_id=self._ids["job_id"])
        except redis.RedisError as error:
            log.warning("a stream is not published further", extra={**self._log_fields(), "error": type(error).__name__})
            return False
        self._published = len(self._events)
        return True

    def _log_fields(self) -> dict[str, str]:
        return {"dispatch_id": str(self._ids["dispatch_id"])}
