"""A streamed answer on its way to its reader, in OpenAI's shape: the place in line as comments, then the upstream's events, then [DONE].

On the OpenAI routes status and headers wait for the first event, NOWSERVING_STREAM_HEAD_S at most (api/openai/stream_head.py): a job
that fails
before is answered as a call without a stream. After that the status is 200, whatever becomes of the job. Events come from Redis while the
call runs; what has not come that way, be it that Redis lost it or the reader came late, is taken from the transcript when the job has
ended: the n-th event is the same in both.

A stream that was said to its end ends with [DONE], a failure too. One that this process cannot go on with because it is stopped is broken
off in the middle, so that nobody takes it for whole: SDKs raise APIConnectionError. Its job goes on and is found by who asks again
with the same Idempotency-Key, or at …/stream.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any
from uuid import UUID

from flask import Blueprint, Response, request

from api.access import auth
from api.http import errors
from api.http.send_timeout import limit_sending
from api.openai import replies, sse_frames, stream_head
from api.waiting import disconnects
from api.waiting.disconnect_poller import is_closed
from api.waiting.registry import waiter_registry
from api.waiting.waiter import Waiter
from models.config.settings import settings
from models.content.endpoints import CHAT
from models.database import db
from models.jobs import job_view
from models.jobs.states import TERMINAL
from models.keys.keys import Key
from models.platform import wire
from models.platform.errors import ServingError, Unauthorised, Unavailable, WrongState
from models.platform.wire import JsonObject
from workers.channels.token_stream import Chunk

routes = Blueprint("relay", __name__)

# Proxies and browsers give up after 30 to 60 s of silence; go-openai after 300 lines without data, however slowly they come.
COMMENT_EVERY_S = 10.0
# Postgres is away while the end is to be read: how soon to try again.
AGAIN_S = 1.0
WELCOME = b": waiting\n"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class Restarted(ServingError):
    """The call broke in the middle of its answer and was made again."""

    code = "stream_restarted"


@routes.get("/jobs/<name>/stream")
def follow(name: str) -> Response:
    """The stream of a job from its beginning, for those who come late or lost it."""
    caller, job_id = auth.caller(request), wire.parse_id(name)
    with db.begin() as session:
        if not job_view.find_job(session, job_id, caller.id).streamed:
            raise WrongState("This job was not asked for as a stream: GET /v1/jobs/{id} has its answer, …/events its life.")
    return stream(job_id, caller, reader=None, is_replay=True)


def stream(job_id: UUID, caller: Key, *, reader: UUID | None, comes_back: bool = True, is_replay: bool = False) -> Response:
    """The stream as the answer to the current request. Raises Unavailable, TooManyWaiting and LineFull when no more can be open.

    reader: who has left the job when this connection breaks before the end; None: somebody else waits for it, and the status is 200 at
    once. comes_back: its client can find the job again. is_replay: the completion gets an id of its own. With a reader, a failure before
    the first event is answered with its status; raises ServerRestarting and Unauthorised.
    """
    relay: Relay | None = None

    def record_disconnect() -> None:
        if relay is None or not relay.is_settled:
            is_closing = waiter_registry.is_closing
            record = disconnects.record_now if is_closing else disconnects.record_later
            # Not for good when this server closed the connection.
            record(job_id, reader, for_good=not (comes_back or is_closing))

    with ExitStack() as resources:
        resources.callback(record_disconnect)
        connection = limit_sending(request)
        waiter = resources.enter_context(
            waiter_registry.wait_for(job_id, caller.id, is_stream=True, chunks=True, places=True, connection=connection)
        )
        relay = Relay(caller, waiter, new_name=sse_frames.new_name() if is_replay else None)
        head_s = settings().stream_head_s if reader is not None else None
        failed = None if head_s is None else stream_head.wait_for_failure(waiter, relay.read_end, most_s=head_s)
        if failed is not None:
            relay.is_settled = connection is None or not is_closed(connection)
            return replies.answer(failed)
        made = Response(relay.events(), mimetype="text/event-stream", headers=HEADERS)
        # Not a `finally` in the generator: a generator that was never started does not run it.
        made.call_on_close(resources.pop_all().close)
    return made


class Relay:
    """One reader of one stream. is_settled: nothing is owed to it any more."""

    def __init__(self, caller: Key, waiter: Waiter, *, new_name: str | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """new_name: the completion id of all chunks, instead of their own."""
        self.is_settled = False
        self._caller, self._waiter, self._name, self._clock = caller, waiter, new_name, clock
        self._dispatch_id: UUID | None = None
        self._sent, self._last, self._digest = 0, b"", hashlib.sha256()
        self._position: int | None = None
        self._said_at = clock()

    def events(self) -> Iterator[bytes]:
        """What is written, each a whole event or comment. An error ends it readably, for the status has long been sent."""
        try:
            yield from self._events()
        except errors.ConnectionAborted:
            raise
        except ServingError as error:
            yield from self._failed(error.view(), row=None)
        except Exception as error:
            errors.record(error, event="stream failed")
            yield from self._failed(ServingError().view(), row=None)

    def _events(self) -> Iterator[bytes]:
        yield WELCOME
        while not self._waiter.is_disconnected:
            yield from self._relayed(self._waiter.take_chunks())
            if self._waiter.status in TERMINAL and (ended := self.read_end()) is not None:
                yield from self._rest(*ended)
                return
            if self._waiter.is_revoked:
                raise Unauthorised
            if waiter_registry.is_closing:
                raise errors.ConnectionAborted
            yield from self._comment()
            self._waiter.wait(self._pause_s())

    def _relayed(self, chunks: Sequence[Chunk]) -> Iterator[bytes]:
        """Chunks that go on where the stream is. After a gap none does: the transcript will."""
        if chunks and not self._sent:
            # Of a call that was made again only the last is told, as long as nothing was.
            self._dispatch_id = chunks[-1].dispatch_id
            chunks = [chunk for chunk in chunks if chunk.dispatch_id == self._dispatch_id]
        for chunk in chunks:
            if chunk.dispatch_id != self._dispatch_id:
                raise self._restarted()
            if chunk.n == self._sent:
                yield self._next(chunk.event)

    def read_end(self) -> tuple[Any, Sequence[bytes]] | None:
        """The ended job and the events of its transcript; None while Postgres is away."""
        try:
            with db.begin() as session:
                row = job_view.find_job(session, self._waiter.job_id, self._caller.id)
                return row, sse_frames.split(job_view.read_transcript(session, row.id))
        except Unavailable:
            return None

    def _rest(self, row: Any, events: Sequence[bytes]) -> Iterator[bytes]:
        goes_on = bool(events) and hashlib.sha256(b"".join(events[: self._sent])).digest() == self._digest.digest()
        for event in events[self._sent :] if goes_on else ():
            yield self._next(event)
        if not replies.has_answer(row):
            yield from self._failed(replies.failure(row).error, row=row)
        elif goes_on:
            yield from self._done()
        else:
            raise self._restarted()

    def _failed(self, error: JsonObject, *, row: Any) -> Iterator[bytes]:
        row = row or self._row()
        name = self._name or sse_frames.name_of(self._last)
        endpoint, model = (row.endpoint, row.model) if row else (CHAT, "")
        yield from sse_frames.failure(error, endpoint=endpoint, model=model, name=name, is_begun=bool(self._sent))
        yield from self._done()

    def _done(self) -> Iterator[bytes]:
        # The last words to one who has just hung up would be taken by the kernel alone.
        if self._waiter.connection is None or not is_closed(self._waiter.connection):
            yield sse_frames.DONE
            self.is_settled = True

    def _comment(self) -> Iterator[bytes]:
        """How the job stands: its first place at once, then once in COMMENT_EVERY_S, whether the line moves or not."""
        if self._clock() >= self._comment_at():
            place = self._waiter.place
            self._position = place.position if place else None
            self._said_at = self._clock()
            yield sse_frames.comment(self._waiter.status, place)

    def _comment_at(self) -> float:
        is_first = self._waiter.place is not None and self._position is None
        return self._said_at + (0.0 if is_first else COMMENT_EVERY_S)

    def _pause_s(self) -> float:
        return AGAIN_S if self._waiter.status in TERMINAL else max(0.0, self._comment_at() - self._clock())

    def _next(self, event: bytes) -> bytes:
        self._sent, self._last, self._said_at = self._sent + 1, event, self._clock()
        self._digest.update(event)
        return event if self._name is None else sse_frames.renamed(event, self._name)

    def _row(self) -> Any | None:
        try:
            with db.begin() as session:
                return job_view.find_job(session, self._waiter.job_id, self._caller.id)
        except ServingError:
            return None

    def _restarted(self) -> Restarted:
        name = wire.public_id(self._waiter.job_id)
        return Restarted(f"The call broke in the middle of its answer and was made again. GET /v1/jobs/{name} has the whole answer.")
