"""A waiter: one client that waits for one job, and the latest state of that job in this process.

Streams, event streams, held calls and long polls take one waiter each.
"""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

from models.jobs import job_view
from models.jobs.states import Status
from models.queue.position import QueuePosition
from workers.channels.token_stream import Chunk

# Chunks that a waiter buffers for a slow client. Redis keeps the rest until the client has taken these.
MAX_BUFFERED = 2_000


class Waiter:
    """Made by Registry.wait_for. Every attribute is None, empty or false until the poller or pub/sub has set it.

    key_id: of the client. is_stream: the response is an event stream.
    status, seq: of the job and its last event. place: the position of a queued job, only with wants_place.
    is_revoked: the key was revoked. is_disconnected: the client has closed its connection.
    end_notified: pub/sub reported the end of the job. With polls_itself the waiter's thread then reads the row; otherwise the poller
    sets `status`.
    """

    __slots__ = (
        "_chunks", "_read_stream", "_woken", "connection", "end_notified", "is_disconnected", "is_revoked", "is_stream", "job_id", "key_id",
        "place", "polls_itself", "read_to", "seq", "status", "wants_chunks", "wants_place",
    )  # fmt: skip

    def __init__(
        self, job_id: UUID, key_id: int, *, is_stream: bool = False, chunks: bool = False, places: bool = False,
        polls_itself: bool = False, connection: socket.socket | None = None, read_stream: Callable[[UUID], None],
    ) -> None:  # fmt: skip
        """read_stream: requests another read of the job's token stream."""
        self.key_id, self.is_stream = key_id, is_stream
        self.job_id, self.wants_chunks, self.wants_place, self.connection = job_id, chunks, places, connection
        self.status: Status | None = None
        self.place: QueuePosition | None = None
        self.seq = 0
        self.polls_itself = polls_itself
        self.is_revoked = self.is_disconnected = self.end_notified = False
        #: The last entry of the token stream that this waiter has, as in workers.channels.token_stream.
        self.read_to = ""
        self._chunks: deque[Chunk] = deque()
        self._woken = threading.Event()
        self._read_stream = read_stream

    def wait(self, timeout_s: float) -> bool:
        """Waits for a change since the last wait; returns whether there was one before the timeout."""
        is_changed = self._woken.wait(timeout_s)
        self._woken.clear()
        return is_changed

    def take_chunks(self) -> list[Chunk]:
        """Removes and returns the buffered chunks, in order."""
        was_full, chunks = self.is_full, []
        while self._chunks:
            chunks.append(self._chunks.popleft())
        if was_full:
            self._read_stream(self.job_id)
        return chunks

    @property
    def has_chunks(self) -> bool:
        """Whether there are buffered chunks."""
        return bool(self._chunks)

    @property
    def is_full(self) -> bool:
        """Whether the buffer takes no more chunks until `take_chunks`."""
        return len(self._chunks) >= MAX_BUFFERED

    def update(self, job: Any, place: QueuePosition | None) -> None:
        """Sets the job's state. job: a row of job_rows.status_of. place None: the job has none, or this poll did not read it."""
        before = self._state()
        self.status, self.seq, self.is_revoked = Status(job.status), job.seq, job.is_revoked
        self.place = (place or self.place) if self.status in job_view.WAITING else None
        if before != self._state():
            self.wake()

    def push(self, chunks: Sequence[Chunk], *, read_to: str) -> None:
        """Buffers the next chunks. read_to: the last entry of the token stream that was read."""
        self._chunks.extend(chunks)
        self.read_to = read_to
        self.wake()

    def notify_end(self) -> None:
        """Marks the job as ended, as pub/sub reported."""
        self.end_notified = True
        self.wake()

    def mark_disconnected(self) -> None:
        """Marks the client as disconnected."""
        self.is_disconnected = True
        self.wake()

    def wake(self) -> None:
        """Ends the current or next `wait`."""
        self._woken.set()

    def _state(self) -> tuple[object, ...]:
        return self.status, self.seq, self.is_revoked, self.place and (self.place.position, self.place.standstill)
