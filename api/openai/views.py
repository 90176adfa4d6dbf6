"""The upstream's own routes: each request becomes a job, waits in line, and is answered as the upstream would have answered it."""

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
from api.submit import images as pictures
from api.submit import openai_parse
from api.submit.enqueue import accept
from api.waiting import disconnects
from api.waiting.registry import waiter_registry
from models.config.settings import settings
from models.content.endpoints import CHAT, EDITS, EMBEDDINGS, IMAGES, MODERATIONS
from models.database import db
from models.jobs import job_view, waiters
from models.keys.keys import Key
from models.platform import wire
from models.queue import enqueue

routes = Blueprint("openai", __name__)


@dataclass(frozen=True)
class Arrival:
    """A request that has its job, without its body, which may be large and waits in Postgres. comes_back: its client can find the job again
    if the connection breaks. is_resumed: it came back to the job that its client's last try had made."""

    job_id: UUID
    lane_id: int
    is_streamed: bool
    comes_back: bool = True
    is_replayed: bool = False
    is_resumed: bool = False

    @property
    def headers(self) -> dict[str, str]:
        """What is told of it."""
        told = {"X-Nowserving-Job-Id": wire.public_id(self.job_id)}
        if self.is_replayed:
            told["Idempotent-Replayed"] = "true"
        if self.is_resumed:
            told["X-Nowserving-Resumed"] = "true"
        return told


@routes.post("/chat/completions")
def chat() -> Response:
    """A chat completion, whole or as a stream."""
    return serve(CHAT)


@routes.post("/images/generations")
def images() -> Response:
    """Pictures from a prompt."""
    return serve(IMAGES)


@routes.post("/images/edits")
def edits() -> Response:
    """Pictures from pictures and a prompt."""
    return serve(EDITS)


@routes.post("/embeddings")
def embeddings() -> Response:
    """Vectors for texts."""
    return serve(EMBEDDINGS)


@routes.post("/moderations")
def moderations() -> Response:
    """Whether texts are harmful."""
    return serve(MODERATIONS)


def serve(endpoint: str, *, model: str | None = None) -> Response:
    """The answer itself, a stream of it, or 202 and the job, as the caller prefers. model: beats that of the body."""
    caller = auth.caller(request)
    wanted = prefer.read(request.headers.getlist("Prefer"), wait_most_s=settings().long_poll_most_s)
    who = None if wanted.respond_async else uuid4()
    if who is not None:
        waiter_registry.check_capacity(caller.id)
    # Who waits must not hold the body meanwhile: it is read and dropped in there.
    arrival = _arrive(caller, endpoint, model=model, who=who)
    body_budget.release()
    if who is None:
        return _with_headers(_without_waiting(arrival, caller, wanted), arrival)
    if arrival.is_streamed:
        return _stream(arrival, caller, who)
    made = keepalive_response.answer(arrival.job_id, caller, reader=who, request=request, comes_back=arrival.comes_back)
    return _with_headers(made, arrival)


def _with_headers(made: Response, arrival: Arrival) -> Response:
    """Adds the headers of the job and its lane. On an error it closes the response, which releases its waiter."""
    with ExitStack() as resources:
        resources.callback(made.close)
        made.headers.update({**arrival.headers, **rate_limit_headers.headers(arrival.lane_id)})
        resources.pop_all()
    return made


def _stream(arrival: Arrival, caller: Key, who: UUID) -> Response:
    """The stream of this job. The headers come first: the first event must not wait for them."""
    with ExitStack() as resources:
        resources.callback(disconnects.record_later, arrival.job_id, who, for_good=not arrival.comes_back)
        headers = {**arrival.headers, **rate_limit_headers.headers(arrival.lane_id)}
        resources.pop_all()
    is_replay = arrival.is_replayed or arrival.is_resumed
    made = stream_response.stream(arrival.job_id, caller, reader=who, comes_back=arrival.comes_back, is_replay=is_replay)
    made.headers.update(headers)
    return made


def _arrive(caller: Key, endpoint: str, *, model: str | None, who: UUID | None) -> Arrival:
    """The job of this request: the one it asks for again, or a new one. who: the reader that waits for it; None: nobody does.

    With an Idempotency-Key the request finds its job. Without one, the fingerprint of a marked SDK retry finds the job in any state;
    the fingerprint of an unmarked request finds only a failure that was not delivered.
    """
    asked = openai_parse.read(request, caller, endpoint, model=model)
    order = asked.order
    if who is not None:
        waiter_registry.check_capacity(caller.id, is_stream=order.streamed)
    comes_back = asked.token is not None or _is_sdk()
    arrive = partial(Arrival, lane_id=enqueue.lane_id_of(caller.pool_id, order.model), is_streamed=order.streamed, comes_back=comes_back)
    if asked.token is None and who is not None:
        order = replace(order, reader=who, fingerprint=asked.digest)
        if (found := _find_left(order)) is not None:
            return arrive(found, is_resumed=True)
    accepted = accept(replace(order, reader=who), token=asked.token, digest=asked.digest)
    while accepted.is_replayed and not _take_over(accepted.job_id, who):
        # Cancelled in between, because its reader had been away too long: now the token makes a new job.
        accepted = accept(replace(order, reader=who), token=asked.token, digest=asked.digest)
    return arrive(accepted.job_id, is_replayed=accepted.is_replayed)


def _take_over(job_id: UUID, who: UUID | None) -> bool:
    with db.begin() as session:
        return waiters.take_over(session, job_id, reader=who)


def _find_left(order: enqueue.Submission) -> UUID | None:
    if order.fingerprint is None or order.reader is None:
        return None
    if _is_retry():
        with db.begin() as session:
            return waiters.adopt(session, order.key.id, order.fingerprint, reader=order.reader)
    if order.streamed or not late_failure.closes_connection(request.headers):
        return None
    with db.autocommit() as session:
        return waiters.find_undelivered_failure(session, order.key.id, order.fingerprint)


def _without_waiting(arrival: Arrival, caller: Key, wanted: Preferences) -> Response:
    """202 and the job; or its answer when it is there within the time that the caller would rather wait. No stream is waited for."""
    made = None
    if wanted.wait_s and not arrival.is_streamed:
        made = keepalive_response.answer_within(wanted.wait_s, arrival.job_id, caller, request=request)
    if made is None:
        with db.autocommit() as session:
            shown = job_view.render_job(session, job_view.find_job(session, arrival.job_id, caller.id), origin=pictures.origin(request))
        made = render.answer(shown, 202, headers={"Location": f"/v1/jobs/{shown['id']}"})
    applied = replace(wanted, wait_s=None) if arrival.is_streamed else wanted
    made.headers["Preference-Applied"] = applied.applied()
    return made


def _is_retry() -> bool:
    """Whether an OpenAI SDK says that it asks again because its last try broke."""
    said = request.headers.get("x-stainless-retry-count", "")
    return said.isdecimal() and said.strip("0") != ""


def _is_sdk() -> bool:
    """Whether an SDK that OpenAI generates sent this. It asks again by itself when its connection breaks, and says so when it does."""
    return any(name.lower().startswith("x-stainless-") for name, _ in request.headers)
