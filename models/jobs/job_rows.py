"""Reads rows of jobs for their callers: one job, a page of a list, its events, its stream and its raw answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import text

from models.content import artifacts
from models.database.db import Transaction
from models.platform.errors import NotFound

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


def find_job(session: Transaction, job_id: UUID, key_id: int) -> Any:
    """The job's row without its request, and is_revoked of its key. Raises NotFound if this key has no such job."""
    return _found(session.execute(_FIND, {"id": job_id, "key_id": key_id}).one_or_none())


def _found(row: Any | None) -> Any:
    if row is None:
        raise NotFound("No such job.")
    return row


_FIND_SUBMISSION = text(f"""
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


def find_submission(session: Transaction, job_id: UUID, key_id: int) -> Any:
    """The columns with which this job was submitted, to submit it again. Raises NotFound if this key has no such job.

    tokens and turn_tokens are without history and attachments.
    """
    return _found(session.execute(_FIND_SUBMISSION, {"id": job_id, "key_id": key_id}).one_or_none())


_RAW = text("SELECT response, response_type FROM job WHERE id = :id AND key_id = :key_id")


def find_raw_response(session: Transaction, job_id: UUID, key_id: int) -> Any:
    """The bytes of an answer that is no result: response and response_type. Raises NotFound without such a job or answer."""
    row = _found(session.execute(_RAW, {"id": job_id, "key_id": key_id}).one_or_none())
    if row.response_type is None:
        raise NotFound("This job has no raw answer: its `result` is all that the upstream sent.")
    return row


_LIST = text(f"""
    SELECT {_COLUMNS}, NULL AS response {_FROM}
    WHERE job.key_id = :key_id AND (CAST(:before AS uuid) IS NULL OR job.id < :before)
    AND (CAST(:status AS text) IS NULL OR job.status = :status OR (:status = 'queued' AND job.status = 'admitted'))
    ORDER BY job.id DESC LIMIT :limit
""")


def list_jobs(session: Transaction, key_id: int, *, limit: int, before: UUID | None, status: str | None) -> Sequence[Any]:
    """Up to limit + 1 rows of this key's jobs, newest first, older than `before`."""
    return session.execute(_LIST, {"key_id": key_id, "before": before, "status": status, "limit": limit + 1}).all()


_STATUS = text("""
    SELECT job.id, job.status, job.seq, job.lane_id, job.key_id, job.start_tag, job.held, job.conversation_id, job.turn, job.not_before,
           key.revoked_at IS NOT NULL AS is_revoked
    FROM job JOIN key ON key.id = job.key_id WHERE job.id = ANY(:ids)
""")


def status_of(session: Transaction, job_ids: Sequence[UUID]) -> Sequence[Any]:
    """The status of these jobs of any key. Rows: the columns for position.positions_of, seq, and is_revoked of the key."""
    return session.execute(_STATUS, {"ids": list(job_ids)}).all()


_EVENTS = text("SELECT seq, type, at, detail FROM job_event WHERE job_id = :id AND seq > :after ORDER BY seq")


def list_events(session: Transaction, job_id: UUID, *, after: int) -> Sequence[Any]:
    """The job's events with a higher number. Rows: seq, type, at, detail."""
    return session.execute(_EVENTS, {"id": job_id, "after": after}).all()


_TRANSCRIPT = text("SELECT transcript FROM job WHERE id = :id")


def read_transcript(session: Transaction, job_id: UUID) -> bytes:
    """The events of a stream as they were published; empty while it runs, and for a job without a stream."""
    return artifacts.restore_images(session, job_id, bytes(session.execute(_TRANSCRIPT, {"id": job_id}).scalar_one_or_none() or b""))


_ARTIFACTS = text("""
    SELECT job_id, id, n, content_type, length(content) AS size FROM artifact WHERE job_id = ANY(:ids) ORDER BY job_id, n
""")
# The first ten and the last ten attempts: a job that is throttled may have many.
_ATTEMPTS = text("""
    SELECT attempt.job_id, n, outcome, http_status, started_at, ended_at, upstream_request_id
    FROM unnest(CAST(:ids AS uuid[]), CAST(:calls AS int[])) AS listed (job_id, calls) JOIN attempt ON attempt.job_id = listed.job_id
    WHERE n <= 10 OR n > listed.calls - 10 ORDER BY attempt.job_id, n
""")
_USAGE = text("SELECT job_id, input_tokens, output_tokens, images, estimated, cost_microusd FROM usage WHERE job_id = ANY(:ids)")


def attempts_of(session: Transaction, jobs: Sequence[Any]) -> dict[UUID, list[Any]]:
    """The attempts of each of these jobs, in order; at most twenty of one job. jobs: rows with id and calls."""
    return _by_job(session, _ATTEMPTS, {"ids": [job.id for job in jobs], "calls": [job.calls for job in jobs]})


def usage_of(session: Transaction, jobs: Sequence[Any]) -> dict[UUID, list[Any]]:
    """The usage rows of each of these jobs. jobs: rows with id."""
    return _by_job(session, _USAGE, {"ids": [job.id for job in jobs]})


def artifacts_of(session: Transaction, jobs: Sequence[Any]) -> dict[UUID, list[Any]]:
    """The artifacts of each of these jobs, in the order of the answer. jobs: rows with id."""
    return _by_job(session, _ARTIFACTS, {"ids": [job.id for job in jobs]})


def _by_job(session: Transaction, statement: Any, params: dict[str, list[Any]]) -> dict[UUID, list[Any]]:
    rows: dict[UUID, list[Any]] = {job_id: [] for job_id in params["ids"]}
    for row in session.execute(statement, params) if rows else ():
        rows[row.job_id].append(row)
    return rows
