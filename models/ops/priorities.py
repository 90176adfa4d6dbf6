"""Operator changes of the order of waiting jobs: weights of keys and users, priorities, boosts.

A change assigns new start tags to a user's waiting jobs, as if they were enqueued now: the first keeps the tag of the user's first job,
each next one follows one share later. The user's own order and the tags of other users stay; the next job continues after the last tag.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import text

from models.access import audit_log
from models.access.audit_log import Act
from models.database.db import Transaction
from models.ops import pause
from models.ops.pause import Target
from models.platform.errors import Invalid, NotFound, WrongState
from models.queue import key_shares, lanes
from models.queue.submission import PRIORITY_WEIGHTS

_FLOW = "lane_id = :lane_id AND key_id = :key_id AND name = :flow"
_LOCK_FLOW = text(f"SELECT weight, last_finish FROM key_flow WHERE {_FLOW} FOR UPDATE")
_LOCK_KEY = text("SELECT weight FROM key WHERE id = :id FOR UPDATE")
_WEIGH_FLOW = text(f"UPDATE key_flow SET weight = :weight WHERE {_FLOW}")


def set_weight(session: Transaction, act: Act, on: Target, *, weight: float) -> tuple[dict[str, Any], list[int]]:
    """Gives a key or user `weight` times the share of weight 1; returns it and the affected lanes. Raises NotFound, Invalid.

    A key shares with the other keys of its pool, in every lane. A user shares with the other users of its key, waiting jobs included.
    """
    if not 0.01 <= weight <= 1000:
        raise Invalid("`weight` is a number from 0.01 to 1000.", param="weight")
    if on.kind not in ("key", "flow"):
        raise Invalid("Only keys and flows have weights of this kind; a credential's is changed with change-credential.")
    on = pause.resolve(session, on)
    params = {"lane_id": on.number, "key_id": on.key_id, "flow": on.flow, "weight": weight, "id": on.number}
    row = session.execute(_LOCK_FLOW if on.kind == "flow" else _LOCK_KEY, params).one_or_none()
    if row is None:
        raise NotFound(f"There is no {on.kind} {on.name!r}.")
    if on.kind == "flow":
        session.execute(_WEIGH_FLOW, params)
        _retag(session, on.number, on.key_id, on.flow)
    else:
        session.execute(text("UPDATE key SET weight = :weight WHERE id = :id"), params)
    audit_log.write(session, act, "weight", str(on), before={"weight": row.weight}, after={"weight": weight})
    return {"id": on.name, "object": on.kind, "weight": weight}, pause.lane_ids(session, on)


def set_priority(session: Transaction, act: Act, job_id: UUID, *, priority: str) -> int:
    """Sets the priority of a waiting job and moves the later jobs of its flow; returns its lane. Raises WrongState, Invalid."""
    if priority not in PRIORITY_WEIGHTS:
        raise Invalid(f"`priority` is one of {', '.join(PRIORITY_WEIGHTS)}.", param="priority")
    job = _waiting(session, job_id, with_others=True)
    session.execute(text("UPDATE job SET priority = :priority WHERE id = :id"), {"id": job_id, "priority": priority})
    _retag(session, job.lane_id, job.key_id, job.flow)
    audit_log.write(session, act, "priority", f"job:{job_id}", before={"priority": job.priority}, after={"priority": priority})
    return int(job.lane_id)


_BOOST = text("""
    UPDATE job SET start_tag = least(0, (
        SELECT min(start_tag) FROM job AS other WHERE other.lane_id = :lane_id AND other.status = 'queued' AND NOT other.held
        AND start_tag < 0
    )) - 1, not_before = NULL WHERE id = :id RETURNING start_tag
""")


def boost(session: Transaction, act: Act, job_id: UUID) -> int:
    """Moves a waiting job to the head of its lane, before every job that waits now; returns its lane. Raises WrongState."""
    job = _waiting(session, job_id)
    tag = session.execute(_BOOST, {"id": job_id, "lane_id": job.lane_id}).scalar_one()
    audit_log.write(session, act, "boost", f"job:{job_id}", before={"start_tag": job.start_tag}, after={"start_tag": tag})
    key_shares.restore_requeued(session, [(job.lane_id, job.key_id, tag, 0.0)])
    lanes.wake(session, [job.lane_id])
    return int(job.lane_id)


# In the order in which the pacer admits them.
_LOCK_JOBS = text("""
    SELECT FROM job WHERE lane_id = :lane_id AND key_id = :key_id AND flow = :flow AND status = 'queued' ORDER BY start_tag, id FOR UPDATE
""")


def _waiting(session: Transaction, job_id: UUID, *, with_others: bool = False) -> Any:
    """Locks and returns the job's row. with_others: locks all waiting jobs of its flow too."""
    # Locks the flow first, as a submit does.
    flow = session.execute(text("SELECT lane_id, key_id, flow FROM job WHERE id = :id"), {"id": job_id}).one_or_none()
    if flow is None:
        raise NotFound("No such job.")
    session.execute(_LOCK_FLOW, {"lane_id": flow.lane_id, "key_id": flow.key_id, "flow": flow.flow})
    if with_others:
        session.execute(_LOCK_JOBS, {"lane_id": flow.lane_id, "key_id": flow.key_id, "flow": flow.flow})
    row = session.execute(text("SELECT * FROM job WHERE id = :id FOR UPDATE"), {"id": job_id}).one()
    if row.status != "queued":
        raise WrongState("Only a waiting job can be moved in its queue.")
    return row


# Boosted jobs (negative tags) stay first.
_RETAG = text(f"""
    WITH shares AS (
        SELECT id, start_tag, cost / (CASE priority WHEN 'low' THEN CAST(:low AS float8) WHEN 'high' THEN CAST(:high AS float8)
               ELSE CAST(:normal AS float8) END * flow.weight) AS share
        FROM job CROSS JOIN (SELECT weight FROM key_flow WHERE {_FLOW}) AS flow
        WHERE lane_id = :lane_id AND key_id = :key_id AND job.flow = :flow AND status = 'queued' AND start_tag >= 0
    ), placed AS (
        SELECT id, share, min(start_tag) OVER () + sum(share) OVER (ORDER BY start_tag, id) - share AS tag FROM shares
    ), moved AS (
        UPDATE job SET share = placed.share, start_tag = placed.tag FROM placed
        WHERE job.id = placed.id AND job.status = 'queued' RETURNING job.start_tag, job.share
    ), flow_updated AS (
        UPDATE key_flow SET last_finish = found.finish FROM (SELECT max(start_tag + share) AS finish FROM moved) AS found
        WHERE {_FLOW} AND found.finish IS NOT NULL
    )
    SELECT min(start_tag) AS first FROM moved
""")


def _retag(session: Transaction, lane_id: int, key_id: int, flow: str) -> None:
    session.execute(_LOCK_JOBS, {"lane_id": lane_id, "key_id": key_id, "flow": flow})
    row = session.execute(_RETAG, {"lane_id": lane_id, "key_id": key_id, "flow": flow, **PRIORITY_WEIGHTS}).one()
    if row.first is not None:
        key_shares.restore_requeued(session, [(lane_id, key_id, row.first, 0.0)])
    lanes.wake(session, [lane_id])
