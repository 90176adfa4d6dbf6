"""Who stands where, changed by an operator: weight of a flow, priority of a job, boost. The order is still the column.

A flow's waiting jobs get their tags anew as if they had joined now with what holds now: the first where the flow's first stood, each
next one share later. So the flow's own order stays, others' tags too, and the next to join goes on from the last.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import text

from models import audit, lane
from models.audit import Act
from models.db import Session
from models.errors import Invalid, NotFound, WrongState
from models.line import WEIGHTS


def weigh(session: Session, act: Act, lane_id: int, flow: str, *, weight: float) -> dict[str, Any]:
    """This flow gets `weight` times the share of one that has 1, from its waiting jobs on. Raises NotFound, Invalid."""
    if not 0.01 <= weight <= 1000:
        raise Invalid("`weight` is a number from 0.01 to 1000.", param="weight")
    found = session.execute(_LOCK_FLOW, {"lane_id": lane_id, "flow": flow}).one_or_none()
    if found is None:
        raise NotFound(f"There is no flow '{lane_id}:{flow}'.")
    session.execute(_WEIGH, {"lane_id": lane_id, "flow": flow, "weight": weight})
    _retag(session, lane_id, flow)
    audit.write(session, act, "weight", f"flow:{lane_id}:{flow}", before={"weight": found.weight}, after={"weight": weight})
    return {"id": f"{lane_id}:{flow}", "object": "flow", "weight": weight}


def prioritise(session: Session, act: Act, job_id: UUID, *, priority: str) -> int:
    """The waiting job has this priority, and those behind it in its flow move accordingly; returns its lane. Raises WrongState, Invalid."""
    if priority not in WEIGHTS:
        raise Invalid(f"`priority` is one of {', '.join(WEIGHTS)}.", param="priority")
    one = _waiting(session, job_id)
    session.execute(text("UPDATE job SET priority = :priority WHERE id = :id"), {"id": job_id, "priority": priority})
    _retag(session, one.lane_id, one.flow)
    audit.write(session, act, "priority", f"job:{job_id}", before={"priority": one.priority}, after={"priority": priority})
    return int(one.lane_id)


def boost(session: Session, act: Act, job_id: UUID) -> int:
    """The waiting job stands at the head of its lane, before all who wait now; returns its lane. Raises WrongState."""
    one = _waiting(session, job_id)
    tag = session.execute(_BOOST, {"id": job_id, "lane_id": one.lane_id}).scalar_one()
    audit.write(session, act, "boost", f"job:{job_id}", before={"start_tag": one.start_tag}, after={"start_tag": tag})
    lane.wake(session, [(one.lane_id, tag)])
    return int(one.lane_id)


def _waiting(session: Session, job_id: UUID) -> Any:
    # The flow first, as a submit takes it.
    flow = session.execute(text("SELECT lane_id, flow FROM job WHERE id = :id"), {"id": job_id}).one_or_none()
    if flow is None:
        raise NotFound("No such job.")
    session.execute(_LOCK_FLOW, {"lane_id": flow.lane_id, "flow": flow.flow})
    row = session.execute(text("SELECT * FROM job WHERE id = :id FOR UPDATE"), {"id": job_id}).one()
    if row.status != "queued":
        raise WrongState("Only a job that waits can be moved in its line.")
    return row


def _retag(session: Session, lane_id: int, flow: str) -> None:
    row = session.execute(_RETAG, {"lane_id": lane_id, "flow": flow, **WEIGHTS}).one()
    lane.wake(session, [(lane_id, row.first if row.first is not None else float("inf"))])


_LOCK_FLOW = text("SELECT weight, last_finish FROM flow WHERE lane_id = :lane_id AND name = :flow FOR UPDATE")
_WEIGH = text("UPDATE flow SET weight = :weight WHERE lane_id = :lane_id AND name = :flow")
_RETAG = text("""
    WITH shares AS (
        SELECT id, start_tag, cost / (CASE priority WHEN 'low' THEN CAST(:low AS float8) WHEN 'high' THEN CAST(:high AS float8)
               ELSE CAST(:normal AS float8) END * flow.weight) AS share
        FROM job CROSS JOIN (SELECT weight FROM flow WHERE lane_id = :lane_id AND name = :flow) AS flow
        WHERE lane_id = :lane_id AND job.flow = :flow AND status = 'queued'
    ), placed AS (
        SELECT id, share, min(start_tag) OVER () + sum(share) OVER (ORDER BY start_tag, id) - share AS tag FROM shares
    ), moved AS (
        UPDATE job SET share = placed.share, start_tag = placed.tag FROM placed
        WHERE job.id = placed.id AND job.status = 'queued' RETURNING job.start_tag, job.share
    ), told AS (
        UPDATE flow SET last_finish = found.finish FROM (SELECT max(start_tag + share) AS finish FROM moved) AS found
        WHERE flow.lane_id = :lane_id AND flow.name = :flow AND found.finish IS NOT NULL
    )
    SELECT min(start_tag) AS first FROM moved
""")
_BOOST = text("""
    UPDATE job SET start_tag = least(start_tag, (
        SELECT min(start_tag) FROM job AS other WHERE other.lane_id = :lane_id AND other.status = 'queued' AND NOT other.held
    ) - 1), not_before = NULL WHERE id = :id RETURNING start_tag
""")
