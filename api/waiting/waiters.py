"""The hall: everybody in this process who waits for a job, on seats that four threads look after, however many there are.

While somebody waits nothing is held but its own greenlet (or thread) and connection: no transaction, no connection to Redis.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from api.waiting.db_poller import LOOK_AGAIN_S, Looker
from api.waiting.disconnect_poller import Door
from api.waiting.redis_listener import Listener
from api.waiting.waiter import Seat, Seats
from models.platform.errors import Unavailable
from models.telemetry import metrics

__all__ = ["LOOK_AGAIN_S", "Hall", "Seat", "hall"]


class Hall:
    """Seats for those who wait; `close` lets them all go."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seats = Seats()
        self._looker = Looker(self._seats)
        self._listener = Listener(self._seats, woken=self._looker.look)
        self._door = Door(self._seats)
        self._is_open = False
        self.is_closing = False

    def __len__(self) -> int:
        """How many wait here."""
        return len(self._seats)

    @property
    def streams(self) -> int:
        """How many streams are open."""
        return self._seats.streams

    @contextmanager
    def wait_for(
        self, job_id: UUID, key_id: int, *, is_stream: bool = False, chunks: bool = False, places: bool = False,
        looks_itself: bool = False, connection: socket.socket | None = None,
    ) -> Iterator[Seat]:  # fmt: skip
        """A seat, where is seen what becomes of this job. Raises what `expect_room` raises.

        key_id: of the caller. is_stream: the answer is an event stream. chunks: the job's stream is read, too. places: its place in line is
        looked up every second or few. looks_itself: when its end is said, see Seat. connection: of the client.
        """
        seat = Seat(
            job_id, key_id, is_stream=is_stream, chunks=chunks, places=places, looks_itself=looks_itself, connection=connection,
            ask=self._listener.attend,
        )  # fmt: skip
        self._open()
        with self._lock:
            self.expect_room(key_id, is_stream=is_stream)
            self._seats.add(seat)
            metrics.held_clients.inc()
        try:
            self._looker.look([job_id])
            if chunks:
                self._listener.attend(job_id)
            if self.is_closing:
                seat.wake()
            yield seat
        finally:
            self._seats.remove(seat)
            metrics.held_clients.dec()
            if chunks:
                self._listener.attend(job_id)

    def expect_room(self, key_id: int, *, is_stream: bool = False) -> None:
        """Raises Unavailable, TooManyWaiting or LineFull (429) when this key can have no seat now: to be asked before there is a job that
        nobody could wait for."""
        if is_stream and self.is_closing:
            raise Unavailable("This server restarts. Send the same request again.", retry_after_s=1)
        self._seats.expect_room(key_id, is_stream=is_stream)

    def close(self) -> None:
        """The process ends: whoever waits is let go now, and comes back elsewhere."""
        self.is_closing = True
        for part in (self._looker, self._listener, self._door):
            part.close()
        for seat in self._seats.everybody():
            seat.wake()

    def _open(self) -> None:
        """Begun on first use: a thread does not survive the fork of gunicorn's workers."""
        with self._lock:
            if self._is_open or self.is_closing:
                return
            self._is_open = True
        for name, work in (
            ("looker", self._looker.run), ("listener", self._listener.listen), ("fetcher", self._listener.run), ("door", self._door.run),
        ):  # fmt: skip
            threading.Thread(target=work, name=name, daemon=True).start()


hall = Hall()
