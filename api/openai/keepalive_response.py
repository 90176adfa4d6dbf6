"""Response to a call without streaming: the real status during a grace time, then a 200 with keep-alive spaces until the result.

Nothing is sent for NOWSERVING_STATUS_GRACE_S, so a job that ends within it keeps its own status. After that the response begins with `200`
and one space every NOWSERVING_KEEPALIVE_EVERY_S: JSON may begin with spaces, and each byte restarts a client's read timeout.

A later failure cannot change the status. api/openai/late_failure.py chooses by client: either `{"error": …}` is the body, or the connection
is closed before the body is complete. The client then raises; if it retries by itself, it receives the stored failure with its real status
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
from models.jobs import job_rows
from models.jobs.states import TERMINAL
from models.keys.keys import Key
from models.platform.errors import ServingError, TooManyWaiting, Unauthorised, Unavailable

SPACE = b" "
# A client must accept this many bytes within the send timeout (api/http/send_timeout.py).
PIECE_BYTES = 64 * 1024
# Retry interval while Postgres is unavailable and a result must be read.
RETRY_READ_S = 0.5
# Longer than the first poll of a job takes, unless Postgres is unavailable.
FIRST_POLL_S = 3.0
CLIENT_CLOSED_REQUEST = 499  # nginx's status; no client receives it


class ClientDisconnected(Exception):
    """The client closed its connection."""


def respond(job_id: UUID, caller: Key, *, reader: UUID, request: Request, comes_back: bool = True) -> Response:
    """Returns the ended job as the response to this request, or a response that begins now and continues until the job ends.

    reader: recorded as gone when the connection breaks before the whole response was handed over. comes_back: the client can find the job
    again. Raises ServerRestarting and Unauthorised.
    """
    blocking = BlockingResponse(job_id, caller, reader=reader, request=request, comes_back=comes_back)
    try:
        row = blocking.wait(settings().status_grace_s)
        return blocking.begin() if row is None else blocking.complete(row)
    except (ClientDisconnected, ServerRestarting) as error:
        blocking.close(disconnects.record_now)
        if isinstance(error, ServerRestarting):
            raise
        return Response(status=CLIENT_CLOSED_REQUEST)
    except BaseException:
        blocking.close()
        raise


def respond_within(seconds: float, job_id: UUID, caller: Key, *, request: Request) -> Response | None:
    """Returns the ended job as the response; None if it does not end in time. A disconnect here does not abandon the job."""
    try:
        blocking = BlockingResponse(job_id, caller, reader=None, request=request)
    except (Unavailable, TooManyWaiting):
        return None
    response = None
    try:
        if (row := blocking.wait(seconds)) is not None:
            return blocking.complete(row)
    except ClientDisconnected:
        response = Response(status=CLIENT_CLOSED_REQUEST)
    except ServerRestarting:
        pass
    except BaseException:
        blocking.close()
        raise
    blocking.close()
    return response


class BlockingResponse:
    """One client that waits on its connection. `close` must follow; a response made here calls it when it is closed."""

    def __init__(self, job_id: UUID, caller: Key, *, reader: UUID | None, request: Request, comes_back: bool = True) -> None:
        """Raises Unavailable when this process has too many waiters, TooManyWaiting when this key has."""
        self._job_id, self._caller, self._reader, self._comes_back = job_id, caller, reader, comes_back
        self._connection = limit_sending(request)
        self._origin = images.origin(request)
        self._closes_connection = late_failure.closes_connection(request.headers)
        self._is_settled = False
        self._stack = ExitStack()
        try:
            self._waiter = self._stack.enter_context(
                waiter_registry.wait_for(job_id, caller.id, polls_itself=True, connection=self._connection)
            )
        except (Unavailable, TooManyWaiting):
            self.close()
            raise

    def wait(self, seconds: float) -> Any | None:
        """Returns the job's row once it has ended; None after this time.

        Raises ClientDisconnected, ServerRestarting, and Unauthorised when the key was revoked.
        """
        began = time.monotonic()
        while True:
            if self._waiter.is_disconnected:
                raise ClientDisconnected
            may_have_ended = self._waiter.end_notified or self._waiter.status in TERMINAL
            row = self._row() if may_have_ended else None
            if self._waiter.is_revoked or (row and row.is_revoked):
                raise Unauthorised("This key was revoked. Ask the operator for a new one.")
            if row and row.status in TERMINAL:
                return row
            if row:
                may_have_ended = self._waiter.end_notified = False
            if waiter_registry.is_closing:
                raise ServerRestarting(retry_after_s=1)
            # Wait for the first poll at least: a retry for a job that has ended gets its real status, however short the time.
            limit_s = seconds if self._waiter.status is not None else max(seconds, FIRST_POLL_S)
            if (left_s := began + limit_s - time.monotonic()) <= 0:
                return None
            self._waiter.wait(min(left_s, RETRY_READ_S) if may_have_ended else left_s)

    def complete(self, row: Any) -> Response:
        """Returns the whole response with its status. Raises ClientDisconnected."""
        if self._connection is not None and disconnect_poller.is_closed(self._connection):
            raise ClientDisconnected
        return self._tracked(replies.of_job(row, origin=self._origin))

    def begin(self) -> Response:
        """Returns a response that has begun: 200, and spaces until the job ends."""
        row = self._row()
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", **(replies.timing(row) if row else {})}
        return self._tracked(Response(self._keepalive(), mimetype="application/json", headers=headers))

    def close(self, write: Callable[..., None] = disconnects.record_later) -> None:
        """Releases the waiter and records an incomplete response as a disconnect. record_now commits it before the client can retry."""
        self._stack.close()
        if not self._is_settled:
            self._is_settled = True
            # Not final when this server closed the connection.
            write(self._job_id, self._reader, for_good=not (self._comes_back or waiter_registry.is_closing))

    def _tracked(self, response: Response) -> Response:
        response.response = self._pieces(response.iter_encoded())
        # Not a `finally` in the iterator: an iterator that was never started does not run it.
        response.call_on_close(self.close)
        return response

    def _pieces(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        try:
            for chunk in chunks:
                for start in range(0, len(chunk), PIECE_BYTES):
                    yield chunk[start : start + PIECE_BYTES]
        except errors.ConnectionAborted:
            raise
        except Exception as error:
            errors.log_error(error, event="keep-alive response failed")
            raise errors.ConnectionAborted from error
        # Reached only after the server took the last piece.
        self._is_settled = True

    def _keepalive(self) -> Iterator[bytes]:
        try:
            yield SPACE
            while (row := self.wait(settings().keepalive_every_s)) is None:
                yield SPACE
            if replies.has_answer(row):
                yield from images.response_body(row, origin=self._origin)
            else:
                yield self._late_failure(replies.error_body(row))
        except (errors.ConnectionAborted, ClientDisconnected, ServerRestarting) as error:
            self.close(disconnects.record_now)
            raise errors.ConnectionAborted from error
        except ServingError as error:
            yield self._late_failure(errors.error_response(error).data)

    def _late_failure(self, body: bytes) -> bytes:
        """Returns the body of a late failure. Raises ConnectionAborted for clients whose connection is closed instead."""
        if self._closes_connection:
            self.close(disconnects.record_now)
            raise errors.ConnectionAborted
        return body

    def _row(self) -> Any | None:
        try:
            with db.autocommit() as session:
                return job_rows.find_job(session, self._job_id, self._caller.id)
        except Unavailable:
            return None
