"""Rebuilds a lane's counters from its jobs."""

from __future__ import annotations

from sqlalchemy import text

from models.access import audit_log
from models.access.audit_log import Act
from models.database.db import Transaction
from models.ops import pause
from models.ops.pause import Target
from models.queue import share_maintenance

_RECOUNT = text("""
    UPDATE lane SET queued = counted.jobs, wake_at = now()
    FROM (SELECT count(*) AS jobs FROM job WHERE lane_id = :id AND status = 'queued' AND NOT held) AS counted
    WHERE lane.id = :id
""")


def rebuild(session: Transaction, act: Act, lane_id: int) -> None:
    """Rebuilds the lane's key shares and its count of queued jobs, and has the pacer look at it. Raises NotFound."""
    pause.target_state(session, Target("lane", lane_id), lock=True)
    share_maintenance.rebuild_shares(session, lane_id)
    session.execute(_RECOUNT, {"id": lane_id})
    audit_log.write(session, act, "rebuild", f"lane:{lane_id}", before=None, after=None)
