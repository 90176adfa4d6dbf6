"""Streamed responses in OpenAI's shape: the queue position as comments, then the upstream's events, then [DONE].

On the OpenAI routes, status and headers wait for the first event, NOWSERVING_STREAM_HEAD_S at most (api/openai/stream_head.py): a job that
fails before it is answered like a call without streaming. After that the status is 200, whatever becomes of the job.

A stream that ends, also with a failure, ends with [DONE]. A stream that this process must abandon because it stops is cut off, so that no
client takes it for complete: SDKs raise APIConnectionError. The job continues; a request with the same Idempotency-Key finds it, and so
does …/stream.
"""

from __future__ import annotations

from contextlib import ExitStack
from uuid import UUID

from flask import Blueprint, Response, request

from api.access import auth
from api.http.send_timeout import limit_sending
from api.openai import replies, sse_frames, stream_head
from api.openai.stream_events import StreamEvents
from api.waiting import disconnects
from api.waiting.disconnect_poller import is_closed
from api.waiting.registry import waiter_registry
from models.config.settings import settings
from models.database import db
from models.jobs import job_rows
from models.keys.keys import Key
from models.platform import wire
from models.platform.errors import WrongState

routes = Blueprint("stream_response", __name__)

HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


@routes.get("/jobs/<name>/stream")
def follow(name: str) -> Response:
    """Streams a job from its first event, for clients that connect late or lost the stream."""
    caller, job_id = auth.authenticate(request), wire.parse_id(name)
    with db.begin() as session:
        if not job_rows.find_job(session, job_id, caller.id).streamed:
            raise WrongState("This job was not submitted as a stream: GET /v1/jobs/{id} returns its result, …/events its events.")
    return respond(job_id, caller, reader=None, is_replay=True)


def respond(job_id: UUID, caller: Key, *, reader: UUID | None, comes_back: bool = True, is_replay: bool = False) -> Response:
    """Returns the stream as the response to the current request.

    reader: recorded as gone when this connection breaks before the end. None: another client waits for the job, and the status is 200 at
    once. With a reader, a failure before the first event is answered with its status. comes_back: the client can find the job again.
    is_replay: the completion gets an id of its own.
    Raises Unavailable, TooManyWaiting and QueueFull when no more streams can be open; with a reader also ServerRestarting and Unauthorised.
    """
    stream: StreamEvents | None = None

    def record_disconnect() -> None:
        if stream is None or not stream.is_settled:
            is_closing = waiter_registry.is_closing
            record = disconnects.record_now if is_closing else disconnects.record_later
            # Not final when this server closed the connection.
            record(job_id, reader, for_good=not (comes_back or is_closing))

    with ExitStack() as resources:
        resources.callback(record_disconnect)
        connection = limit_sending(request)
        waiter = resources.enter_context(
            waiter_registry.wait_for(job_id, caller.id, is_stream=True, chunks=True, places=True, connection=connection)
        )
        stream = StreamEvents(caller, waiter, new_name=sse_frames.new_name() if is_replay else None)
        head_s = settings().stream_head_s if reader is not None else None
        failed = None if head_s is None else stream_head.wait_for_failure(waiter, stream.read_end, timeout_s=head_s)
        if failed is not None:
            stream.is_settled = connection is None or not is_closed(connection)
            return replies.of_job(failed)
        response = Response(stream.events(), mimetype="text/event-stream", headers=HEADERS)
        # Not a `finally` in the generator: a generator that was never started does not run it.
        response.call_on_close(resources.pop_all().close)
        return response
