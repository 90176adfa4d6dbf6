"""The line: hierarchical start-time fair queueing in columns (Goyal, Vin, Cheng 1996), positions, and how long it will take.

A lane is one (pool, model). Its keys share it (models/queue/key_shares.py), and each key's users share what the key gets: a job's start
tag is
`max(share.virtual_time, flow.last_finish)` and its flow's last finish moves on by cost over weight. The pacer takes the key whose turn
is first, and of its jobs the one with the lowest tag. Nothing here is ever rebuilt: the order is in the columns.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any
from uuid import UUID

from psycopg.errors import DivisionByZero
from sqlalchemy import text
from uuid_utils.compat import uuid7

from models.billing import budgets
from models.config.settings import settings
from models.content import attachments
from models.database.db import Transaction, autocommit, begin
from models.database.tables import OPEN
from models.keys.keys import Key
from models.platform.errors import Draining, LineFull, LineUnavailable, TooLate
from models.queue import caps, conversations, key_shares, lanes, position_index
from models.queue.count_cache import CountCache, SlowLanes
from models.queue.key_shares import SETTLED_S
from models.queue.position_index import MAX_COUNTED

WEIGHTS = {"low": 1.0, "normal": 4.0, "high": 16.0}
# An image stands for this many tokens where fair shares are counted: lanes rarely mix the two, so only the order of size matters.
TOKENS_PER_IMAGE = 1_000.0
# The column is 32 bits wide, and nobody's limit is higher.
MAX_TOKENS = 2**31 - 1


@dataclass(frozen=True)
class Submission:
    """What a caller asks for. tokens and images are what the job reserves; request is the upstream body, byte for byte.

    reserved_microusd: what one call may cost at most, 0: it is free, None: no price is known, or the key has no budget.
    content_type: of the request, None: JSON. streamed: the upstream is asked for a stream. wants_urls: pictures are answered as
    links. fingerprint, reader: of a caller that waits on an open connection (models/jobs/waiters.py). attachments: of its conversation.
    headers: of the caller's request, that go on to the upstream; names in lower case. turn_tokens: what its question weighs in a
    conversation's history, without them; None: it is no part of one. request_id, traceparent: of the request that brings it, and of the
    span that tells of that.
    """

    key: Key
    endpoint: str
    model: str
    request: bytes
    flow: str
    tokens: int
    images: int = 0
    reserved_microusd: int | None = None
    priority: str = "normal"
    conversation: str | None = None
    expires_in_s: float = 86_400
    timeout_s: float = 600
    on_lost: str = "retry"
    on_unreadable: str = "fail"
    max_attempts: int = 4
    metadata: dict[str, str] | None = None
    webhook_url: str | None = None
    retry_of: UUID | None = None
    content_type: str | None = None
    headers: dict[str, str] | None = None
    streamed: bool = False
    wants_urls: bool = False
    fingerprint: bytes | None = None
    reader: UUID | None = None
    attachments: tuple[UUID, ...] = ()
    turn_tokens: int | None = None
    request_id: UUID | None = None
    traceparent: str | None = None

    @property
    def cost(self) -> float:
        return max(1.0, self.images * TOKENS_PER_IMAGE if self.images else float(self.tokens))


@dataclass(frozen=True)
class QueuePosition:
    """Where a queued job stands. position 1 is next; eta_s None: paused or unknown; wake_at: when the line moves again."""

    position: int
    eta_s: float | None
    blocked_by: str | None
    wake_at: datetime | None

    @property
    def standstill(self) -> str | None:
        """What the line stands still for with no end in sight (parked, paused); None where there is an estimate."""
        return self.blocked_by if self.eta_s is None else None


@dataclass(frozen=True)
class Enqueued:
    """A job as it came into the line. place: where it stood then; None: that takes another look (turns of a conversation, caps)."""

    created_at: datetime
    expires_at: datetime
    place: QueuePosition | None


_open_jobs = CountCache()
_slow_lanes = SlowLanes()
ADMITTED = QueuePosition(position=0, eta_s=0.0, blocked_by=None, wake_at=None)


def prepare(order: Submission) -> int:
    """The id of the order's lane, which is there, and in which its key has a share. To be called before the transaction of `join`.

    In statements of its own, so that the first submit of a key does not hold up the others. While a transaction is open they would wait
    for a second connection, and as many submits as there are connections would all wait for each other.
    """
    lane_id = lane_id_of(order.key.pool_id, order.model)
    with autocommit() as session:
        is_there = lanes.exists(session, lane_id)
        if is_there:
            key_shares.ensure_share(session, lane_id, order.key.id)
    if not is_there:
        lane_id_of.cache_clear()
    return lane_id if is_there else lane_id_of(order.key.pool_id, order.model)


def enqueue_job(session: Transaction, order: Submission, *, job_id: UUID) -> Enqueued:
    """The job stands in line, with its first event, and what it may cost is reserved. `prepare` comes before.

    Raises NoMoney, LineFull (Draining where the operator lets it run empty), or TooLate when the line is longer than it may wait;
    Invalid when its conversation has no such attachments.
    """
    budgets.reserve(session, order.key, order.reserved_microusd)
    lane_id = lane_id_of(order.key.pool_id, order.model)
    order = _with_attachments(session, order)
    turn = _turn(session, order, lane_id=lane_id)
    values = _values(order, job_id, lane_id, turn)
    # Nothing is stored where another submit makes the key's share at this moment; the second statement sees it.
    row = session.execute(_ENQUEUE, values).one_or_none() or session.execute(_ENQUEUE, values).one_or_none()
    if row is None:
        lane_id_of.cache_clear()
        raise LineUnavailable("The line for this model is just being cleaned up. Send the request again.")
    if row.is_draining:
        raise Draining(retry_after_s=60)
    _refuse_if_full(row, key_id=order.key.id)
    if row.has_caps:
        caps.check_caps(session, key_id=order.key.id, lane_id=lane_id, flow=order.flow, endpoint=order.endpoint)
    _refuse_if_late(order, row)
    is_plain = turn is None and not row.has_caps
    return Enqueued(row.created_at, row.expires_at, _place(row, row, [], row, capped=None) if is_plain else None)


def enqueue_fast(session: Transaction, order: Submission, *, job_id: UUID) -> Enqueued | None:
    """As `join`, in the one statement that an ordinary submit is, which needs no transaction around it.

    None: nothing was stored, and `join` has to take a closer look: there is a budget, a conversation or a cap, or the line may be full.
    """
    if order.conversation is not None or budgets.limits(order.key, order.reserved_microusd):
        return None
    lane_id = lane_id_of(order.key.pool_id, order.model)
    if _slow_lanes.is_known(lane_id, now=time.monotonic()):
        return None
    try:
        row = session.execute(_ENQUEUE_FAST, _values(order, job_id, lane_id, None)).one_or_none()
    except DivisionByZero:
        _slow_lanes.note(lane_id, now=time.monotonic())
        return None
    if row is None:  # the lane has left, or another submit of this key is the first here
        return None
    if row.of_key is not None:
        _open_jobs.note(order.key.id, row.of_key, now=time.monotonic())
    return Enqueued(row.created_at, row.expires_at, _place(row, row, [], row, capped=None))


def _values(order: Submission, job_id: UUID, lane_id: int, turn: conversations.Turn | None) -> dict[str, Any]:
    remembered = turn.recall if turn else None
    key_most = settings().max_queued_per_key
    is_far = _open_jobs.has_room(order.key.id, most=key_most, now=time.monotonic())
    return {
        "id": job_id, "key_id": order.key.id, "lane_id": lane_id, "flow": order.flow, "priority": order.priority,
        "share": order.cost / WEIGHTS[order.priority], "cost": order.cost, "images": order.images, "reserved": order.reserved_microusd,
        "tokens": min(MAX_TOKENS, order.tokens + (remembered.tokens if remembered else 0)),
        "endpoint": order.endpoint, "model": order.model,
        "request": order.request, "conversation_id": turn.conversation_id if turn else None, "turn": turn.number if turn else None,
        "held": turn is not None and remembered is None, "turn_tokens": order.turn_tokens if turn else None,
        "since_turn": remembered.since_turn if remembered else None, "history_tokens": remembered.tokens if remembered else None,
        "attachments": list(order.attachments) or None, "timeout_s": order.timeout_s, "on_lost": order.on_lost,
        "on_unreadable": order.on_unreadable,
        "metadata": _json(order.metadata), "webhook_url": order.webhook_url, "expires_in": timedelta(seconds=order.expires_in_s),
        "max_attempts": order.max_attempts, "retry_of": order.retry_of, "settled_s": SETTLED_S,
        "content_type": order.content_type, "streamed": order.streamed, "wants_urls": order.wants_urls,
        "headers": _json(order.headers),
        "fingerprint": order.fingerprint, "reader": order.reader, "request_id": order.request_id, "traceparent": order.traceparent,
        "most": MAX_COUNTED, "key_most": 0 if is_far else key_most, "lane_most": _lane_most() or 0,
        "lane_cap": settings().max_queued_per_lane,
    }  # fmt: skip


def _with_attachments(session: Transaction, order: Submission) -> Submission:
    """What is attached is a part of the question: it is reserved, and remembered."""
    if not order.attachments or order.conversation is None:
        return order
    weight = attachments.weigh(session, order.key.id, order.conversation, order.attachments)
    return replace(order, tokens=order.tokens + weight, turn_tokens=(order.turn_tokens or 0) + weight)


def _turn(session: Transaction, order: Submission, *, lane_id: int) -> conversations.Turn | None:
    if order.conversation is None:
        return None
    return conversations.take_turn(
        session, order.key.id, order.conversation, endpoint=order.endpoint, lane_id=lane_id, tokens=order.tokens,
        turn_tokens=order.turn_tokens,
    )  # fmt: skip


def new_job_id() -> UUID:
    """A job's id: UUIDv7, so that ids sort by time."""
    return uuid7()


@lru_cache(maxsize=65_536)
def lane_id_of(pool_id: int, model: str) -> int:
    """The id of the lane for this pool and model, found or made in a transaction of its own. Raises TooManyModels."""
    with begin() as session:
        return lanes.find_or_create(session, pool_id, model)


def position_of(session: Transaction, job: Any) -> QueuePosition:
    """Where this job stands now. job: a row with id, lane_id, key_id, start_tag, status, held, conversation_id, turn and not_before.

    The count is exact where few stand ahead (milestone.EVERY, key_share.LOOKED_MOST), in part a few seconds old behind them, and ends
    at COUNTED_MOST. A held turn stands behind the turns before it and behind every lower tag of its key.
    """
    return positions_of(session, [job])[job.id]


def positions_of(session: Transaction, jobs: Sequence[Any]) -> dict[UUID, QueuePosition]:
    """Where each of these jobs stands now, as `place` says it, in few statements for all of them."""
    queued = [job for job in jobs if job.status == "queued"]
    made = {job.id: ADMITTED for job in jobs}
    if not queued:
        return made
    lanes = {lane.id: lane for lane in session.execute(_LANES, {"ids": sorted({job.lane_id for job in queued})})}
    talks = conversations.open_turns(session, {job.conversation_id for job in queued if job.held})
    turns = [[one for one in talks[job.conversation_id] if one.turn < job.turn] if job.held else [] for job in queued]
    lasts = [_last(job, _here(job, before)) for job, before in zip(queued, turns, strict=True)]
    wanted = {
        "lanes": [job.lane_id for job in queued], "keys": [job.key_id for job in queued], "tags": [last.start_tag for last in lasts],
        "ids": [last.id for last in lasts], "most": MAX_COUNTED,
    }  # fmt: skip
    capped = caps.block_reasons(session, queued) if any(lane.has_caps for lane in lanes.values()) else {}
    for ahead in session.execute(_AHEAD, wanted):
        job = queued[ahead.n - 1]
        made[job.id] = _place(job, lanes[job.lane_id], turns[ahead.n - 1], ahead, capped=capped.get(job.id))
    return made


def _here(job: Any, turns: Sequence[Any]) -> list[Any]:
    return [one for one in turns if one.lane_id == job.lane_id and one.status == "queued"]


def _last(job: Any, here: Sequence[Any]) -> Any:
    """Who goes last of this job and the turns before it in its own lane: behind that one it stands at the earliest."""
    return max([job, *here], key=lambda one: (one.start_tag, one.id))


def _place(job: Any, lane: Any, turns: Sequence[Any], ahead: Any, *, capped: str | None) -> QueuePosition:
    here = _here(job, turns)
    last = _last(job, here)
    # What is counted are neither held turns nor `last` itself.
    position = ahead.jobs + 1 + sum(one.held or one is last for one in here)
    eta_s = estimate_s(lane, ahead, behind=len(turns))
    if lane.is_paused or capped == "paused":
        return QueuePosition(position=position, eta_s=None, blocked_by="paused", wake_at=None)
    if job.held:
        return QueuePosition(position=position, eta_s=eta_s, blocked_by="conversation", wake_at=None)
    if job.not_before and job.not_before > lane.now:
        rest_s = round((job.not_before - lane.now).total_seconds(), 1)
        return QueuePosition(position=position, eta_s=max(eta_s, rest_s), blocked_by="backoff", wake_at=job.not_before)
    if capped:
        return QueuePosition(position=position, eta_s=None, blocked_by=capped, wake_at=None)
    if lane.blocked_by == "parked":
        return QueuePosition(position=position, eta_s=None, blocked_by="parked", wake_at=None)
    wake_at = lane.wake_at if lane.blocked_by and lane.wake_in_s > 0 else None
    return QueuePosition(position=position, eta_s=eta_s, blocked_by=lane.blocked_by, wake_at=wake_at)


def estimate_s(lane: Any, ahead: Any, *, behind: int = 0) -> float:
    """Seconds until this job's turn: the latest of what each limit allows for those ahead, and not before the line moves again."""
    estimates = [max(0.0, lane.wake_in_s) if lane.blocked_by else 0.0]
    if lane.rpm:
        estimates.append(ahead.jobs * 60 / lane.rpm)
    if lane.tpm:
        estimates.append(ahead.tokens * 60 / lane.tpm)
    if lane.ipm:
        estimates.append(ahead.images * 60 / lane.ipm)
    if lane.max_in_flight and lane.usual_s:
        estimates.append((ahead.jobs + 1 if lane.blocked_by else ahead.jobs) / lane.max_in_flight * lane.usual_s)
    return round(max(estimates) + behind * (lane.usual_s or 0.0), 1)


def _refuse_if_full(joined: Any, *, key_id: int) -> None:
    most = settings().max_queued_per_lane
    if (joined.in_lane if _lane_most() is not None else joined.queued) >= most:
        raise LineFull(f"{most} jobs already wait in this line, as many as it holds. Come back later.", retry_after_s=60)
    if joined.of_key is None:
        return
    _open_jobs.note(key_id, joined.of_key, now=time.monotonic())
    most = settings().max_queued_per_key
    if joined.of_key >= most:
        raise LineFull(
            f"This key already has {most} jobs waiting or running, as many as it may. Wait for some to end.",
            retry_after_s=60,
            code="too_many_jobs",
        )


def _lane_most() -> int | None:
    """Small caps are counted. None: for large ones the pacer's last count has to do, which may lag by a second."""
    most = settings().max_queued_per_lane
    return most if most <= MAX_COUNTED else None


def _refuse_if_late(order: Submission, joined: Any) -> None:
    eta_s = estimate_s(joined, joined) if not joined.is_paused else 0.0
    if eta_s > order.expires_in_s:
        raise TooLate(
            f"About {eta_s:.0f} s of work stand before this job, more than the {order.expires_in_s:g} s it may wait (expires_in_s). "
            "Allow more time, or come back later.",
            param="expires_in_s",
            retry_after_s=max(1.0, eta_s - order.expires_in_s),
        )


def _json(value: object) -> str | None:
    return None if value is None else json.dumps(value)


LANE_FIGURES = """
    SELECT lane.*, now() AS now, coalesce(extract(epoch FROM lane.wake_at - now()), 0)::float8 AS wake_in_s,
           lane.paused_at IS NOT NULL OR pool.paused_at IS NOT NULL AS is_paused,
           lane.draining_at IS NOT NULL OR pool.draining_at IS NOT NULL AS is_draining, EXISTS (SELECT FROM cap) AS has_caps
    FROM lane JOIN pool ON pool.id = lane.pool_id
"""
_LANES = text(f"{LANE_FIGURES} WHERE lane.id = ANY(:ids)")
_AHEAD = text(f"""
    SELECT asked.n::int, ahead.*
    FROM unnest(CAST(:lanes AS bigint[]), CAST(:keys AS bigint[]), CAST(:tags AS float8[]), CAST(:ids AS uuid[]))
        WITH ORDINALITY AS asked (lane_id, key_id, start_tag, id, n)
    JOIN lane AS line ON line.id = asked.lane_id
    CROSS JOIN LATERAL (
        SELECT coalesce(found.last_finish, line.virtual_time) AS last_finish, coalesce(found.low_water, '-infinity') AS low_water, weight
        FROM key LEFT JOIN key_share AS found ON found.lane_id = asked.lane_id AND found.key_id = key.id WHERE key.id = asked.key_id
    ) AS share
    CROSS JOIN LATERAL ({
    key_shares.lane_ahead(
        position_index.key_ahead(
            lane_id="asked.lane_id", key_id="asked.key_id", low_water="share.low_water", start_tag="asked.start_tag", job_id="asked.id"
        ),
        lane_id="asked.lane_id",
        key_id="asked.key_id",
        lane_time="line.virtual_time",
        start_tag="asked.start_tag",
        job_id="asked.id",
        share="share",
    )
}) AS ahead
""")
# A dormant lane (nobody was seen waiting for SETTLED_S) is woken by the submit itself; a busy one is not written to, so that
# submits do not stand in line for its row. The pacer looks at lanes that fell idle less than twice SETTLED_S ago by itself.
# The job itself is not there yet for what is counted.
_AHEAD_OF_JOINED = key_shares.lane_ahead(
    position_index.key_ahead(lane_id=":lane_id", key_id=":key_id", low_water="share.low_water", start_tag="joined.start_tag",
    job_id="joined.id"),
    lane_id=":lane_id", key_id=":key_id", lane_time="line.virtual_time", start_tag="joined.start_tag", job_id="joined.id", share="share",
)  # fmt: skip
_JOINED = f"""
    WITH line AS ({LANE_FIGURES} WHERE lane.id = :lane_id AND lane.leaving_at IS NULL), {key_shares.SHARE_CTES}, moved AS (
        INSERT INTO key_flow AS f (lane_id, key_id, name, last_finish)
        SELECT line.id, :key_id, :flow, share.virtual_time + CAST(:share AS float8) FROM line, share
        ON CONFLICT (lane_id, key_id, name) DO UPDATE
        SET last_finish = greatest(excluded.last_finish - :share, f.last_finish) + :share / f.weight
        RETURNING last_finish, weight
    ), joined AS (
        -- Behind the user's last job, whatever was cancelled before that one and given back.
        -- What was added and taken away again may lack the last bit: never below the key's time, where the low-water mark may be.
        INSERT INTO job (
            id, key_id, lane_id, status, held, flow, priority, start_tag, share, cost, tokens, images, reserved_microusd, endpoint, model,
            request, conversation_id, turn, timeout_s, on_lost, on_unreadable, metadata, webhook_url, created_at, expires_at,
            max_attempts, retry_of, content_type, streamed, wants_urls, fingerprint, reader, attachments, turn_tokens, since_turn,
            history_tokens, request_id, traceparent, headers
        )
        SELECT :id, :key_id, :lane_id, 'queued', :held, :flow, :priority,
               greatest(moved.last_finish - :share / moved.weight, share.virtual_time, (
                   SELECT last.start_tag + last.share FROM job AS last
                   WHERE last.lane_id = :lane_id AND last.key_id = :key_id AND last.flow = :flow AND last.status = 'queued'
                   ORDER BY last.start_tag DESC LIMIT 1
               )),
               :share / moved.weight, :cost, :tokens, :images, :reserved, :endpoint, :model, :request, :conversation_id, :turn,
               :timeout_s, :on_lost, :on_unreadable, CAST(:metadata AS jsonb), :webhook_url, clock_timestamp(),
               clock_timestamp() + :expires_in, :max_attempts, :retry_of, :content_type, :streamed, :wants_urls, :fingerprint, :reader,
               CAST(:attachments AS uuid[]), :turn_tokens, :since_turn, :history_tokens, :request_id, :traceparent,
               CAST(:headers AS jsonb)
        FROM moved, share RETURNING id, start_tag, created_at, expires_at, held, not_before
    ), told AS (
        INSERT INTO job_event (job_id, seq, type, at) SELECT id, 1, 'job.queued', created_at FROM joined
    ), woken AS (
        -- The share before the lane, as everybody locks them.
        UPDATE lane SET wake_at = now(), idle_since = NULL FROM line
        WHERE lane.id = line.id AND line.wake_at IS NULL AND lane.wake_at IS NULL
        AND (line.idle_since IS NULL OR line.idle_since < now() - make_interval(secs => :settled_s))
        AND (SELECT count(*) FROM kept) >= 0
    )
    SELECT line.queued, line.rpm, line.tpm, line.ipm, line.max_in_flight, line.usual_s, line.blocked_by, line.wake_in_s, line.is_paused,
           line.is_draining, line.has_caps, line.wake_at, line.now,
           joined.id, joined.start_tag, joined.held, joined.not_before, joined.created_at, joined.expires_at,
           ahead.jobs, ahead.tokens, ahead.images, counted.in_lane, counted.of_key
           {{more}}
    FROM joined, line, share, LATERAL (
        SELECT (SELECT count(*) FROM (
                   SELECT FROM job WHERE lane_id = :lane_id AND status = 'queued' AND NOT held LIMIT :lane_most
               ) AS queued) AS in_lane,
               CASE WHEN :key_most > 0 THEN (
                   SELECT count(*) FROM (SELECT FROM job WHERE key_id = :key_id AND {OPEN} LIMIT :key_most) AS open
               ) END AS of_key
    ) AS counted, LATERAL (
        {_AHEAD_OF_JOINED}
    ) AS ahead
"""
_ENQUEUE = text(_JOINED.format(more=""))
# What `join` would refuse, or has to look at, fails as a whole, so that nothing of it stays. An estimate is rounded to a tenth of a second.
_ENQUEUE_FAST = text(
    _JOINED.format(
        more="""
           , 1 / CASE WHEN line.is_draining OR line.has_caps OR counted.of_key >= :key_most
                      OR CASE WHEN :lane_most > 0 THEN counted.in_lane ELSE line.queued END >= :lane_cap
                      OR NOT line.is_paused AND make_interval(secs => 0.1 + greatest(
                          CASE WHEN line.blocked_by IS NOT NULL THEN line.wake_in_s END, ahead.jobs * 60 / nullif(line.rpm, 0),
                          ahead.tokens * 60 / nullif(line.tpm, 0), ahead.images * 60 / nullif(line.ipm, 0),
                          (ahead.jobs + 1) / nullif(line.max_in_flight, 0) * line.usual_s, 0
                      )) > :expires_in
                 THEN 0 ELSE 1 END
        """
    )
)
