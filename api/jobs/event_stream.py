"""Server-sent events of a job: its past events first, then each new event until the job ends."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from flask import Blueprint, Response, request

from api.access import auth
from api.http import errors, render
from api.http.send_timeout import limit_sending
from api.submit import images
from api.waiting.db_poller import POLL_INTERVAL_S
from api.waiting.registry import waiter_registry
from api.waiting.waiter import Waiter
from models.database import db
from models.jobs import job_rows, job_view
from models.jobs.states import TERMINAL
from models.keys.keys import Key
from models.platform import wire
from models.platform.errors import Invalid, ServingError, Unauthorised, Unavailable
from models.platform.wire import JsonObject
from models.queue.position import QueuePosition

routes = Blueprint("events", __name__)

MAX_STREAM_S = 600
HEARTBEAT_S = 15
RECONNECT_MS = 2_000
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_NUMBER = re.compile(r"[0-9]{1,9}")


@routes.get("/jobs/<name>/events")
def follow(name: str) -> Response:
    """Streams the job's events. 204 after its last event, so that browsers do not reconnect."""
    caller, job_id, after = auth.authenticate(request), wire.parse_id(name), _last_event_id()
    with db.autocommit() as session:
        job = job_rows.find_job(session, job_id, caller.id)
    if job.status in TERMINAL and after >= job.seq:
        return Response(status=204)
    origin = images.origin(request)
    with ExitStack() as resources:
        waiter = resources.enter_context(
            waiter_registry.wait_for(job_id, caller.id, is_stream=True, places=True, connection=limit_sending(request))
        )
        stream = EventStream(waiter, caller, last_seq=after, origin=origin)
        response = Response(_guarded(stream), mimetype="text/event-stream", headers=HEADERS)
        # Not a `finally` in the generator: a generator that was never started does not run it.
        response.call_on_close(resources.pop_all().close)
    return response


@dataclass
class EventStream:
    """The event stream of one client.

    place: the last queue position that was sent or skipped. origin: prefix of the links in the job.
    """

    waiter: Waiter
    caller: Key
    last_seq: int
    origin: str = ""
    clock: Callable[[], float] = time.monotonic
    pause_s: float = POLL_INTERVAL_S
    sent_position: tuple[int, str | None] | None = None
    place: QueuePosition | None = None
    is_over: bool = False
    sent_at: float = 0.0

    def chunks(self) -> Iterator[str]:
        """Yields the stream; each chunk is a whole event or comment."""
        deadline, waiter = self.clock() + MAX_STREAM_S, self.waiter
        yield self._sent(f"retry: {RECONNECT_MS}\n\n")
        is_first = True
        while self.clock() < deadline and not (waiter_registry.is_closing or waiter.is_disconnected):
            if is_first or waiter.seq > self.last_seq:
                yield from map(self._sent, self._new_events())
            is_first = False
            if self.is_over:
                return
            yield from map(self._sent, self._position_event(waiter.place))
            if self.clock() - self.sent_at >= HEARTBEAT_S:
                yield self._sent(": waiting\n\n")
            waiter.wait(self.pause_s)
            if waiter.is_revoked:
                raise Unauthorised
        yield f"retry: {RECONNECT_MS}\n\n"

    def _new_events(self) -> list[str]:
        """Returns the events since the last one sent; none while Postgres is unavailable."""
        try:
            with db.autocommit() as session:
                job = job_rows.find_job(session, self.waiter.job_id, self.caller.id)
                # Events newer than `job` wait for the next poll: an event must not carry an older job.
                rows = [row for row in job_rows.list_events(session, self.waiter.job_id, after=self.last_seq) if row.seq <= job.seq]
                shown = job_view.render_job(session, job, with_result=False, origin=self.origin)
                self.is_over = job.status in TERMINAL
                final = job_view.render_job(session, job, origin=self.origin) if self.is_over else shown
        except Unavailable:
            return []
        if rows:
            self.last_seq, self.place = rows[-1].seq, self.waiter.place
            queue = shown["queue"]
            self.sent_position = (queue["position"], queue["blocked_by"] if queue["eta_s"] is None else None) if queue else None
        return [_event(row, final if self.is_over and row is rows[-1] else shown) for row in rows]

    def _position_event(self, place: QueuePosition | None) -> list[str]:
        """Returns a queue event when the position differs from the one last sent, or the lane stops or resumes.

        Positions are read at most once a second.
        """
        if place is None or place is self.place or (place.position, place.standstill) == self.sent_position:
            return []
        self.place, self.sent_position = place, (place.position, place.standstill)
        return [_chunk("queue", {"type": "queue", "job_id": wire.public_id(self.waiter.job_id), "queue": job_view.render_position(place)})]

    def _sent(self, chunk: str) -> str:
        self.sent_at = self.clock()
        return chunk


def _guarded(stream: EventStream) -> Iterator[str]:
    """Yields the stream. An error becomes an event at its end, because the HTTP status was sent long ago."""
    try:
        yield from stream.chunks()
    except ServingError as error:
        yield _chunk("error", {"error": error.view()})
    except Exception as error:
        errors.log_error(error, event="stream failed")
        yield _chunk("error", {"error": ServingError().view()})


def _event(row: object, shown: JsonObject) -> str:
    kind, seq = row.type, row.seq  # type: ignore[attr-defined]  # a row of job_rows.list_events
    at = round(row.at.timestamp(), 3)  # type: ignore[attr-defined]
    return _chunk(kind, {"type": kind, "seq": seq, "at": at, "detail": row.detail, "job": shown}, seq=seq)  # type: ignore[attr-defined]


def _chunk(kind: str, content: JsonObject, *, seq: int | None = None) -> str:
    return ("" if seq is None else f"id: {seq}\n") + f"event: {kind}\ndata: {render.dump(content)}\n\n"


def _last_event_id() -> int:
    text = request.headers.get("Last-Event-ID") or request.args.get("last_event_id") or "0"
    if not _NUMBER.fullmatch(text):
        raise Invalid("Last-Event-ID is the id of the last event that was received: a whole number.", param="Last-Event-ID")
    return int(text)
