"""Calls without a stream, waiting on their open connection: the real status while it can still be given, then spaces until the answer.

For NOWSERVING_STATUS_GRACE_S nothing is sent, so whatever ends within it has its own status. After that `200` is said and a space
every NOWSERVING_KEEPALIVE_EVERY_S: JSON may begin with spaces, and each byte begins a client's read timeout anew.

A later failure has lost its status. api/openai/late_failure.py chooses by client: either `{"error": …}` is the body, or the connection
is closed
before the body is complete. The client then raises; if it retries by itself, it receives the stored failure with its real status
(models/jobs/waiters.py). The upstream is not called again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any
from uuid import UUID

from flask import Request, Response

from api.http import errors
from api.http.send_timeout import limit_sending
from api.openai import late_failure, replies
from api.submit import images
from api.waiting import disconnect_poller, disconnects
from api.waiting.disconnects import ServerRestarting
from api.waiting.registry import waiter_registry
from models.config.settings import settings
from models.database import db
from models.jobs import job_view
from models.jobs.states import TERMINAL
from models.keys.keys import Key
from models.platform.errors import ServingError, TooManyWaiting, Unauthorised, Unavailable

SPACE = b" "
# What a reader has to take within events.SEND_TIMEOUT_S.
PIECE_BYTES = 64 * 1024
# Postgres is away while an answer is to be read: how soon to try again.
AGAIN_S = 0.5
# Longer than the first look at a job takes, unless Postgres is away.
SEEN_S = 3.0
# nginx's name for it. Nobody reads it.
CLIENT_CLOSED_REQUEST = 499


class Gone(Exception):
    """The client has hung up."""


def answer(job_id: UUID, caller: Key, *, reader: UUID, request: Request, comes_back: bool = True) -> Response:
    """The ended job as the answer to this request, or the beginning of one that goes on until it has ended.

    When the connection breaks before all of the answer was handed over, its reader has left. comes_back: its client can find the job again.
    Raises ServerRestarting and Unauthorised.
    """
    held = Held(job_id, caller, reader=reader, request=request, comes_back=comes_back)
    try:
        row = held.wait(settings().status_grace_s)
        return held.begun() if row is None else held.told(row)
    except Gone:
        held.disconnect_now()
        return Response(status=CLIENT_CLOSED_REQUEST)
    except ServerRestarting:
        held.disconnect_now()
        raise
    except BaseException:
        held.close()
        raise


def answer_within(seconds: float, job_id: UUID, caller: Key, *, request: Request) -> Response | None:
    """The ended job as the answer to this request, None when it does not end in time. Nobody who leaves here leaves the job."""
    try:
        held = Held(job_id, caller, reader=None, request=request)
    except (Unavailable, TooManyWaiting):
        return None
    try:
        if (row := held.wait(seconds)) is not None:
            return held.told(row)
    except Gone:
        held.close()
        return Response(status=CLIENT_CLOSED_REQUEST)
    except ServerRestarting:
        pass
    except BaseException:
        held.close()
        raise
    held.close()
    return None


class Held:
    """One caller on one connection. `close` must follow; a response that was made here sees to it itself."""

    def __init__(self, job_id: UUID, caller: Key, *, reader: UUID | None, request: Request, comes_back: bool = True) -> None:
        """Raises Unavailable when too many wait here, TooManyWaiting when too many of this key do."""
        self._job_id, self._caller, self._reader, self._comes_back = job_id, caller, reader, comes_back
        self._connection = limit_sending(request)
        self._origin = images.origin(request)
        self._closes_connection = late_failure.closes_connection(request.headers)
        self._is_settled = False
        self._room = ExitStack()
        try:
            self._waiter = self._room.enter_context(
                waiter_registry.wait_for(job_id, caller.id, polls_itself=True, connection=self._connection)
            )
        except (Unavailable, TooManyWaiting):
            self.close()
            raise

    def wait(self, seconds: float) -> Any | None:
        """The job's row when it has ended within this time. Raises Gone, ServerRestarting, and Unauthorised when the key was revoked."""
        began = time.monotonic()
        while True:
            if self._waiter.is_disconnected:
                raise Gone
            may_have_ended = self._waiter.end_notified or self._waiter.status in TERMINAL
            row = self._row() if may_have_ended else None
            if self._waiter.is_revoked or (row is not None and row.is_revoked):
                raise Unauthorised("This key was revoked. Ask the operator for a new one.")
            if row is not None:
                if row.status in TERMINAL:
                    return row
                may_have_ended = self._waiter.end_notified = False
            if waiter_registry.is_closing:
                raise ServerRestarting(retry_after_s=1)
            # Not before it was seen once: who comes back to a job that has ended is told its real status, however short the time.
            most_s = seconds if self._waiter.status is not None else max(seconds, SEEN_S)
            if (left_s := began + most_s - time.monotonic()) <= 0:
                return None
            self._waiter.wait(min(left_s, AGAIN_S) if may_have_ended else left_s)

    def told(self, row: Any) -> Response:
        """The whole answer, with its status. Raises Gone."""
        if self._connection is not None and disconnect_poller.is_closed(self._connection):
            raise Gone
        return self._sending(replies.answer(row, origin=self._origin))

    def begun(self) -> Response:
        """An answer that has begun: 200, and spaces for as long as it takes."""
        row = self._row()
        made = Response(self._drip(), mimetype="application/json", headers=replies.timing(row) if row is not None else None)
        made.headers.update({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        return self._sending(made)

    def disconnect_now(self) -> None:
        """The waiter is free. A reader that was not told everything has left, on record before its client can be back."""
        self._disconnect(disconnects.record_now)

    def close(self) -> None:
        """The waiter is free. A reader that was not told everything has left."""
        self._disconnect(disconnects.record_later)

    def _disconnect(self, write: Callable[..., None]) -> None:
        self._room.close()
        if not self._is_settled:
            self._is_settled = True
            # Not for good when it was this server that hung up.
            write(self._job_id, self._reader, for_good=not (self._comes_back or waiter_registry.is_closing))

    def _sending(self, made: Response) -> Response:
        made.response = self._pieces(made.iter_encoded())
        # Not a `finally` in the iterator: one that was never begun does not run it.
        made.call_on_close(self.close)
        return made

    def _pieces(self, parts: Iterable[bytes]) -> Iterator[bytes]:
        try:
            for part in parts:
                for start in range(0, len(part), PIECE_BYTES):
                    yield part[start : start + PIECE_BYTES]
        except errors.ConnectionAborted:
            raise
        except Exception as error:
            errors.record(error, event="held answer failed")
            raise errors.ConnectionAborted from error
        # Only here when the last piece was taken.
        self._is_settled = True

    def _drip(self) -> Iterator[bytes]:
        try:
            yield SPACE
            while (row := self.wait(settings().keepalive_every_s)) is None:
                yield SPACE
            if replies.has_answer(row):
                yield from images.content(row, origin=self._origin)
            else:
                yield self._late(replies.told_of(row))
        except (errors.ConnectionAborted, Gone, ServerRestarting) as error:
            self.disconnect_now()
            raise errors.ConnectionAborted from error
        except ServingError as error:
            yield self._late(errors.answer(error).data)

    def _late(self, said: bytes) -> bytes:
        """Returns the body of a late failure. Raises ConnectionAborted for clients whose connection is closed instead."""
        if self._closes_connection:
            self.disconnect_now()
            raise errors.ConnectionAborted
        return said

    def _row(self) -> Any | None:
        try:
            with db.autocommit() as session:
                return job_view.find_job(session, self._job_id, self._caller.id)
        except Unavailable:
            return None
