"""Jobs: put in line, looked at, waited for, cancelled, tried again."""

from __future__ import annotations

import hashlib
import math
import re
import time
from dataclasses import replace
from uuid import UUID

from flask import Blueprint, Response, request

from api.access import auth, visitors
from api.http import forwarded_headers, paging, render, request_body
from api.openai import replies
from api.submit import build, images, options
from api.submit import responses as answers
from api.submit.enqueue import accept
from api.waiting import notify_queue, wait
from models.config.settings import settings
from models.database import db
from models.jobs import job_view, jobs
from models.jobs.jobs import TERMINAL, Status
from models.platform import wire
from models.platform.errors import Invalid, Unavailable, WrongState
from models.platform.wire import JsonObject
from models.queue.enqueue import Order

routes = Blueprint("jobs", __name__)

# Who has waited long does not go away empty because Postgres has a bad moment at the end.
TRIES, AGAIN_S = 4, 0.5
_SECONDS = re.compile(r"[0-9]{1,6}(\.[0-9]{1,3})?")


@routes.post("/jobs")
def submit() -> Response:
    """202: the job stands in line, and is on disk."""
    caller = auth.caller(request)
    going = forwarded_headers.headers(request, caller)
    # Not the proxy: there is no request's context where a body is parsed.
    asked = request._get_current_object()  # type: ignore[attr-defined]  # typed as what it stands for
    line = _line() + forwarded_headers.said(going)

    def read(sent: request_body.Sent) -> tuple[Order, bytes]:
        # Last, so that no header beats it; and in the fingerprint, so that no visitor is given another's job.
        wanted = visitors.mark(asked, {**sent.value, **options.of_headers(asked.headers)})
        return build.make(caller, wanted), request_body.digest(line, visitors.mark(asked, sent.value))

    order, digest = request_body.read_then(request, read)
    return _accept(replace(order, headers=going), digest=digest)


@routes.get("/jobs")
def listing() -> Response:
    """One page of this key's jobs, newest first."""
    caller = auth.caller(request)
    limit, before, status = paging.limit(), paging.after(wire.parse_id), _status()
    with db.autocommit() as session:
        rows = job_view.page(session, caller.id, limit=limit, before=before, status=status)
        shown = job_view.show_all(session, rows[:limit], origin=images.origin(request))
    return paging.answer(shown, has_more=len(rows) > limit)


@routes.get("/jobs/<name>")
def look(name: str) -> Response:
    """The job as it is now, or as it is when it ends within ?wait= seconds."""
    caller, job_id, wait_s = auth.caller(request), wire.parse_id(name), _wait_s()
    again_s = wait.wait(job_id, caller.id, wait_s=wait_s) if wait_s else None
    shown = _shown(job_id, caller.id, tries=TRIES if wait_s else 1)
    made = render.answer(shown)
    if again_s is not None and shown["status"] not in TERMINAL:
        made.headers["Retry-After"] = str(math.ceil(again_s))
    made.set_etag(render.etag(shown), weak=True)
    images.put_back(made, job_id)
    made.make_conditional(request.environ)
    return made


@routes.get("/jobs/<name>/raw")
def raw(name: str) -> Response:
    """The bytes of an answer that is no result, as a download; 404 when the job has none."""
    caller, job_id = auth.caller(request), wire.parse_id(name)
    with db.autocommit() as session:
        found = job_view.raw(session, job_id, caller.id)
    return replies.raw(found, name=wire.public_id(job_id))


@routes.post("/jobs/<name>/cancel")
def cancel(name: str) -> Response:
    """200: cancelled; 202: it runs and has been told to stop. 409 when it ended otherwise."""
    caller, job_id = auth.caller(request), wire.parse_id(name)
    with db.begin() as session:
        done = jobs.cancel(session, job_id, caller.id)
        found = job_view.find(session, job_id, caller.id)
        if found.status in TERMINAL - {Status.CANCELLED}:
            raise WrongState(f"The job has already {found.status}: there is nothing left to cancel.")
        shown = job_view.show(session, found, origin=images.origin(request))
    is_ended = found.status == Status.CANCELLED
    if done is not None:
        notify_queue.cancelled(job_id, lane_id=found.lane_id, is_ended=is_ended)
    return render.answer(shown, 200 if is_ended else 202)


@routes.post("/jobs/<name>/retry")
def retry(name: str) -> Response:
    """202: a new job asks the same once more."""
    caller, job_id = auth.caller(request), wire.parse_id(name)
    with db.autocommit() as session:
        before = job_view.find_order(session, job_id, caller.id)
    return _accept(build.again(caller, before, retry_of=job_id), digest=hashlib.sha256(_line()).digest())


def _line() -> bytes:
    return f"{request.method} {request.path}\n".encode()


def _accept(order: Order, *, digest: bytes) -> Response:
    accepted = accept(order, token=request.headers.get("Idempotency-Key"), digest=digest)
    return _ticket(accepted.shown(order, origin=images.origin(request)), is_replayed=accepted.is_replayed)


def _ticket(shown: JsonObject, *, is_replayed: bool) -> Response:
    made = render.answer(shown, 202, headers={"Location": f"/v1/jobs/{shown['id']}"})
    if is_replayed:
        made.headers["Idempotent-Replayed"] = "true"
    return made


def _shown(job_id: UUID, key_id: int, *, tries: int) -> JsonObject:
    """The job, its pictures left out. Raises NotFound; Unavailable when Postgres was away each time."""
    while True:
        try:
            with db.autocommit() as session:
                return job_view.show(session, job_view.find(session, job_id, key_id), with_pictures=False, origin=images.origin(request))
        except Unavailable:
            tries -= 1
            if tries <= 0:
                raise
            time.sleep(AGAIN_S)


def _wait_s() -> float:
    text, most = request.args.get("wait", "0"), settings().long_poll_most_s
    if not _SECONDS.fullmatch(text) or float(text) > most:
        raise Invalid(f"`wait` is a number of seconds from 0 to {most:g}.", param="wait")
    return float(text)


def _status() -> str | None:
    status = request.args.get("status")
    if status is not None and status not in answers.SHOWN:
        raise Invalid(f"`status` is one of {', '.join(answers.SHOWN)}.", param="status")
    return status
