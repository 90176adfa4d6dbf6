"""Generates the events of one streamed response.

Events come from the Redis token stream while the call runs. Events that Redis lost, or that were published before this client connected,
are read from the transcript after the job has ended: the n-th event is the same in both.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from uuid import UUID

from api.http import errors
from api.openai import replies, sse_frames
from api.waiting.disconnect_poller import is_closed
from api.waiting.registry import waiter_registry
from api.waiting.waiter import Waiter
from models.content.endpoints import CHAT
from models.database import db
from models.jobs import job_rows
from models.jobs.states import TERMINAL
from models.keys.keys import Key
from models.platform import wire
from models.platform.errors import ServingError, Unauthorised, Unavailable
from models.platform.wire import JsonObject
from workers.channels.token_stream import Chunk

# Proxies and browsers give up after 30 to 60 s of silence; go-openai gives up after 300 lines without data, at any rate.
COMMENT_INTERVAL_S = 10.0
# Retry interval while Postgres is unavailable and the end must be read.
RETRY_READ_S = 1.0
FIRST_COMMENT = b": waiting\n"


class StreamRestarted(ServingError):
    """The upstream call broke in the middle of the stream and was repeated."""

    code = "stream_restarted"


class StreamEvents:
    """The events for one client. is_settled: the client received everything, or its disconnect was recorded."""

    def __init__(self, caller: Key, waiter: Waiter, *, new_name: str | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """new_name: replaces the completion id in all chunks."""
        self.is_settled = False
        self._caller, self._waiter, self._name, self._clock = caller, waiter, new_name, clock
        self._dispatch_id: UUID | None = None
        self._sent, self._last_event, self._digest = 0, b"", hashlib.sha256()
        self._position: int | None = None
        self._sent_at = clock()

    def events(self) -> Iterator[bytes]:
        """Yields whole events and comments. An error ends the stream as a readable event, because the status was sent long ago."""
        try:
            yield from self._events()
        except errors.ConnectionAborted:
            raise
        except ServingError as error:
            yield from self._failure(error.view(), row=None)
        except Exception as error:
            errors.log_error(error, event="stream failed")
            yield from self._failure(ServingError().view(), row=None)

    def _events(self) -> Iterator[bytes]:
        yield FIRST_COMMENT
        while not self._waiter.is_disconnected:
            yield from self._live(self._waiter.take_chunks())
            if self._waiter.status in TERMINAL and (ended := self.read_end()) is not None:
                yield from self._remaining(*ended)
                return
            if self._waiter.is_revoked:
                raise Unauthorised
            if waiter_registry.is_closing:
                raise errors.ConnectionAborted
            yield from self._comment()
            self._waiter.wait(self._pause_s())

    def _live(self, chunks: Sequence[Chunk]) -> Iterator[bytes]:
        """Yields the chunks that continue the stream. After a gap none does; the transcript fills it."""
        if chunks and not self._sent:
            # Before the first event only the newest dispatch counts, so a repeated call goes unnoticed.
            self._dispatch_id = chunks[-1].dispatch_id
            chunks = [chunk for chunk in chunks if chunk.dispatch_id == self._dispatch_id]
        for chunk in chunks:
            if chunk.dispatch_id != self._dispatch_id:
                raise self._restarted()
            if chunk.n == self._sent:
                yield self._next(chunk.event)

    def read_end(self) -> tuple[Any, Sequence[bytes]] | None:
        """Returns the ended job and the events of its transcript; None while Postgres is unavailable."""
        try:
            with db.begin() as session:
                row = job_rows.find_job(session, self._waiter.job_id, self._caller.id)
                return row, sse_frames.split(job_rows.read_transcript(session, row.id))
        except Unavailable:
            return None

    def _remaining(self, row: Any, events: Sequence[bytes]) -> Iterator[bytes]:
        is_continuation = bool(events) and hashlib.sha256(b"".join(events[: self._sent])).digest() == self._digest.digest()
        for event in events[self._sent :] if is_continuation else ():
            yield self._next(event)
        if not replies.has_answer(row):
            yield from self._failure(replies.failure(row).error, row=row)
        elif is_continuation:
            yield from self._done()
        else:
            raise self._restarted()

    def _failure(self, error: JsonObject, *, row: Any) -> Iterator[bytes]:
        row = row or self._row()
        name = self._name or sse_frames.name_of(self._last_event)
        endpoint, model = (row.endpoint, row.model) if row else (CHAT, "")
        yield from sse_frames.failure(error, endpoint=endpoint, model=model, name=name, is_begun=bool(self._sent))
        yield from self._done()

    def _done(self) -> Iterator[bytes]:
        # The kernel would accept these bytes for a client that has just disconnected.
        if self._waiter.connection is None or not is_closed(self._waiter.connection):
            yield sse_frames.DONE
            self.is_settled = True

    def _comment(self) -> Iterator[bytes]:
        """Yields the job's state: its first position at once, then every COMMENT_INTERVAL_S, changed or not."""
        if self._clock() >= self._comment_at():
            place = self._waiter.place
            self._position = place.position if place else None
            self._sent_at = self._clock()
            yield sse_frames.comment(self._waiter.status, place)

    def _comment_at(self) -> float:
        is_first = self._waiter.place is not None and self._position is None
        return self._sent_at + (0.0 if is_first else COMMENT_INTERVAL_S)

    def _pause_s(self) -> float:
        return RETRY_READ_S if self._waiter.status in TERMINAL else max(0.0, self._comment_at() - self._clock())

    def _next(self, event: bytes) -> bytes:
        self._sent, self._last_event, self._sent_at = self._sent + 1, event, self._clock()
        self._digest.update(event)
        return event if self._name is None else sse_frames.renamed(event, self._name)

    def _row(self) -> Any | None:
        try:
            with db.begin() as session:
                return job_rows.find_job(session, self._waiter.job_id, self._caller.id)
        except ServingError:
            return None

    def _restarted(self) -> StreamRestarted:
        name = wire.public_id(self._waiter.job_id)
        return StreamRestarted(
            f"The upstream call broke in the middle of the stream and was repeated. GET /v1/jobs/{name} returns the whole answer."
        )
