"""One call's events on their way to whoever reads the job, and kept for its transcript."""

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
    """has_begun: an event may have been read, so the call is not to be made again. Event k of the transcript is chunk k."""

    def __init__(self, row: Any) -> None:
        self.has_begun = False
        self._ids = {"job_id": row.id, "dispatch_id": row.dispatch_id}
        self._events: list[bytes] = []
        self._passed = 0
        self._is_open = True

    @property
    def transcript(self) -> bytes | None:
        """Every event so far; None when there was none."""
        return b"".join(self._events) or None

    def take(self, event: bytes) -> None:
        """The next event, in ASCII with its empty line; read by others after the next `flush`."""
        self._events.append(event)

    def flush(self) -> None:
        """Everything taken can be read, in one round trip. To be called before waiting for more.

        Whoever cannot be reached is not tried again for this call: what was not passed on is in the transcript.
        """
        if not self._is_open or self._passed == len(self._events):
            return
        self._is_open = (self.has_begun or self._begin()) and self._add()

    def end(self) -> None:
        """Redis need not keep for long what has its place in the transcript."""
        if self.has_begun and self._is_open:
            with suppress(redis.RedisError):
                token_stream.shorten_ttl(self._ids["job_id"])

    def _begin(self) -> bool:
        """On record before the first event can be read: from here on a lost call is a failed job."""
        try:
            with db.begin() as session:
                self.has_begun = claims.mark_streaming(session, **self._ids)
        except Unavailable:
            log.warning("a stream is not relayed: Postgres is away", extra=self._said())
            return False
        if not self.has_begun:
            log.warning("a stream is not relayed: the lease is lost", extra=self._said())
        crash_points.at("worker.after_relayed")
        return self.has_begun

    def _add(self) -> bool:
        dispatch_id = self._ids["dispatch_id"]
        fresh = [Chunk(dispatch_id, n, self._events[n]) for n in range(self._passed, len(self._events))]
        try:
            token_stream.append(fresh, job_id=self._ids["job_id"])
        except redis.RedisError as error:
            log.warning("a stream is not relayed further", extra={**self._said(), "error": type(error).__name__})
            return False
        self._passed = len(self._events)
        return True

    def _said(self) -> dict[str, str]:
        return {"dispatch_id": str(self._ids["dispatch_id"])}
