"""A seat: one caller who waits for one job, and what this process has seen of that job since.

Streams, event streams, held calls and long polls take one each. How many a key may hold follows from how many are free (`Seats.limit`).
"""

from __future__ import annotations

import socket
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from uuid import UUID

from models.config.settings import settings
from models.jobs import job_view
from models.jobs.states import Status
from models.platform.errors import LineFull, TooManyWaiting, Unavailable
from models.queue.enqueue import Place
from workers.channels.token_stream import Chunk

# Events of a stream that lie here while their reader is slow; the rest stays in Redis until it has taken them.
PENDING_MOST = 2_000
# With this share of all seats free, a key may hold NOWSERVING_WAITING_SHARE of them.
SPARE_SHARE = 0.1
# How soon a caller without a seat is to ask again.
AGAIN_S = 5


class Seat:
    """Made by Hall.wait_for. Everything is None, empty or false until it has been seen.

    key_id: of the caller. is_stream: its answer is an event stream.
    status, place: of the job; a place only of one that waits, and only where it was asked for. seq: of the job's last event.
    is_revoked: its key is no longer good. is_gone: the client has closed its connection. end_said: a wake-up says that the job has
    ended, and whoever sits here is to look for itself (looks_itself; otherwise it is looked for, and `status` says so).
    """

    __slots__ = (
        "_ask", "_chunks", "_woken", "connection", "end_said", "is_gone", "is_revoked", "is_stream", "job_id", "key_id", "looks_itself",
        "place", "read_to", "seq", "status", "wants_chunks", "wants_place",
    )  # fmt: skip

    def __init__(
        self, job_id: UUID, key_id: int, *, is_stream: bool = False, chunks: bool = False, places: bool = False,
        looks_itself: bool = False, connection: socket.socket | None = None, ask: Callable[[UUID], None],
    ) -> None:  # fmt: skip
        """ask: has the job's stream read once more."""
        self.key_id, self.is_stream = key_id, is_stream
        self.job_id, self.wants_chunks, self.wants_place, self.connection = job_id, chunks, places, connection
        self.status: Status | None = None
        self.place: Place | None = None
        self.seq = 0
        self.looks_itself = looks_itself
        self.is_revoked = self.is_gone = self.end_said = False
        #: How far the job's stream has been read for this seat, as workers.channels.token_stream counts.
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
        self.place = (place or self.place) if self.status in job_view.WAITING else None
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
    """All seats of this process, by their jobs and by their keys."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of: dict[UUID, list[Seat]] = {}
        self._taken = 0
        self._by_key: Counter[int] = Counter()
        self._streams: Counter[int] = Counter()

    def __len__(self) -> int:
        return self._taken

    @property
    def streams(self) -> int:
        """How many of them are event streams."""
        return self._streams.total()

    def expect_room(self, key_id: int, *, is_stream: bool = False) -> None:
        """Raises Unavailable when no seat is free, TooManyWaiting or LineFull when this key has as many seats or streams as it may."""
        wanted = settings()
        free = wanted.max_waiting_per_process - len(self)
        if free <= 0:
            raise Unavailable("Too many callers wait here. Ask again in a few seconds, without waiting.", retry_after_s=AGAIN_S)
        if self._by_key[key_id] >= limit(free, seats=wanted.max_waiting_per_process, share=wanted.waiting_share):
            raise TooManyWaiting(retry_after_s=AGAIN_S)
        if is_stream and self._streams[key_id] >= wanted.max_streams_per_key:
            raise LineFull(
                f"This key has {wanted.max_streams_per_key} streams open, as many as it may. Close one, or look with GET /v1/jobs/{{id}}.",
                code="too_many_streams", retry_after_s=2 * AGAIN_S,
            )  # fmt: skip

    def add(self, seat: Seat) -> None:
        """It is one of them."""
        with self._lock:
            self._of[seat.job_id] = [*self._of.get(seat.job_id, ()), seat]
            self._count(seat, 1)

    def remove(self, seat: Seat) -> None:
        """It is none of them; nothing happens when it was not."""
        with self._lock:
            had = self._of.get(seat.job_id, [])
            left = [one for one in had if one is not seat]
            if len(left) < len(had):
                self._count(seat, -1)
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

    def _count(self, seat: Seat, change: int) -> None:
        self._taken += change
        for counts in (self._by_key, self._streams) if seat.is_stream else (self._by_key,):
            counts[seat.key_id] += change
            if not counts[seat.key_id]:
                del counts[seat.key_id]


def limit(free: int, *, seats: int, share: float) -> float:
    """How many of all `seats` one key may hold while `free` are free. share: NOWSERVING_WAITING_SHARE.

    With a tenth free it is `share` of all; with more free it is more, with fewer free fewer, by the square. So a key that waits alone gets
    most seats, two that want all get less than half each, and the last ones are for keys that hold none. Nobody who sits has to leave.
    Source: dynamic queue length thresholds (Choudhury, Hahne 1998). By the square, or a handful of keys, one after another, would take all.
    """
    return float(seats * share * (free / (seats * SPARE_SHARE)) ** 2)
