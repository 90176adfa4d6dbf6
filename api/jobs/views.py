"""The job routes: submit, list, read and wait, cancel, retry."""

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
from models.jobs import cancellation, job_rows, job_view
from models.jobs.states import TERMINAL, Status
from models.platform import wire
from models.platform.errors import Invalid, Unavailable, WrongState
from models.platform.wire import JsonObject
from models.queue.submission import Submission

routes = Blueprint("jobs", __name__)

# A request that waited long retries its final read, so that a short Postgres outage does not lose the answer.
READ_TRIES, RETRY_READ_S = 4, 0.5
_SECONDS = re.compile(r"[0-9]{1,6}(\.[0-9]{1,3})?")


@routes.post("/jobs")
def submit() -> Response:
    """Enqueues a job and returns 202 after the commit."""
    caller = auth.authenticate(request)
    forwarded = forwarded_headers.select_headers(request, caller)
    # Not the proxy: the thread that parses the body has no request context.
    http_request = request._get_current_object()  # type: ignore[attr-defined]  # typed as the request itself
    prefix = _digest_prefix() + forwarded_headers.fingerprint(forwarded)

    def parse(sent: request_body.JsonBody) -> tuple[Submission, bytes]:
        # Marked last, so that no header overrides the visitor; and in the digest, so that no visitor gets another's job.
        params = visitors.mark_submit(http_request, {**sent.value, **options.parse_headers(http_request.headers)})
        return build.job_submission(caller, params), request_body.digest(prefix, visitors.mark_submit(http_request, sent.value))

    order, digest = request_body.parse_json(request, parse)
    return _accept(replace(order, headers=forwarded), digest=digest)


@routes.get("/jobs")
def list_jobs() -> Response:
    """Lists this key's jobs, newest first."""
    caller = auth.authenticate(request)
    limit, before, status = paging.parse_limit(), paging.parse_after(wire.parse_id), _status()
    with db.autocommit() as session:
        rows = job_rows.list_jobs(session, caller.id, limit=limit, before=before, status=status)
        shown = job_view.render_jobs(session, rows[:limit], origin=images.origin(request))
    return paging.list_response(shown, has_more=len(rows) > limit)


@routes.get("/jobs/<name>")
def get(name: str) -> Response:
    """Returns the job. With ?wait= it returns when the job ends, or after that many seconds."""
    caller, job_id, wait_s = auth.authenticate(request), wire.parse_id(name), _wait_s()
    retry_after_s = wait.until_ended(job_id, caller.id, wait_s=wait_s) if wait_s else None
    shown = _show(job_id, caller.id, tries=READ_TRIES if wait_s else 1)
    response = render.json_response(shown)
    if retry_after_s is not None and shown["status"] not in TERMINAL:
        response.headers["Retry-After"] = str(math.ceil(retry_after_s))
    response.set_etag(render.etag(shown), weak=True)
    images.restore_images(response, job_id)
    response.make_conditional(request.environ)
    return response


@routes.get("/jobs/<name>/raw")
def raw_response(name: str) -> Response:
    """Downloads the bytes of a response that is not a result; 404 when the job has none."""
    caller, job_id = auth.authenticate(request), wire.parse_id(name)
    with db.autocommit() as session:
        row = job_rows.find_raw_response(session, job_id, caller.id)
        return replies.raw(row, name=wire.public_id(job_id))


@routes.post("/jobs/<name>/cancel")
def cancel(name: str) -> Response:
    """Cancels a job. 200: cancelled; 202: it runs and was signalled to stop; 409: it had ended."""
    caller, job_id = auth.authenticate(request), wire.parse_id(name)
    with db.begin() as session:
        cancelled = cancellation.cancel(session, job_id, caller.id)
        job = job_rows.find_job(session, job_id, caller.id)
        if job.status in TERMINAL - {Status.CANCELLED}:
            raise WrongState(f"The job has already {job.status}: it cannot be cancelled.")
        shown = job_view.render_job(session, job, origin=images.origin(request))
    is_ended = job.status == Status.CANCELLED
    if cancelled is not None:
        notify_queue.job_cancelled(job_id, lane_id=job.lane_id, is_ended=is_ended)
    return render.json_response(shown, 200 if is_ended else 202)


@routes.post("/jobs/<name>/retry")
def retry(name: str) -> Response:
    """Enqueues a new job with the same request and returns 202."""
    caller, job_id = auth.authenticate(request), wire.parse_id(name)
    with db.autocommit() as session:
        row = job_rows.find_submission(session, job_id, caller.id)
        return _accept(build.retry_submission(caller, row, retry_of=job_id), digest=hashlib.sha256(_digest_prefix()).digest())


def _digest_prefix() -> bytes:
    return f"{request.method} {request.path}\n".encode()


def _accept(order: Submission, *, digest: bytes) -> Response:
    accepted = accept(order, token=request.headers.get("Idempotency-Key"), digest=digest)
    shown = accepted.render(order, origin=images.origin(request))
    response = render.json_response(shown, 202, headers={"Location": f"/v1/jobs/{shown['id']}"})
    if accepted.is_replayed:
        response.headers["Idempotent-Replayed"] = "true"
    return response


def _show(job_id: UUID, key_id: int, *, tries: int) -> JsonObject:
    """Returns the job without its images. Raises NotFound; Unavailable when every try failed."""
    while True:
        try:
            with db.autocommit() as session:
                return job_view.render_job(
                    session, job_rows.find_job(session, job_id, key_id), with_pictures=False, origin=images.origin(request)
                )
        except Unavailable:
            tries -= 1
            if tries <= 0:
                raise
            time.sleep(RETRY_READ_S)


def _wait_s() -> float:
    text, limit_s = request.args.get("wait", "0"), settings().long_poll_most_s
    if not _SECONDS.fullmatch(text) or float(text) > limit_s:
        raise Invalid(f"`wait` is a number of seconds from 0 to {limit_s:g}.", param="wait")
    return float(text)


def _status() -> str | None:
    status = request.args.get("status")
    if status is not None and status not in answers.SHOWN:
        raise Invalid(f"`status` is one of {', '.join(answers.SHOWN)}.", param="status")
    return status
