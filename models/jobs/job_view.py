"""A job as a caller sees it: the object that the API, the events and later the webhooks all show."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from sqlalchemy import text

from models.content import artifacts, image_placeholders
from models.database.db import Transaction
from models.jobs.states import Status
from models.platform.errors import NotFound
from models.platform.wire import JsonObject, epoch, public_id
from models.queue import position, submission

WAITING = frozenset({Status.QUEUED, Status.ADMITTED})


def find_job(session: Transaction, job_id: UUID, key_id: int) -> Any:
    """The job's row, without its request, with is_revoked of its key. Raises NotFound when this key has no such job."""
    row = session.execute(_FIND, {"id": job_id, "key_id": key_id}).one_or_none()
    if row is None:
        raise NotFound("No such job.")
    return row


def find_submission(session: Transaction, job_id: UUID, key_id: int) -> Any:
    """What this job asked for, to ask it again. Raises NotFound when this key has no such job.

    Row: status, endpoint, model, request, content_type, streamed, wants_urls, flow, tokens and turn_tokens (without what it remembered
    and what was attached), images, attachments, reserved_microusd, priority, conversation, expires_in_s, timeout_s, on_lost,
    on_unreadable, max_attempts, metadata, webhook_url.
    """
    row = session.execute(_FIND_ORDER, {"id": job_id, "key_id": key_id}).one_or_none()
    if row is None:
        raise NotFound("No such job.")
    return row


def read_transcript(session: Transaction, job_id: UUID) -> bytes:
    """The events of a stream as they were relayed; empty while it runs, and for a job without one."""
    return artifacts.restore_images(session, job_id, bytes(session.execute(_TRANSCRIPT, {"id": job_id}).scalar_one_or_none() or b""))


def find_raw_response(session: Transaction, job_id: UUID, key_id: int) -> Any:
    """The bytes of an answer that is no result: response and response_type. Raises NotFound when this key has no such job, or it none."""
    row = session.execute(_RAW, {"id": job_id, "key_id": key_id}).one_or_none()
    if row is None:
        raise NotFound("No such job.")
    if row.response_type is None:
        raise NotFound("This job has no raw answer: its `result` is all that the upstream sent.")
    return row


def list_jobs(session: Transaction, key_id: int, *, limit: int, before: UUID | None, status: str | None) -> Sequence[Any]:
    """Up to limit + 1 rows of this key's jobs, newest first, older than `before`."""
    return session.execute(_PAGE, {"key_id": key_id, "before": before, "status": status, "most": limit + 1}).all()


def status_of(session: Transaction, job_ids: Sequence[UUID]) -> Sequence[Any]:
    """How these jobs stand, whosoever they are. Rows: what line.places takes of a job, seq, and is_revoked of its key."""
    return session.execute(_GLANCE, {"ids": list(job_ids)}).all()


def render_job(session: Transaction, job: Any, *, with_result: bool = True, with_pictures: bool = True, origin: str = "") -> JsonObject:
    """The job object of the HTTP surface; `queue` is null once it runs or has ended.

    with_pictures: False leaves their marks in the result, for who puts them back while sending it. origin: of its links, see
    artifact.link.
    """
    place = position.position_of(session, job) if job.status in WAITING else None
    found = read_result(session, job, with_pictures=with_pictures, origin=origin) if with_result else None
    return _show(session, job, place, result=found, origin=origin)


def render_enqueued(order: submission.Submission, joined: position.Enqueued, *, job_id: UUID) -> JsonObject:
    """A job that has just come into the line with this order, as `show` shows it; joined has its place."""
    job = SimpleNamespace(
        id=job_id, endpoint=order.endpoint, model=order.model, status=Status.QUEUED, flow=order.flow, priority=order.priority, calls=0,
        conversation=None, created_at=joined.created_at, expires_at=joined.expires_at, started_at=None, ended_at=None,
        timeout_s=order.timeout_s, cancel_requested=False, possible_duplicate_calls=0, http_status=None, error=None,
        metadata=order.metadata, retry_of=order.retry_of, response_type=None,
    )  # fmt: skip
    return _object(job, joined.position, attempts=[], usage=_usage([]), result=None, artifacts=[])


def render_jobs(session: Transaction, jobs: Sequence[Any], *, origin: str = "") -> list[JsonObject]:
    """These jobs as `show` shows them, without their results."""
    places = position.positions_of(session, [job for job in jobs if job.status in WAITING])
    return [_show(session, job, places.get(job.id), result=None, origin=origin) for job in jobs]


def _show(session: Transaction, job: Any, place: position.QueuePosition | None, *, result: Any, origin: str) -> JsonObject:
    pictures = artifacts.by_job(session, job.id) if job.status == Status.SUCCEEDED and job.images else []
    return _object(
        job,
        place,
        attempts=[_attempt(row) for row in session.execute(_ATTEMPTS, {"id": job.id, "calls": job.calls})] if job.calls else [],
        usage=_usage(session.execute(_USAGE, {"id": job.id}).all() if job.calls else []),
        result=result,
        artifacts=[artifacts.artifact_view(one, origin=origin) for one in pictures],
    )


def _object(
    job: Any,
    place: position.QueuePosition | None,
    *,
    attempts: list[JsonObject],
    usage: JsonObject,
    result: Any,
    artifacts: list[JsonObject],
) -> JsonObject:
    return {
        "id": public_id(job.id),
        "object": "job",
        "endpoint": job.endpoint,
        "model": job.model,
        "status": Status.QUEUED if job.status == Status.ADMITTED else job.status,
        "queue": None if place is None else render_position(place),
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
        "result": result,
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


def list_events(session: Transaction, job_id: UUID, *, after: int) -> Sequence[Any]:
    """The job's events with a higher number. Rows: seq, type, at, detail."""
    return session.execute(_EVENTS, {"id": job_id, "after": after}).all()


def render_position(place: position.QueuePosition) -> JsonObject:
    """A waiting job's place as it is shown."""
    return {
        "position": place.position,
        "eta_s": place.eta_s,
        "blocked_by": place.blocked_by,
        "wake_at": epoch(place.wake_at),
    }


def read_result(session: Transaction, job: Any, *, with_pictures: bool = True, origin: str = "") -> Any:
    """The upstream's body unchanged, but for links where the caller asked for them; bytes that are not JSON are given as text.

    None for what is no answer: `raw` has that.
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
    """How long `result` is, pictures put back: an upper bound within a few bytes."""
    content = bytes(job.response or b"")
    if job.wants_urls or not image_placeholders.may_have_placeholders(content):
        return len(content)
    return len(content) + sum(one.size for one in artifacts.by_job(session, job.id)) * 4 // 3


def _finite(digits: str) -> float:
    """Raises ValueError for NaN, Infinity and 1e400: an answer of ours that quoted them would not be JSON."""
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


_COLUMNS = """
    job.id, job.key_id, job.lane_id, job.status, job.held, job.cancel_requested, job.seq, job.flow, job.priority, job.start_tag,
    job.endpoint, job.model, job.conversation_id, job.turn, job.timeout_s, job.on_lost, job.metadata, job.webhook_url, job.created_at,
    job.expires_at, job.started_at, job.ended_at, job.not_before, job.calls, job.images, job.possible_duplicate_calls, job.http_status,
    job.error, job.retry_of, job.response_type,
    CASE WHEN job.response_type IS NOT NULL THEN octet_length(job.response) END AS response_bytes,
    job.streamed, job.wants_urls, conversation.name AS conversation
"""
_FROM = "FROM job LEFT JOIN conversation ON conversation.id = job.conversation_id AND conversation.deleted_at IS NULL"
_FIND = text(f"""
    SELECT {_COLUMNS}, job.response, (SELECT revoked_at IS NOT NULL FROM key WHERE key.id = :key_id) AS is_revoked
    {_FROM} WHERE job.id = :id AND job.key_id = :key_id
""")
_FIND_ORDER = text(f"""
    SELECT job.status, job.endpoint, job.model, job.request, job.content_type, job.streamed, job.wants_urls, job.flow, job.images,
           job.attachments, job.reserved_microusd, job.priority, job.timeout_s, job.on_lost, job.on_unreadable, job.max_attempts,
           job.metadata, job.webhook_url, job.headers, conversation.name AS conversation,
           job.tokens - coalesce(job.history_tokens, 0) - attached.tokens AS tokens, job.turn_tokens - attached.tokens AS turn_tokens,
           extract(epoch FROM job.expires_at - job.created_at)::float8 AS expires_in_s
    {_FROM} CROSS JOIN LATERAL (
        SELECT coalesce(sum(tokens), 0)::int AS tokens FROM artifact WHERE artifact.id = ANY(job.attachments)
    ) AS attached
    WHERE job.id = :id AND job.key_id = :key_id
""")
_RAW = text("SELECT response, response_type FROM job WHERE id = :id AND key_id = :key_id")
_TRANSCRIPT = text("SELECT transcript FROM job WHERE id = :id")
_PAGE = text(f"""
    SELECT {_COLUMNS}, NULL AS response {_FROM}
    WHERE job.key_id = :key_id AND (CAST(:before AS uuid) IS NULL OR job.id < :before)
    AND (CAST(:status AS text) IS NULL OR job.status = :status OR (:status = 'queued' AND job.status = 'admitted'))
    ORDER BY job.id DESC LIMIT :most
""")
_GLANCE = text("""
    SELECT job.id, job.status, job.seq, job.lane_id, job.key_id, job.start_tag, job.held, job.conversation_id, job.turn, job.not_before,
           key.revoked_at IS NOT NULL AS is_revoked
    FROM job JOIN key ON key.id = job.key_id WHERE job.id = ANY(:ids)
""")
# The first ten and the last ten: a job that is refused for load may have many.
_ATTEMPTS = text("""
    SELECT n, outcome, http_status, started_at, ended_at, upstream_request_id FROM attempt
    WHERE job_id = :id AND (n <= 10 OR n > :calls - 10) ORDER BY n
""")
_USAGE = text("SELECT input_tokens, output_tokens, images, estimated, cost_microusd FROM usage WHERE job_id = :id")
_EVENTS = text("SELECT seq, type, at, detail FROM job_event WHERE job_id = :id AND seq > :after ORDER BY seq")
