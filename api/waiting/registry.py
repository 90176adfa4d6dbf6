"""The registry of waiters: every client of this process that waits for a job, served by four threads however many there are.

A waiting client holds its greenlet (or thread) and its connection: no transaction and no connection to Redis.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from api.waiting.db_poller import DbPoller
from api.waiting.disconnect_poller import DisconnectPoller
from api.waiting.redis_listener import RedisListener
from api.waiting.waiter import Waiter
from api.waiting.waiters import Waiters
from models.platform.errors import Unavailable
from models.telemetry import metrics


class Registry:
    """Adds and removes waiters and runs the threads that update them; `close` wakes all of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiters = Waiters()
        self._db_poller = DbPoller(self._waiters)
        self._listener = RedisListener(self._waiters, poll_soon=self._db_poller.poll_soon)
        self._disconnect_poller = DisconnectPoller(self._waiters)
        self._is_started = False
        self.is_closing = False

    def __len__(self) -> int:
        """The number of waiters."""
        return len(self._waiters)

    @property
    def streams(self) -> int:
        """The number of open streams."""
        return self._waiters.streams

    @contextmanager
    def wait_for(
        self, job_id: UUID, key_id: int, *, is_stream: bool = False, chunks: bool = False, places: bool = False,
        polls_itself: bool = False, connection: socket.socket | None = None,
    ) -> Iterator[Waiter]:  # fmt: skip
        """A waiter that follows this job. Raises the errors of `check_capacity`.

        key_id: of the client. is_stream: the response is an event stream. chunks: also read the job's token stream. places: also read the
        job's position, every second or few. polls_itself: see Waiter. connection: of the client.
        """
        waiter = Waiter(
            job_id, key_id, is_stream=is_stream, chunks=chunks, places=places, polls_itself=polls_itself, connection=connection,
            read_stream=self._listener.update_stream,
        )  # fmt: skip
        self._start()
        with self._lock:
            self.check_capacity(key_id, is_stream=is_stream)
            self._waiters.add(waiter)
            metrics.held_clients.inc()
        try:
            self._db_poller.poll_soon([job_id])
            if chunks:
                self._listener.update_stream(job_id)
            if self.is_closing:
                waiter.wake()
            yield waiter
        finally:
            self._waiters.remove(waiter)
            metrics.held_clients.dec()
            if chunks:
                self._listener.update_stream(job_id)

    def check_capacity(self, key_id: int, *, is_stream: bool = False) -> None:
        """Raises Unavailable, TooManyWaiting or QueueFull (429) when this key can have no waiter now.

        Views call it before they store a job for which no client could wait.
        """
        if is_stream and self.is_closing:
            raise Unavailable("This server restarts. Send the same request again.", retry_after_s=1)
        self._waiters.check_capacity(key_id, is_stream=is_stream)

    def close(self) -> None:
        """Wakes all waiters because the process ends: their clients reconnect elsewhere."""
        self.is_closing = True
        for part in (self._db_poller, self._listener, self._disconnect_poller):
            part.close()
        for waiter in self._waiters.all():
            waiter.wake()

    def _start(self) -> None:
        """Starts the threads on first use: a thread does not survive the fork of gunicorn's workers."""
        with self._lock:
            if self._is_started or self.is_closing:
                return
            self._is_started = True
        for name, run in (
            ("db poller", self._db_poller.run), ("redis listener", self._listener.listen), ("stream reader", self._listener.run),
            ("disconnect poller", self._disconnect_poller.run),
        ):  # fmt: skip
            threading.Thread(target=run, name=name, daemon=True).start()


waiter_registry = Registry()
