"""The arrows of a job's life. Each is one compare-and-set, fenced by the dispatch id; terminal states never change.

    queued ─ admit ─▶ admitted ─ claim ─▶ running ─ finish ─▶ succeeded | failed | cancelled
      ▲                  │                   │
      └──── put_back ◀───┴───────────────────┘        queued ─ expire ─▶ expired       any ─ cancel ─▶ cancelled

The dispatch id names one admission; while the job runs it is also the lease of the one worker that claimed it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import text

from models.billing import ledger, usage
from models.billing.usage import Usage
from models.config.settings import settings
from models.database.db import Session
from models.queue import conversations, history_window, key_shares, lanes
from models.webhooks import outbox


class Status(StrEnum):
    """Where a job is."""

    QUEUED = "queued"  #: It stands in line, or is held behind an earlier turn of its conversation.
    ADMITTED = "admitted"  #: Its budget is reserved and Celery was rung; callers see `queued`.
    RUNNING = "running"  #: A worker holds its lease; the call may have gone out.
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"  #: It waited longer than it was allowed to.


TERMINAL = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELLED, Status.EXPIRED})


class Outcome(StrEnum):
    """What one attempt came to."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    REFUSED = "refused"  #: The upstream said no, and would again: 400, 401, 403, 404, 422, no money.
    THROTTLED = "throttled"  #: 429 or 503 with a time: a pause, not a failure.
    FAILED = "failed"  #: 5xx and the like; another attempt may succeed.
    UNKNOWN = "unknown"  #: The call may have been made and paid for; nobody knows.
    CANCELLED = "cancelled"
    NOT_SENT = "not_sent"  #: Provably never called.


# An aborted call may have been paid for, in part or whole: whoever hangs up has already read what came.
_MAYBE_PAID = frozenset({Outcome.SUCCEEDED, Outcome.UNKNOWN, Outcome.CANCELLED})


@dataclass(frozen=True)
class Result:
    """How a job ends: its status, and the upstream's body or our error (the four keys of the wire contract).

    response_type: the media type of a body that is no JSON, or cannot be read as the answer that it should be; None: it is JSON.
    transcript: of a stream, its events as they were relayed; `response` is then the answer they add up to. turn_tokens: what the
    answer weighs in the history of a conversation.
    """

    status: Status
    http_status: int | None = None
    response: bytes | None = None
    error: Mapping[str, object] | None = None
    transcript: bytes | None = None
    turn_tokens: int = 0
    response_type: str | None = None


@dataclass(frozen=True)
class Finding:
    """What is known of one attempt when it is over. cost_microusd: of a call that was made; None: nobody knows.

    is_estimated: the cost is of tokens that we counted ourselves.
    """

    outcome: Outcome
    http_status: int | None = None
    upstream_request_id: str | None = None
    cost_microusd: int | None = None
    is_estimated: bool = False

    @property
    def owed_microusd(self) -> int | None:
        """What it is charged with; None: nobody knows. The upstream takes nothing for what it refused or failed at."""
        return self.cost_microusd if self.outcome in _MAYBE_PAID else 0

    @property
    def note(self) -> str | None:
        """What the ledger's entry says of its amount."""
        return "estimated" if self.is_estimated and self.cost_microusd is not None else None


def claim(session: Session, job_id: UUID, dispatch_id: UUID, *, lease_s: float, most_bytes: int = 2**31 - 1) -> Any | None:
    """The job is running and its attempt is on record, before any byte goes out; None when this dispatch is no longer the one.

    The row has what the call needs: request_bytes, request (None where it has more than most_bytes: `read_request` loads it),
    content_type, streamed, endpoint, model, on_lost, on_unreadable, timeout_s, ran_s (of it,
    what earlier attempts took), base_url, secret, credential_id, conversation_id, turn, since_turn, history_tokens, attachments,
    `late_s`, the seconds since its admission, `due`,
    the receivers that are to be told of the start, and to tell of it: request_id, traceparent.
    """
    params = {"id": job_id, "dispatch_id": dispatch_id, "lease_s": lease_s, "most_bytes": most_bytes}
    return session.execute(_CLAIM, params).one_or_none()


def claimable(session: Session, job_id: UUID, dispatch_id: UUID) -> Any | None:
    """What `claim` would find, None where it would find nothing: id, dispatch_id, lane_id, credential_id, model, request_bytes, remembers.

    remembers: whether a turn of a conversation may bring more to send than its own request.
    """
    return session.execute(_CLAIMABLE, {"id": job_id, "dispatch_id": dispatch_id}).one_or_none()


def read_request(session: Session, job_id: UUID, *, size: int) -> bytes:
    """The job's request, in pieces: the driver would hold all of it twice more. Shorter than `size` when it was erased meanwhile."""
    pieces: list[bytes] = []
    for at in range(0, size, PIECE_BYTES):
        piece = session.execute(_PIECE, {"id": job_id, "at": at + 1, "bytes": PIECE_BYTES}).scalar_one_or_none()
        pieces.append(bytes(piece or b""))
    return b"".join(pieces)


def beat(session: Session, leases: Mapping[UUID, UUID], *, lease_s: float) -> dict[UUID, bool]:
    """These leases (dispatch id → job id) hold for `lease_s` more; those absent from the answer are lost.

    The answer says of each whether its job is to be cancelled.
    """
    if not leases:
        return {}
    rows = session.execute(_BEAT, {"dispatches": list(leases), "jobs": list(leases.values()), "lease_s": lease_s})
    return {row.dispatch_id: row.cancel_requested for row in rows}


def ghost(session: Session, job_id: UUID, dispatch_id: UUID) -> Any | None:
    """A job that ended under this dispatch id before anybody claimed it: cancelled, or by the late answer of an earlier call.

    Row: dispatch_id, lane_id, credential_id, model.
    """
    return session.execute(_GHOST, {"id": job_id, "dispatch_id": dispatch_id}).one_or_none()


def relayed(session: Session, job_id: UUID, dispatch_id: UUID) -> bool:
    """The first event of the job's stream may go to its reader: if the call is lost now, the job fails. False when the lease is lost."""
    return session.execute(_RELAYED, {"id": job_id, "dispatch_id": dispatch_id}).one_or_none() is not None


def refuse(session: Session, job_id: UUID, *, error: Mapping[str, object], http_status: int | None = None) -> bool:
    """A waiting job that could never be admitted has failed, uncalled; False when it no longer waits.

    http_status: with which the upstream refuses such jobs; None: the error's code says it.
    """
    row = session.execute(_REFUSE, {"id": job_id, "error": _json(error), "http_status": http_status}).one_or_none()
    conversations.let_next(session, [row.conversation_id] if row is not None else [])
    key_shares.give_back(session, [row] if row is not None else [])
    return row is not None


def finish_at_once(session: Session, job_id: UUID, dispatch_id: UUID, result: Result, finding: Finding, used: Usage | None) -> Any | None:
    """The job that this lease still holds has ended with this result: all of it, charge and usage too, in a single statement.

    None: the lease was lost, and `finish` has to find out what that means. Not for turns of a conversation: the next one is not let
    into the line. The row is that of `finish`. used: None for what was not answered.
    """
    found = used or Usage()
    return session.execute(
        _FINISH_AT_ONCE,
        {**_end(job_id, dispatch_id, result), **_found(dispatch_id, finding), **vars(found), "owed": finding.owed_microusd,
         "note": finding.note, "cost": finding.cost_microusd, "is_used": used is not None},
    ).one_or_none()  # fmt: skip


def finish(session: Session, job_id: UUID, dispatch_id: UUID, result: Result, finding: Finding) -> Any | None:
    """The job has ended with this result; None when the lease was lost and the job called again, ended or cancelled since.

    A reaped job that was not called again adopts the late answer, and has no possible duplicate then. The attempt is settled either way.
    The row's `due` are the receivers that are to be told.
    """
    row = session.execute(_FINISH, _end(job_id, dispatch_id, result)).one_or_none()
    settle(session, dispatch_id, finding)
    if row is not None:
        if row.conversation_id is not None and not TOO_LONG.isdisjoint(
            {(result.error or {}).get("code"), (result.error or {}).get("type")}
        ):
            history_window.shrink(session, job_id)
        conversations.let_next(session, [row.conversation_id])
    return row


def settle(session: Session, dispatch_id: UUID, finding: Finding) -> None:
    """The attempt's outcome is on record, and what it cost in the ledger. After the job's row, as the reaper takes them."""
    row = session.execute(_SETTLE, _found(dispatch_id, finding)).one_or_none()
    # A statement of its own, after the lock: it must see what the reaper has charged.
    if row is not None:
        ledger.settle(session, dispatch_id, cost_microusd=finding.owed_microusd, note=finding.note)


def put_back(
    session: Session, job_id: UUID, dispatch_id: UUID, finding: Finding, *, delay_s: float = 0, counts: bool = False, why: str = "",
    throttled: bool = False, refusal: Mapping[str, object] | None = None,
) -> bool:  # fmt: skip
    """Requeues the job at its old tag, not before `delay_s`; False when this dispatch no longer holds it.

    counts: whether this attempt counts against max_attempts; throttled: whether it counts against NOWSERVING_MAX_THROTTLES. refusal: of a
    credential that cannot serve the job {credential_id, status, error}; the pacer tries the others. A job whose cancellation was asked
    for is cancelled instead.
    """
    row = session.execute(
        _PUT_BACK,
        {"id": job_id, "dispatch_id": dispatch_id, "delay_s": delay_s, "failed": int(counts),
         "detail": _json({"reason": why or finding.outcome}),
         "maybe": int(finding.outcome == Outcome.UNKNOWN), "throttled": int(throttled), "refusal": _json(refusal),
         "refused_by": _json([{"credential_id": refusal["credential_id"]}] if refusal else None)},
    ).one_or_none()  # fmt: skip
    settle(session, dispatch_id, finding)
    if row is not None:
        back = [(row.lane_id, row.key_id, row.start_tag, row.cost)] if row.status == Status.QUEUED else []
        conversations.let_next(session, [row.conversation_id] if row.status == Status.CANCELLED else [], also=back)
    return row is not None


def return_unclaimed(session: Session, *, older_than_s: float, credential_id: int | None = None, model: str | None = None) -> Sequence[Any]:
    """Admitted jobs that nobody claimed stand in line again at their old tags. Rows: id, dispatch_id, lane_id, credential_id, model."""
    wanted = {"older_than_s": older_than_s, "credential_id": credential_id, "model": model, "most": 500}
    rows = session.execute(_RETURN_UNCLAIMED, wanted).all()
    key_shares.come_back(session, [(row.lane_id, row.key_id, row.start_tag, row.cost) for row in rows])
    lanes.wake(session, [row.lane_id for row in rows])
    return rows


def reap(session: Session, *, most: int = 200) -> Sequence[Any]:
    """Running jobs whose lease has run out: put back with the attempt marked unknown, failed (`on_lost: fail`), or cancelled.

    Status and lease are looked at again in the update itself. Rows: id, status, lane_id, dispatch_id, credential_id, model, and to tell
    of it: key_id, endpoint, calls, started_at, ended_at, request_id, traceparent.
    """
    rows = session.execute(
        _REAP, {"most": most, "error": _json(LOST), "expected": _json({"reason": "lost"}), "lease_s": settings().lease_s}
    ).all()
    # What was sent and lost may have been answered: it stays charged.
    waiting = [(row.lane_id, row.key_id, row.start_tag, 0.0) for row in rows if row.status == Status.QUEUED]
    conversations.let_next(session, [row.conversation_id for row in rows if row.status in TERMINAL], also=waiting)
    return rows


def cancel(session: Session, job_id: UUID, key_id: int, *, abandoned: bool = False) -> Any | None:
    """A waiting job is cancelled, a running one is told to stop; None when the key has no such job, or it has already ended.

    abandoned: because its reader had left. Row: id, key_id, lane_id, status, dispatch_id (of a running or admitted job, else None),
    credential_id, model.
    """
    row = session.execute(_CANCEL, {"id": job_id, "key_id": key_id, "abandoned": abandoned}).one_or_none()
    if row is not None and row.status == Status.CANCELLED:
        if not row.held:
            conversations.let_next(session, [row.conversation_id])
        key_shares.give_back(session, [row])
    return row


def key_of(session: Session, job_id: UUID) -> int | None:
    """The key that submitted this job; None when there is no such job."""
    row = session.execute(text("SELECT key_id FROM job WHERE id = :id"), {"id": job_id}).one_or_none()
    return None if row is None else int(row.key_id)


def expire(session: Session, *, most: int = 500) -> Sequence[Any]:
    """Expires jobs that waited longer than they may: turns held behind another or, if there are none, the others.

    Never both in one transaction: held turns are locked after the conversations of the turns before them.
    Rows: id, held, and to tell of it: key_id, lane_id, calls, created_at, request_id, traceparent.
    """
    params = {"most": most, "error": _json(EXPIRED)}
    if held := session.execute(_EXPIRE, {**params, "held": True}).all():
        key_shares.give_back(session, held)
        return held
    rows = session.execute(_EXPIRE, {**params, "held": False}).all()
    conversations.let_next(session, [row.conversation_id for row in rows])
    key_shares.give_back(session, rows)
    return rows


# Of a large request, read at a time. A compressed one is unpacked up to the end of each piece: 50 MB take half a second so.
PIECE_BYTES = 2 * 1024 * 1024
# A job with less than this of its timeout_s left is not called again.
LEAST_CALL_S = 1
# Upstreams' words for messages that their model cannot take: OpenAI's, llama.cpp's.
TOO_LONG = frozenset({"context_length_exceeded", "exceed_context_size_error"})
# Our code for a job whose answer was kept although nobody could read it.
UNREADABLE = "upstream_invalid_response"
LOST = {
    "message": "The worker was lost during the call, so nobody knows whether the upstream answered it, and it is not called again "
    "(on_lost is `fail`, its stream had begun, or max_attempts is reached). POST …/retry makes a new job of it.",
    "type": "server_error",
    "param": None,
    "code": "upstream_outcome_unknown",
}
EXPIRED = {
    "message": "The job waited longer than expires_in_s allowed. Send it again with more time, or at a quieter hour.",
    "type": "server_error",
    "param": None,
    "code": "expired",
}


def _end(job_id: UUID, dispatch_id: UUID, result: Result) -> dict[str, object]:
    return {
        "id": job_id, "dispatch_id": dispatch_id, "status": result.status, "http_status": result.http_status,
        "response": result.response, "transcript": result.transcript, "error": _json(result.error), "turn_tokens": result.turn_tokens,
        "response_type": result.response_type,
    }  # fmt: skip


def _found(dispatch_id: UUID, finding: Finding) -> dict[str, object]:
    return {
        "dispatch_id": dispatch_id, "outcome": finding.outcome, "attempt_status": finding.http_status,
        "upstream_request_id": finding.upstream_request_id,
    }  # fmt: skip


def _json(value: Mapping[str, object] | Sequence[object] | None) -> str | None:
    return None if value is None else json.dumps(value)


_CLAIM = text(f"""
    WITH mine AS (
        UPDATE job SET status = 'running', lease_until = clock_timestamp() + make_interval(secs => :lease_s), calls = calls + 1,
               started_at = clock_timestamp(), lost_dispatch_id = NULL, seq = seq + 1
        WHERE id = :id AND status = 'admitted' AND dispatch_id = :dispatch_id AND NOT cancel_requested
        RETURNING *
    ), ahead AS (
        INSERT INTO attempt (dispatch_id, job_id, n, credential_id, model, tokens, images, outcome, started_at)
        SELECT dispatch_id, id, calls, credential_id, model, tokens, images, 'running', started_at FROM mine
    ), told AS (
        INSERT INTO job_event (job_id, seq, type, at) SELECT id, seq, 'job.started', started_at FROM mine
    ), {outbox.of("mine", kind="'job.started'", at="started_at")}
    SELECT mine.id, mine.dispatch_id, mine.key_id, mine.lane_id, mine.endpoint, mine.model,
           CASE WHEN octet_length(mine.request) <= :most_bytes THEN mine.request END AS request,
           octet_length(mine.request) AS request_bytes,
           mine.content_type, mine.streamed, mine.headers, mine.timeout_s, mine.calls,
           mine.tokens, mine.images, mine.failures, mine.throttles, mine.refusals, mine.ran_s, mine.max_attempts, mine.on_lost,
           mine.on_unreadable,
           mine.conversation_id, mine.credential_id,
           mine.turn, mine.since_turn, mine.history_tokens, mine.attachments, mine.request_id, mine.traceparent,
           credential.base_url, credential.kind AS credential_kind, credential.api_version, credential.secret,
           credential.parked_at IS NOT NULL OR EXISTS (
               SELECT FROM parked_model AS parked
               WHERE parked.credential_id = mine.credential_id AND parked.model = mine.model AND parked.endpoint = mine.endpoint
           ) AS is_probe,
           extract(epoch FROM mine.started_at - mine.admitted_at)::float8 AS late_s, {outbox.DUE}
    FROM mine JOIN credential ON credential.id = mine.credential_id
""")
_CLAIMABLE = text("""
    SELECT id, dispatch_id, lane_id, credential_id, model, octet_length(request) AS request_bytes,
           conversation_id IS NOT NULL AND (coalesce(history_tokens, 0) > 0 OR attachments IS NOT NULL) AS remembers
    FROM job WHERE id = :id AND dispatch_id = :dispatch_id AND status = 'admitted' AND NOT cancel_requested
""")
_PIECE = text("SELECT substring(request FROM CAST(:at AS int) FOR CAST(:bytes AS int)) FROM job WHERE id = :id")
_GHOST = text("""
    SELECT dispatch_id, lane_id, credential_id, model FROM job
    WHERE id = :id AND dispatch_id = :dispatch_id AND status IN ('succeeded', 'failed', 'cancelled', 'expired')
    AND NOT EXISTS (SELECT FROM attempt WHERE attempt.dispatch_id = :dispatch_id)
""")
_RELAYED = text("""
    UPDATE job SET on_lost = 'fail' WHERE id = :id AND dispatch_id = :dispatch_id AND status = 'running' RETURNING id
""")
_REFUSE = text(f"""
    WITH refused AS (
        UPDATE job SET status = 'failed', ended_at = clock_timestamp(), error = CAST(:error AS jsonb), seq = seq + 1,
               http_status = :http_status
        WHERE id = :id AND status = 'queued'
        RETURNING id, key_id, lane_id, flow, share, webhook_url, status, seq, ended_at, conversation_id
    ), told AS (
        INSERT INTO job_event (job_id, seq, type, at) SELECT id, seq, 'job.failed', ended_at FROM refused
    ), {outbox.of("refused")}
    SELECT conversation_id, lane_id, key_id, flow, share FROM refused
""")
_BEAT = text("""
    UPDATE job SET lease_until = clock_timestamp() + make_interval(secs => :lease_s)
    FROM unnest(CAST(:dispatches AS uuid[]), CAST(:jobs AS uuid[])) AS held (dispatch_id, id)
    WHERE job.id = held.id AND job.dispatch_id = held.dispatch_id AND job.status = 'running'
    RETURNING job.dispatch_id, job.cancel_requested
""")
_HELD = "status = 'running' AND dispatch_id = :dispatch_id"
_ADOPTED = "status IN ('queued', 'admitted') AND lost_dispatch_id = :dispatch_id"


def _done(which: str) -> str:
    return f"""
    done AS (
        UPDATE job SET status = :status, http_status = :http_status, response = :response, response_type = :response_type,
               transcript = :transcript,
               error = CAST(:error AS jsonb), turn_tokens = turn_tokens + :turn_tokens,
               ended_at = clock_timestamp(), lease_until = NULL, lost_dispatch_id = NULL, not_before = NULL, seq = seq + 1,
               possible_duplicate_calls = possible_duplicate_calls - CASE WHEN status = 'running' THEN 0 ELSE 1 END
        WHERE id = :id AND ({which})
        RETURNING id, status, seq, ended_at, key_id, lane_id, model, flow, conversation_id, started_at, webhook_url, reserved_microusd
    ), told AS (
        INSERT INTO job_event (job_id, seq, type, at) SELECT id, seq, 'job.' || status, ended_at FROM done
    ), {outbox.of("done")}"""


_FINISH = text(f"WITH {_done(f'({_HELD}) OR ({_ADOPTED})')} SELECT *, {outbox.DUE} FROM done")
_ATTEMPT_ENDS = """
    UPDATE attempt SET outcome = :outcome, http_status = :attempt_status, upstream_request_id = :upstream_request_id,
           ended_at = clock_timestamp()
    WHERE dispatch_id = :dispatch_id
"""
# While a job runs nobody has touched its attempt or charged it: whoever does takes the job's lease away in the same transaction.
_FINISH_AT_ONCE = text(f"""
    WITH {_done(_HELD)}, settled AS ({_ATTEMPT_ENDS} AND EXISTS (SELECT FROM done)), {ledger.of_ended("done")}, {usage.of("done")}
    SELECT *, {outbox.DUE} FROM done
""")
_SETTLE = text(f"{_ATTEMPT_ENDS} AND outcome IN ('running', 'unknown') RETURNING dispatch_id")
# A job whose cancellation was asked for has nowhere to go back to: it ends here.
_PUT_BACK = text(f"""
    WITH back AS (
        UPDATE job SET
            status = CASE WHEN cancel_requested THEN 'cancelled' ELSE 'queued' END,
            ended_at = CASE WHEN cancel_requested THEN clock_timestamp() END,
            not_before = CASE WHEN :delay_s > 0 THEN clock_timestamp() + make_interval(secs => :delay_s) END,
            failures = failures + :failed, possible_duplicate_calls = possible_duplicate_calls + :maybe,
            throttles = throttles + :throttled,
            refusals = CASE WHEN CAST(:refusal AS jsonb) IS NULL OR refusals @> CAST(:refused_by AS jsonb) THEN refusals
                            ELSE coalesce(refusals, '[]') || CAST(:refusal AS jsonb) END,
            ran_s = ran_s + CASE WHEN status = 'running' THEN extract(epoch FROM clock_timestamp() - started_at) ELSE 0 END,
            dispatch_id = NULL, lease_until = NULL, admitted_at = NULL, seq = seq + 1
        WHERE id = :id AND dispatch_id = :dispatch_id AND status IN ('admitted', 'running')
        RETURNING id, status, seq, ended_at, key_id, lane_id, start_tag, cost, conversation_id, webhook_url
    ), told AS (
        INSERT INTO job_event (job_id, seq, type, at, detail)
        SELECT id, seq, 'job.' || status, clock_timestamp(), CAST(:detail AS jsonb) FROM back
    ), {outbox.of("back")}
    SELECT * FROM back
""")
_RETURN_UNCLAIMED = text("""
    WITH late AS (
        SELECT id, dispatch_id FROM job
        WHERE status = 'admitted' AND admitted_at <= clock_timestamp() - make_interval(secs => :older_than_s)
        AND (CAST(:credential_id AS bigint) IS NULL OR (credential_id = :credential_id AND model = :model))
        LIMIT :most FOR UPDATE SKIP LOCKED
    ), back AS (
        UPDATE job SET status = 'queued', dispatch_id = NULL, admitted_at = NULL FROM late
        WHERE job.id = late.id AND job.status = 'admitted'
        RETURNING job.id, late.dispatch_id, job.lane_id, job.key_id, job.start_tag, job.cost, job.credential_id, job.model
    )
    SELECT * FROM back
""")
_REAP = text(f"""
    WITH lost AS (
        SELECT id, dispatch_id AS dispatch, ran.s AS ran_s,
               cancel_requested OR on_lost = 'fail' OR failures + 1 >= max_attempts OR ran.s > timeout_s - {LEAST_CALL_S} AS ends
        FROM job, LATERAL (
            -- Until the last heartbeat: how long the call went on after it is not known.
            SELECT job.ran_s + greatest(0, extract(epoch FROM lease_until - started_at) - :lease_s)::float8 AS s
        ) AS ran
        WHERE status = 'running' AND lease_until < clock_timestamp() LIMIT :most FOR UPDATE OF job SKIP LOCKED
    ), back AS (
        UPDATE job SET
            status = CASE WHEN cancel_requested THEN 'cancelled' WHEN ends THEN 'failed' ELSE 'queued' END,
            ended_at = CASE WHEN ends THEN clock_timestamp() END,
            error = CASE WHEN ends AND NOT cancel_requested THEN CAST(:error AS jsonb) END,
            possible_duplicate_calls = possible_duplicate_calls + CASE WHEN ends THEN 0 ELSE 1 END,
            failures = failures + 1, ran_s = lost.ran_s, lost_dispatch_id = dispatch,
            dispatch_id = NULL, lease_until = NULL, admitted_at = NULL, seq = seq + 1
        FROM lost WHERE job.id = lost.id AND job.status = 'running' AND job.dispatch_id = dispatch AND job.lease_until < clock_timestamp()
        RETURNING job.id, job.status, job.seq, job.lane_id, job.start_tag, job.conversation_id, dispatch AS dispatch_id,
                  job.credential_id, job.model, job.key_id, job.webhook_url, job.ended_at, job.flow, job.reserved_microusd,
                  job.endpoint, job.calls, job.started_at, job.request_id, job.traceparent
    ), {ledger.of_lost("back")}, flagged AS (
        UPDATE attempt SET outcome = 'unknown', ended_at = clock_timestamp() FROM back
        WHERE attempt.dispatch_id = back.dispatch_id AND attempt.outcome = 'running'
    ), told AS (
        INSERT INTO job_event (job_id, seq, type, at, detail)
        SELECT id, seq, 'job.' || status, clock_timestamp(), CAST(:expected AS jsonb) FROM back
    ), {outbox.of("back")}
    SELECT * FROM back
""")
_CANCEL = text(f"""
    WITH stopped AS (
        UPDATE job SET
            cancel_requested = true,
            abandoned = :abandoned,
            status = CASE WHEN status = 'running' THEN status ELSE 'cancelled' END,
            ended_at = CASE WHEN status = 'running' THEN NULL ELSE clock_timestamp() END,
            seq = seq + 1
        WHERE id = :id AND key_id = :key_id AND status IN ('queued', 'admitted', 'running') AND NOT cancel_requested
        RETURNING id, status, seq, ended_at, key_id, lane_id, flow, share, conversation_id, held, dispatch_id, credential_id, model,
                  webhook_url
    ), told AS (
        INSERT INTO job_event (job_id, seq, type, at)
        SELECT id, seq, CASE WHEN status = 'running' THEN 'job.cancelling' ELSE 'job.cancelled' END, clock_timestamp() FROM stopped
    ), {outbox.of("stopped")}
    SELECT * FROM stopped
""")
_EXPIRE = text(f"""
    WITH late AS (
        SELECT id FROM job WHERE status = 'queued' AND held = :held AND expires_at < clock_timestamp()
        LIMIT :most FOR UPDATE SKIP LOCKED
    ), ended AS (
        UPDATE job SET status = 'expired', ended_at = clock_timestamp(), error = CAST(:error AS jsonb), seq = seq + 1
        FROM late WHERE job.id = late.id AND job.status = 'queued'
        RETURNING job.id, job.status, job.seq, job.conversation_id, job.held, job.ended_at, job.key_id, job.webhook_url,
                  job.lane_id, job.flow, job.share, job.calls, job.created_at, job.request_id, job.traceparent
    ), told AS (
        INSERT INTO job_event (job_id, seq, type, at) SELECT id, seq, 'job.expired', ended_at FROM ended
    ), {outbox.of("ended")}
    SELECT * FROM ended
""")
