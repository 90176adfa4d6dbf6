"""Claims an admitted job for a worker, loads its request, and renews the lease. See states.py for the state machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import text

from models.database.db import Transaction
from models.webhooks import outbox

# Chunk size for reading a large request. Postgres decompresses a TOASTed value up to the end of each chunk: 50 MB take half a second.
CHUNK_BYTES = 2 * 1024 * 1024

_CLAIM = text(f"""
    WITH claimed AS (
        UPDATE job SET status = 'running', lease_until = clock_timestamp() + make_interval(secs => :lease_s), calls = calls + 1,
               started_at = clock_timestamp(), lost_dispatch_id = NULL, seq = seq + 1
        WHERE id = :id AND status = 'admitted' AND dispatch_id = :dispatch_id AND NOT cancel_requested
        RETURNING *
    ), new_attempt AS (
        INSERT INTO attempt (dispatch_id, job_id, n, credential_id, model, tokens, images, outcome, started_at)
        SELECT dispatch_id, id, calls, credential_id, model, tokens, images, 'running', started_at FROM claimed
    ), event AS (
        INSERT INTO job_event (job_id, seq, type, at) SELECT id, seq, 'job.started', started_at FROM claimed
    ), {outbox.cte("claimed", kind="'job.started'", at="started_at")}
    SELECT claimed.id, claimed.dispatch_id, claimed.key_id, claimed.lane_id, claimed.endpoint, claimed.model,
           CASE WHEN octet_length(claimed.request) <= :max_bytes THEN claimed.request END AS request,
           octet_length(claimed.request) AS request_bytes,
           claimed.content_type, claimed.streamed, claimed.headers, claimed.timeout_s, claimed.calls, claimed.tokens, claimed.images,
           claimed.failures, claimed.throttles, claimed.refusals, claimed.ran_s, claimed.max_attempts, claimed.on_lost,
           claimed.on_unreadable, claimed.conversation_id, claimed.credential_id, claimed.turn, claimed.since_turn,
           claimed.history_tokens, claimed.attachments, claimed.request_id, claimed.traceparent,
           credential.base_url, credential.kind AS credential_kind, credential.api_version, credential.secret,
           credential.parked_at IS NOT NULL OR EXISTS (
               SELECT FROM parked_model AS parked WHERE parked.credential_id = claimed.credential_id
               AND parked.model = claimed.model AND parked.endpoint = claimed.endpoint
           ) AS is_probe,
           extract(epoch FROM claimed.started_at - claimed.admitted_at)::float8 AS late_s, {outbox.DUE}
    FROM claimed JOIN credential ON credential.id = claimed.credential_id
""")


def claim(session: Transaction, job_id: UUID, dispatch_id: UUID, *, lease_s: float, max_bytes: int = 2**31 - 1) -> Any | None:
    """Marks the job running and records its attempt, before the call is sent. None: the dispatch is stale.

    The row has the columns of the call, its credential, its conversation and its trace. Some are not plain columns:
    request: None above max_bytes; `read_request` loads it. ran_s: seconds of timeout_s that earlier attempts used.
    late_s: seconds since the admission. due: the receivers of the job.started event.
    """
    params = {"id": job_id, "dispatch_id": dispatch_id, "lease_s": lease_s, "max_bytes": max_bytes}
    return session.execute(_CLAIM, params).one_or_none()


_CLAIMABLE = text("""
    SELECT id, dispatch_id, lane_id, credential_id, model, octet_length(request) AS request_bytes,
           conversation_id IS NOT NULL AND (coalesce(history_tokens, 0) > 0 OR attachments IS NOT NULL) AS remembers
    FROM job WHERE id = :id AND dispatch_id = :dispatch_id AND status = 'admitted' AND NOT cancel_requested
""")


def find_claimable(session: Transaction, job_id: UUID, dispatch_id: UUID) -> Any | None:
    """Returns the job that `claim` would claim, or None. Row: id, dispatch_id, lane_id, credential_id, model, request_bytes, remembers.

    remembers: the prompt may be larger than the request, because it also contains history or attachments.
    """
    return session.execute(_CLAIMABLE, {"id": job_id, "dispatch_id": dispatch_id}).one_or_none()


_CHUNK = text("SELECT substring(request FROM CAST(:start AS int) FOR CAST(:bytes AS int)) FROM job WHERE id = :id")


def read_request(session: Transaction, job_id: UUID, *, size: int) -> bytes:
    """Reads the job's request in chunks, because the driver would hold a whole one twice. Shorter than `size` after an erasure."""
    chunks: list[bytes] = []
    for offset in range(0, size, CHUNK_BYTES):
        params = {"id": job_id, "start": offset + 1, "bytes": CHUNK_BYTES}
        chunks.append(bytes(session.execute(_CHUNK, params).scalar_one_or_none() or b""))
    return b"".join(chunks)


_RENEW_LEASES = text("""
    UPDATE job SET lease_until = clock_timestamp() + make_interval(secs => :lease_s)
    FROM unnest(CAST(:dispatches AS uuid[]), CAST(:jobs AS uuid[])) AS lease (dispatch_id, id)
    WHERE job.id = lease.id AND job.dispatch_id = lease.dispatch_id AND job.status = 'running'
    RETURNING job.dispatch_id, job.cancel_requested
""")


def renew_leases(session: Transaction, leases: Mapping[UUID, UUID], *, lease_s: float) -> dict[UUID, bool]:
    """Renews these leases (dispatch id → job id) for lease_s.

    Returns for each renewed lease whether the cancellation of its job was requested. Absent leases are lost.
    """
    if not leases:
        return {}
    params = {"dispatches": list(leases), "jobs": list(leases.values()), "lease_s": lease_s}
    return {row.dispatch_id: row.cancel_requested for row in session.execute(_RENEW_LEASES, params)}


_ENDED_UNCLAIMED = text("""
    SELECT dispatch_id, lane_id, credential_id, model FROM job
    WHERE id = :id AND dispatch_id = :dispatch_id AND status IN ('succeeded', 'failed', 'cancelled', 'expired')
    AND NOT EXISTS (SELECT FROM attempt WHERE attempt.dispatch_id = :dispatch_id)
""")


def ended_unclaimed(session: Transaction, job_id: UUID, dispatch_id: UUID) -> Any | None:
    """Returns the job if it ended under this dispatch id unclaimed: by a cancellation, or by the late answer of an earlier call.

    Row: dispatch_id, lane_id, credential_id, model.
    """
    return session.execute(_ENDED_UNCLAIMED, {"id": job_id, "dispatch_id": dispatch_id}).one_or_none()


_MARK_STREAMING = text("""
    UPDATE job SET on_lost = 'fail' WHERE id = :id AND dispatch_id = :dispatch_id AND status = 'running' RETURNING id
""")


def mark_streaming(session: Transaction, job_id: UUID, dispatch_id: UUID) -> bool:
    """Records that the stream's first event may be published: a call lost from now on fails the job. False: the lease is lost."""
    return session.execute(_MARK_STREAMING, {"id": job_id, "dispatch_id": dispatch_id}).one_or_none() is not None
