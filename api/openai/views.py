"""The OpenAI routes: each request becomes a job, waits in the queue, and gets the response that the upstream would have sent."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from uuid import UUID, uuid4

from flask import Blueprint, Response, request

from api.access import auth
from api.http import body_budget, prefer, render
from api.http.prefer import Preferences
from api.openai import keepalive_response, late_failure, rate_limit_headers, stream_response
from api.submit import images, openai_parse
from api.submit.enqueue import accept
from api.waiting import disconnects
from api.waiting.registry import waiter_registry
from models.config.settings import settings
from models.content.endpoints import CHAT, EDITS, EMBEDDINGS, IMAGES, MODERATIONS
from models.database import db
from models.jobs import job_rows, job_view, waiters
from models.keys.keys import Key
from models.platform import wire
from models.queue import lanes, submission

routes = Blueprint("openai", __name__)


@dataclass(frozen=True)
class Arrival:
    """A request with its job. It lacks the body, which may be large and stays in Postgres.

    comes_back: the client can find the job again if the connection breaks. is_resumed: the request found the job of an earlier try.
    """

    job_id: UUID
    lane_id: int
    is_streamed: bool
    comes_back: bool = True
    is_replayed: bool = False
    is_resumed: bool = False

    @property
    def headers(self) -> dict[str, str]:
        """The response headers that identify the job."""
        headers = {"X-Nowserving-Job-Id": wire.public_id(self.job_id)}
        if self.is_replayed:
            headers["Idempotent-Replayed"] = "true"
        if self.is_resumed:
            headers["X-Nowserving-Resumed"] = "true"
        return headers


@routes.post("/chat/completions")
def chat() -> Response:
    """Creates a chat completion, whole or as a stream."""
    return serve(CHAT)


@routes.post("/images/generations")
def create_images() -> Response:
    """Generates images from a prompt."""
    return serve(IMAGES)


@routes.post("/images/edits")
def edits() -> Response:
    """Edits images."""
    return serve(EDITS)


@routes.post("/embeddings")
def embeddings() -> Response:
    """Creates embeddings."""
    return serve(EMBEDDINGS)


@routes.post("/moderations")
def moderations() -> Response:
    """Classifies texts as harmful or not."""
    return serve(MODERATIONS)


def serve(endpoint: str, *, model: str | None = None) -> Response:
    """Responds with the answer, a stream of it, or 202 and the job, as `Prefer` says. model: overrides the body's model."""
    caller = auth.authenticate(request)
    preferences = prefer.parse(request.headers.getlist("Prefer"), max_wait_s=settings().long_poll_most_s)
    reader = None if preferences.respond_async else uuid4()
    if reader is not None:
        waiter_registry.check_capacity(caller.id)
    # The body is parsed and freed inside: a waiting request must not keep it in memory.
    arrival = _submit(caller, endpoint, model=model, reader=reader)
    body_budget.release()
    if reader is None:
        return _with_headers(_respond_async(arrival, caller, preferences), arrival)
    if arrival.is_streamed:
        return _stream(arrival, caller, reader)
    response = keepalive_response.respond(arrival.job_id, caller, reader=reader, request=request, comes_back=arrival.comes_back)
    return _with_headers(response, arrival)


def _with_headers(response: Response, arrival: Arrival) -> Response:
    """Adds the headers of the job and its lane. On an error it closes the response, which releases its waiter."""
    with ExitStack() as resources:
        resources.callback(response.close)
        response.headers.update({**arrival.headers, **rate_limit_headers.of_lane(arrival.lane_id)})
        resources.pop_all()
    return response


def _stream(arrival: Arrival, caller: Key, reader: UUID) -> Response:
    """Returns the stream of the job. The headers are read first: the first event must not wait for them."""
    with ExitStack() as resources:
        resources.callback(disconnects.record_later, arrival.job_id, reader, for_good=not arrival.comes_back)
        headers = {**arrival.headers, **rate_limit_headers.of_lane(arrival.lane_id)}
        resources.pop_all()
    is_replay = arrival.is_replayed or arrival.is_resumed
    response = stream_response.respond(arrival.job_id, caller, reader=reader, comes_back=arrival.comes_back, is_replay=is_replay)
    response.headers.update(headers)
    return response


def _submit(caller: Key, endpoint: str, *, model: str | None, reader: UUID | None) -> Arrival:
    """Returns the request's job: an existing one that it finds again, or a new one. reader: the client that waits; None: none does.

    With an Idempotency-Key the request finds its job. Without one, the fingerprint of a marked SDK retry finds the job in any state;
    the fingerprint of an unmarked request finds only a failure that was not delivered.
    """
    parsed = openai_parse.parse(request, caller, endpoint, model=model)
    order = parsed.submission
    if reader is not None:
        waiter_registry.check_capacity(caller.id, is_stream=order.streamed)
    comes_back = parsed.token is not None or _is_sdk()
    lane_id = lanes.id_of(caller.pool_id, order.model)
    arrive = partial(Arrival, lane_id=lane_id, is_streamed=order.streamed, comes_back=comes_back)
    if parsed.token is None and reader is not None:
        order = replace(order, reader=reader, fingerprint=parsed.digest)
        if (job_id := _find_abandoned(order)) is not None:
            return arrive(job_id, is_resumed=True)
    accepted = accept(replace(order, reader=reader), token=parsed.token, digest=parsed.digest, lane_id=lane_id)
    while accepted.is_replayed and not _take_over(accepted.job_id, reader):
        # The job was cancelled in between, because its client stayed away too long: the token makes a new job now.
        accepted = accept(replace(order, reader=reader), token=parsed.token, digest=parsed.digest, lane_id=lane_id)
    return arrive(accepted.job_id, is_replayed=accepted.is_replayed)


def _take_over(job_id: UUID, reader: UUID | None) -> bool:
    with db.begin() as session:
        return waiters.take_over(session, job_id, reader=reader)


def _find_abandoned(order: submission.Submission) -> UUID | None:
    if order.fingerprint is None or order.reader is None:
        return None
    if _is_retry():
        with db.begin() as session:
            return waiters.adopt(session, order.key.id, order.fingerprint, reader=order.reader)
    if order.streamed or not late_failure.closes_connection(request.headers):
        return None
    with db.autocommit() as session:
        return waiters.find_undelivered_failure(session, order.key.id, order.fingerprint)


def _respond_async(arrival: Arrival, caller: Key, preferences: Preferences) -> Response:
    """Returns 202 and the job, or its answer if it arrives within the preferred wait. Streams are not waited for."""
    response = None
    if preferences.wait_s and not arrival.is_streamed:
        response = keepalive_response.respond_within(preferences.wait_s, arrival.job_id, caller, request=request)
    if response is None:
        with db.autocommit() as session:
            shown = job_view.render_job(session, job_rows.find_job(session, arrival.job_id, caller.id), origin=images.origin(request))
        response = render.json_response(shown, 202, headers={"Location": f"/v1/jobs/{shown['id']}"})
    applied = replace(preferences, wait_s=None) if arrival.is_streamed else preferences
    response.headers["Preference-Applied"] = applied.applied()
    return response


def _is_retry() -> bool:
    """Returns whether an OpenAI SDK marks this request as a retry of one that broke."""
    count = request.headers.get("x-stainless-retry-count", "")
    return count.isdecimal() and count.strip("0") != ""


def _is_sdk() -> bool:
    """Returns whether a generated OpenAI SDK sent this. Such SDKs retry broken connections by themselves and mark the retry."""
    return any(name.lower().startswith("x-stainless-") for name, _ in request.headers)
