"""A seat: one caller who waits for one job, and what this process has seen of that job since."""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from uuid import UUID

from models import view
from models.job import Status
from models.line import Place
from workers.chunks import Chunk

# Events of a stream that lie here while their reader is slow; the rest stays in Redis until it has taken them.
PENDING_MOST = 2_000


class Seat:
    """Made by Hall.wait_for. Everything is None, empty or false until it has been seen.

    status, place: of the job; a place only of one that waits, and only where it was asked for. seq: of the job's last event.
    is_revoked: its key is no longer good. is_gone: the client has closed its connection. end_said: a wake-up says that the job has
    ended, and whoever sits here is to look for itself (looks_itself; otherwise it is looked for, and `status` says so).
    """

    __slots__ = (
        "_ask", "_chunks", "_woken", "connection", "end_said", "is_gone", "is_revoked", "job_id", "looks_itself", "place", "read_to",
        "seq", "status", "wants_chunks", "wants_place",
    )  # fmt: skip

    def __init__(
        self, job_id: UUID, *, chunks: bool = False, places: bool = False, looks_itself: bool = False,
        connection: socket.socket | None = None, ask: Callable[[UUID], None],
    ) -> None:  # fmt: skip
        """ask: has the job's stream read once more."""
        self.job_id, self.wants_chunks, self.wants_place, self.connection = job_id, chunks, places, connection
        self.status: Status | None = None
        self.place: Place | None = None
        self.seq = 0
        self.looks_itself = looks_itself
        self.is_revoked = self.is_gone = self.end_said = False
        #: How far the job's stream has been read for this seat, as workers.chunks counts.
        self.read_to = ""
        self._chunks: deque[Chunk] = deque()
        self._woken = threading.Event()
        self._ask = ask

    def wait(self, timeout_s: float) -> bool:
        """Returns when something has happened since the last wait, or the time is up; whether something has."""
        happened = self._woken.wait(timeout_s)
        self._woken.clear()
        return happened

    def take(self) -> list[Chunk]:
        """The chunks that came since the last take, in order."""
        was_full, taken = self.is_full, []
        while self._chunks:
            taken.append(self._chunks.popleft())
        if was_full:
            self._ask(self.job_id)
        return taken

    @property
    def has_chunks(self) -> bool:
        """Whether there is something to take."""
        return bool(self._chunks)

    @property
    def is_full(self) -> bool:
        """Whether its reader has to take chunks before there is room for more."""
        return len(self._chunks) >= PENDING_MOST

    def see(self, job: Any, place: Place | None) -> None:
        """The job was seen like this. job: a row of view.glance. place None: it has none, or was not asked for it this time."""
        before = (self.status, self.seq, self.is_revoked, _shown(self.place))
        self.status, self.seq, self.is_revoked = Status(job.status), job.seq, job.is_revoked
        self.place = (place or self.place) if self.status in view.WAITING else None
        if before != (self.status, self.seq, self.is_revoked, _shown(self.place)):
            self.wake()

    def feed(self, chunks: Sequence[Chunk], *, read_to: str) -> None:
        """These chunks came, and the job's stream has been read so far."""
        self._chunks.extend(chunks)
        self.read_to = read_to
        self.wake()

    def say_ended(self) -> None:
        """The job has ended, as a wake-up says."""
        self.end_said = True
        self.wake()

    def lose(self) -> None:
        """The client is gone."""
        self.is_gone = True
        self.wake()

    def wake(self) -> None:
        """Whoever sits here looks around."""
        self._woken.set()


def _shown(place: Place | None) -> tuple[int, str | None] | None:
    return None if place is None else (place.position, place.standstill)


class Seats:
    """All seats of this process, by their jobs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of: dict[UUID, list[Seat]] = {}
        self._taken = 0

    def __len__(self) -> int:
        return self._taken

    def add(self, seat: Seat) -> None:
        """It is one of them."""
        with self._lock:
            self._of[seat.job_id] = [*self._of.get(seat.job_id, ()), seat]
            self._taken += 1

    def remove(self, seat: Seat) -> None:
        """It is none of them; nothing happens when it was not."""
        with self._lock:
            had = self._of.get(seat.job_id, [])
            left = [one for one in had if one is not seat]
            self._taken -= len(had) - len(left)
            if left:
                self._of[seat.job_id] = left
            else:
                self._of.pop(seat.job_id, None)

    def of(self, job_id: UUID) -> Sequence[Seat]:
        """Those who wait for this job. What is returned never changes."""
        return self._of.get(job_id, ())

    def jobs(self) -> list[UUID]:
        """What is waited for."""
        with self._lock:
            return list(self._of)

    def everybody(self) -> Iterable[Seat]:
        """All seats that are taken now."""
        with self._lock:
            return [seat for seats in self._of.values() for seat in seats]
