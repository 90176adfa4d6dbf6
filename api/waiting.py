"""The hall: everybody in this process who waits for a job, on seats that four threads look after, however many there are.

While somebody waits nothing is held but its own greenlet (or thread) and connection: no transaction, no connection to Redis.
"""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from api.door import Door
from api.listener import Listener
from api.looker import LOOK_AGAIN_S, Looker
from api.seat import Seat, Seats
from models import metrics
from models.errors import LineFull, Unavailable
from models.settings import settings

__all__ = ["LOOK_AGAIN_S", "Hall", "Seat", "hall"]


class Hall:
    """Seats for those who wait; `close` lets them all go."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seats = Seats()
        self._looker = Looker(self._seats)
        self._listener = Listener(self._seats, woken=self._looker.look)
        self._door = Door(self._seats)
        self._streams: Counter[int] = Counter()
        self._is_open = False
        self.is_closing = False

    def __len__(self) -> int:
        """How many wait here."""
        return len(self._seats)

    @property
    def streams(self) -> int:
        """How many streams are open."""
        return self._streams.total()

    @contextmanager
    def wait_for(
        self, job_id: UUID, *, chunks: bool = False, places: bool = False, looks_itself: bool = False,
        connection: socket.socket | None = None,
    ) -> Iterator[Seat]:  # fmt: skip
        """A seat, where is seen what becomes of this job. Raises Unavailable when too many wait here.

        chunks: its stream is read, too. places: its place in line is looked up every second or few. looks_itself: when its end is
        said, see Seat. connection: of the client.
        """
        seat = Seat(job_id, chunks=chunks, places=places, looks_itself=looks_itself, connection=connection, ask=self._listener.attend)
        self._open()
        with self._lock:
            self.expect_room()
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

    def expect_room(self) -> None:
        """Raises Unavailable when too many wait here: to be asked before there is a job that nobody could wait for."""
        if len(self._seats) >= settings().max_waiting_per_process:
            raise Unavailable("Too many callers wait here. Ask again in a few seconds, without waiting.", retry_after_s=5)

    def open_stream(self, key_id: int) -> None:
        """One more stream of this key; `close_stream` must follow. Raises Unavailable or LineFull when there are too many."""
        most = settings().max_streams_per_key
        with self._lock:
            if self.is_closing or self.streams >= settings().max_waiting_per_process:
                raise Unavailable("This server has as many streams open as it can bear. Try again in a few seconds.", retry_after_s=5)
            if self._streams[key_id] >= most:
                raise LineFull(f"This key has {most} streams open, as many as it may.", code="too_many_streams", retry_after_s=10)
            self._streams[key_id] += 1

    def close_stream(self, key_id: int) -> None:
        """The stream is over."""
        with self._lock:
            self._streams[key_id] -= 1
            if self._streams[key_id] <= 0:
                del self._streams[key_id]

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
