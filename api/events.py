"""A job's life as server-sent events: what has happened, then what happens, until it has ended."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from uuid import UUID

from flask import Blueprint, Response, current_app, request

from api import auth, errors, render
from api.waiting import LOOK_AGAIN_S, hall
from models import db, view
from models.errors import Invalid, ServingError, Unavailable
from models.job import TERMINAL
from models.key import Key
from models.view import JsonObject

routes = Blueprint("events", __name__)

LIFE_S = 600
HEARTBEAT_S = 15
SEND_TIMEOUT_S = 10
RECONNECT_MS = 2_000
# Places in line are looked up this often in all, however many streams are open.
LOOKS_PER_S = 50
_NUMBER = re.compile(r"[0-9]{1,9}")


@routes.get("/jobs/<name>/events")
def follow(name: str) -> Response:
    """The stream; 204 when the caller has seen its last event already, which tells browsers not to come back."""
    caller, job_id, after = auth.caller(request), view.parse_id(name), _last_seen()
    with db.begin() as session:
        found = view.find(session, job_id, caller.id)
    if found.status in TERMINAL and after >= found.seq:
        return Response(status=204)
    hall.open_stream(caller.id)
    _limit_sending()
    token, recognise = auth.token_of(request), current_app.extensions["callers"].recognise
    stream = Stream(job_id, caller, seen=after, check=lambda: recognise(token))
    made = Response(_guarded(stream), mimetype="text/event-stream", headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
    # Not a `finally` in the generator: one that was never begun does not run it.
    made.call_on_close(lambda: hall.close_stream(caller.id))
    return made


@dataclass
class Stream:
    """One caller who follows one job. check: raises when the caller's key is no longer good."""

    job_id: UUID
    caller: Key
    seen: int
    check: Callable[[], object]
    clock: Callable[[], float] = time.monotonic
    queue: JsonObject | None = None
    is_over: bool = False
    said_at: float = field(default=0.0)
    placed_at: float = field(default=0.0)

    def lines(self) -> Iterator[str]:
        """Chunks of the stream, each a whole event or comment."""
        ends = self.clock() + LIFE_S
        with hall.wait_for(self.job_id) as woken:
            yield self._said(f"retry: {RECONNECT_MS}\n\n")
            while self.clock() < ends and not hall.is_closing:
                woken.clear()
                yield from map(self._said, self._news())
                if self.is_over:
                    return
                if self.clock() - self.said_at >= HEARTBEAT_S:
                    yield self._said(": waiting\n\n")
                woken.wait(self._pause_s())
                self.check()
        yield f"retry: {RECONNECT_MS}\n\n"

    def _news(self) -> list[str]:
        """What has happened since; nothing while Postgres is away."""
        try:
            with db.begin() as session:
                found = view.find(session, self.job_id, self.caller.id)
                # What came in since `found` was read waits for the next look: an event must not carry an older job.
                past = [row for row in view.events(session, self.job_id, after=self.seen) if row.seq <= found.seq]
                shown = view.show(session, found, with_result=False)
                self.is_over = found.status in TERMINAL
                last = view.show(session, found) if self.is_over else shown
        except Unavailable:
            return []
        chunks = [_event(row, last if self.is_over and row is past[-1] else shown) for row in past]
        if past:
            self.seen = past[-1].seq
        return chunks + self._moved(shown, is_told=bool(past))

    def _moved(self, shown: JsonObject, *, is_told: bool) -> list[str]:
        """A queue event when the job's place is another than the caller was last told; at most one a second."""
        now, queue = self.clock(), shown["queue"]
        if is_told:
            self.queue, self.placed_at = queue, now
            return []
        if queue is None or (self.queue and queue["position"] == self.queue["position"]) or now - self.placed_at < 1:
            return []
        self.queue, self.placed_at = queue, now
        return [_chunk("queue", {"type": "queue", "job_id": shown["id"], "queue": queue})]

    def _pause_s(self) -> float:
        return min(LOOK_AGAIN_S, max(1.0, hall.streams / LOOKS_PER_S)) if self.queue else LOOK_AGAIN_S

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


def _limit_sending() -> None:
    """A reader that stops reading is cut off, instead of holding its stream for ever."""
    connection = request.environ.get("gunicorn.socket")
    if connection is not None:
        connection.settimeout(SEND_TIMEOUT_S)
