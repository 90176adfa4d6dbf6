"""Renders the job object that the API, the events and the webhooks show."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from models.content import artifacts, image_placeholders
from models.database.db import Transaction
from models.jobs import job_rows
from models.jobs.states import Status
from models.platform.wire import JsonObject, epoch, public_id
from models.queue import position
from models.queue.position import Enqueued, QueuePosition
from models.queue.submission import Submission

WAITING = frozenset({Status.QUEUED, Status.ADMITTED})


def render_job(session: Transaction, job: Any, *, with_result: bool = True, with_pictures: bool = True, origin: str = "") -> JsonObject:
    """The job object of the HTTP API; `queue` is null once the job runs or has ended.

    with_pictures: False leaves the placeholders of images in the result. origin: of its links, see artifacts.artifact_url.
    """
    rendered = render_jobs(session, [job], origin=origin)[0]
    return {**rendered, "result": read_result(session, job, with_pictures=with_pictures, origin=origin) if with_result else None}


def render_jobs(session: Transaction, jobs: Sequence[Any], *, origin: str = "") -> list[JsonObject]:
    """These jobs as from `render_job`, without results. The number of statements does not depend on the number of jobs."""
    called = [job for job in jobs if job.calls]
    with_images = [job for job in jobs if job.status == Status.SUCCEEDED and job.images]
    positions = position.positions_of(session, [job for job in jobs if job.status in WAITING])
    attempts, usage = job_rows.attempts_of(session, called), job_rows.usage_of(session, called)
    images = job_rows.artifacts_of(session, with_images)
    return [
        _object(
            job,
            positions.get(job.id),
            attempts=[_attempt(row) for row in attempts.get(job.id, ())],
            usage=_usage(usage.get(job.id, ())),
            artifacts=[artifacts.artifact_view(image, origin=origin) for image in images.get(job.id, ())],
        )
        for job in jobs
    ]


def render_enqueued(submission: Submission, enqueued: Enqueued, *, job_id: UUID) -> JsonObject:
    """A job that was just enqueued, as from `render_job`, without a query; `enqueued` has its position."""
    job = SimpleNamespace(
        id=job_id, endpoint=submission.endpoint, model=submission.model, status=Status.QUEUED, flow=submission.flow,
        priority=submission.priority, calls=0, conversation=None, created_at=enqueued.created_at, expires_at=enqueued.expires_at,
        started_at=None, ended_at=None, timeout_s=submission.timeout_s, cancel_requested=False, possible_duplicate_calls=0,
        http_status=None, error=None, metadata=submission.metadata, retry_of=submission.retry_of, response_type=None,
    )  # fmt: skip
    return _object(job, enqueued.position, attempts=[], usage=_usage([]), artifacts=[])


def _object(
    job: Any, queue_position: QueuePosition | None, *, attempts: list[JsonObject], usage: JsonObject, artifacts: list[JsonObject]
) -> JsonObject:
    return {
        "id": public_id(job.id),
        "object": "job",
        "endpoint": job.endpoint,
        "model": job.model,
        "status": Status.QUEUED if job.status == Status.ADMITTED else job.status,
        "queue": None if queue_position is None else render_position(queue_position),
        "user": job.flow,
        "priority": job.priority,
        "conversation": job.conversation,
        "created_at": epoch(job.created_at),
        "expires_at": epoch(job.expires_at),
        "started_at": epoch(job.started_at),
        "ended_at": epoch(job.ended_at),
        "timeout_s": job.timeout_s,
        "cancel_requested": job.cancel_requested,
        "possible_duplicate_calls": job.possible_duplicate_calls,
        "attempt_count": job.calls,
        "attempts": attempts,
        "http_status": job.http_status,
        **usage,
        "result": None,
        "result_raw": _raw(job),
        "artifacts": artifacts,
        "error": job.error,
        "metadata": job.metadata or {},
        "retry_of": public_id(job.retry_of) if job.retry_of else None,
    }


def _raw(job: Any) -> JsonObject | None:
    if job.response_type is None:
        return None
    url = f"/v1/jobs/{public_id(job.id)}/raw"
    return {"url": url, "content_type": job.response_type, "bytes": job.response_bytes}


def render_position(queue_position: QueuePosition) -> JsonObject:
    """The `queue` object of a queued job."""
    return {
        "position": queue_position.position,
        "eta_s": queue_position.eta_s,
        "blocked_by": queue_position.blocked_by,
        "wake_at": epoch(queue_position.wake_at),
    }


def read_result(session: Transaction, job: Any, *, with_pictures: bool = True, origin: str = "") -> Any:
    """The upstream's body unchanged, except for links if the caller requested them. Bytes that are not JSON are returned as text.

    None for an answer that could not be read: job_rows.find_raw_response returns that one.
    """
    if job.response is None or job.response_type is not None:
        return None
    content = bytes(job.response)
    try:
        answer = json.loads(content, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError):
        return artifacts.restore_images(session, job.id, content).decode("utf-8", "replace")
    if job.wants_urls or (with_pictures and image_placeholders.may_have_placeholders(content)):
        artifacts.fill_images(session, answer, artifacts.by_job(session, job.id), as_links=job.wants_urls, origin=origin)
    return answer


def result_bytes(session: Transaction, job: Any) -> int:
    """The size of `read_result` with its images: an upper bound within a few bytes."""
    content = bytes(job.response or b"")
    if job.wants_urls or not image_placeholders.may_have_placeholders(content):
        return len(content)
    return len(content) + sum(image.size for image in artifacts.by_job(session, job.id)) * 4 // 3


def _finite(digits: str) -> float:
    """Raises ValueError for NaN, Infinity and 1e400: a response of ours with these would not be JSON."""
    if not math.isfinite(value := float(digits)):
        raise ValueError(digits)
    return value


def _usage(rows: Sequence[Any]) -> JsonObject:
    if not rows:
        return {"usage": None, "cost_usd": None}
    costs = [row.cost_microusd for row in rows]
    return {
        "usage": {
            "input_tokens": sum(row.input_tokens for row in rows),
            "output_tokens": sum(row.output_tokens for row in rows),
            "images": sum(row.images for row in rows),
            "estimated": any(row.estimated for row in rows),
        },
        "cost_usd": None if None in costs else sum(costs) / 1_000_000,
    }


def _attempt(row: Any) -> JsonObject:
    return {
        "n": row.n,
        "outcome": row.outcome,
        "http_status": row.http_status,
        "started_at": epoch(row.started_at),
        "ended_at": epoch(row.ended_at),
        "upstream_request_id": row.upstream_request_id,
    }
