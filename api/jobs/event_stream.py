"""A job's life as server-sent events: what has happened, then what happens, until it has ended."""

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
from api.waiting.waiters import LOOK_AGAIN_S, Seat, hall
from models.database import db
from models.jobs import job_view
from models.jobs.jobs import TERMINAL
from models.keys.keys import Key
from models.platform import wire
from models.platform.errors import Invalid, ServingError, Unauthorised, Unavailable
from models.platform.wire import JsonObject
from models.queue.enqueue import Place

routes = Blueprint("events", __name__)

LIFE_S = 600
HEARTBEAT_S = 15
RECONNECT_MS = 2_000
_NUMBER = re.compile(r"[0-9]{1,9}")


@routes.get("/jobs/<name>/events")
def follow(name: str) -> Response:
    """The stream; 204 when the caller has seen its last event already, which tells browsers not to come back."""
    caller, job_id, after = auth.caller(request), wire.parse_id(name), _last_seen()
    with db.autocommit() as session:
        found = job_view.find(session, job_id, caller.id)
    if found.status in TERMINAL and after >= found.seq:
        return Response(status=204)
    room = ExitStack()
    seat = room.enter_context(hall.wait_for(job_id, caller.id, is_stream=True, places=True, connection=limit_sending(request)))
    stream = Stream(seat, caller, seen=after, origin=images.origin(request))
    made = Response(_guarded(stream), mimetype="text/event-stream", headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
    # Not a `finally` in the generator: one that was never begun does not run it.
    made.call_on_close(room.close)
    return made


@dataclass
class Stream:
    """One caller who follows the job of its seat. place: the last that was told or passed over. origin: of the links in its job."""

    seat: Seat
    caller: Key
    seen: int
    origin: str = ""
    clock: Callable[[], float] = time.monotonic
    pause_s: float = LOOK_AGAIN_S
    told: tuple[int, str | None] | None = None
    place: Place | None = None
    is_over: bool = False
    said_at: float = 0.0

    def lines(self) -> Iterator[str]:
        """Chunks of the stream, each a whole event or comment."""
        ends, seat = self.clock() + LIFE_S, self.seat
        yield self._said(f"retry: {RECONNECT_MS}\n\n")
        is_new = True
        while self.clock() < ends and not (hall.is_closing or seat.is_gone):
            if is_new or seat.seq > self.seen:
                yield from map(self._said, self._news())
            is_new = False
            if self.is_over:
                return
            yield from map(self._said, self._moved(seat.place))
            if self.clock() - self.said_at >= HEARTBEAT_S:
                yield self._said(": waiting\n\n")
            seat.wait(self.pause_s)
            if seat.is_revoked:
                raise Unauthorised
        yield f"retry: {RECONNECT_MS}\n\n"

    def _news(self) -> list[str]:
        """What has happened since; nothing while Postgres is away."""
        try:
            with db.autocommit() as session:
                found = job_view.find(session, self.seat.job_id, self.caller.id)
                # What came in since `found` was read waits for the next look: an event must not carry an older job.
                past = [row for row in job_view.events(session, self.seat.job_id, after=self.seen) if row.seq <= found.seq]
                shown = job_view.show(session, found, with_result=False, origin=self.origin)
                self.is_over = found.status in TERMINAL
                last = job_view.show(session, found, origin=self.origin) if self.is_over else shown
        except Unavailable:
            return []
        if past:
            self.seen, self.place = past[-1].seq, self.seat.place
            queue = shown["queue"]
            self.told = (queue["position"], queue["blocked_by"] if queue["eta_s"] is None else None) if queue else None
        return [_event(row, last if self.is_over and row is past[-1] else shown) for row in past]

    def _moved(self, place: Place | None) -> list[str]:
        """A queue event when the job's place is another than the caller was last told, or its line stands still or moves again.

        Places are looked up once a second at most.
        """
        if place is None or place is self.place or (place.position, place.standstill) == self.told:
            return []
        self.place, self.told = place, (place.position, place.standstill)
        return [_chunk("queue", {"type": "queue", "job_id": wire.public_id(self.seat.job_id), "queue": job_view.queue(place)})]

    def _said(self, chunk: str) -> str:
        self.said_at = self.clock()
        return chunk


def _guarded(stream: Stream) -> Iterator[str]:
    """The stream; an error ends it with an event of its own, for its status has long been sent."""
    try:
        yield from stream.lines()
    except ServingError as error:
        yield _chunk("error", {"error": error.view()})
    except Exception as error:
        errors.record(error, event="stream failed")
        yield _chunk("error", {"error": ServingError().view()})


def _event(row: object, shown: JsonObject) -> str:
    kind, seq = row.type, row.seq  # type: ignore[attr-defined]  # a row of view.events
    at = round(row.at.timestamp(), 3)  # type: ignore[attr-defined]
    return _chunk(kind, {"type": kind, "seq": seq, "at": at, "detail": row.detail, "job": shown}, seq=seq)  # type: ignore[attr-defined]


def _chunk(kind: str, content: JsonObject, *, seq: int | None = None) -> str:
    return ("" if seq is None else f"id: {seq}\n") + f"event: {kind}\ndata: {render.text(content)}\n\n"


def _last_seen() -> int:
    text = request.headers.get("Last-Event-ID") or request.args.get("last_event_id") or "0"
    if not _NUMBER.fullmatch(text):
        raise Invalid("Last-Event-ID is the id of the last event that was received: a whole number.", param="Last-Event-ID")
    return int(text)
