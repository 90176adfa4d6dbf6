"""Heartbeats of the API processes: since when clients could reach one of them without interruption.

Each process writes one row every HEARTBEAT_S while it is ready (api/server/heartbeat.py). All times are Postgres's: the clocks of the hosts
do not matter, and every pacer reads the same.
"""

from __future__ import annotations

from sqlalchemy import text

from models.database.db import Transaction

HEARTBEAT_S = 2.0
# After three missed heartbeats a process counts as down, as for workers; its next heartbeat starts a new uptime.
SILENT_S = 3 * HEARTBEAT_S
#: SQL condition with the parameter `longer_than_s`: one process has been up all that time, and still is.
REACHABLE = f"""EXISTS (
    SELECT FROM api_process WHERE seen_at > clock_timestamp() - interval '{SILENT_S} s'
    AND up_since <= clock_timestamp() - make_interval(secs => :longer_than_s)
)"""

_RECORD = text(f"""
    INSERT INTO api_process (name, up_since, seen_at) VALUES (:name, clock_timestamp(), clock_timestamp())
    ON CONFLICT (name) DO UPDATE SET seen_at = clock_timestamp(), up_since = CASE
        WHEN api_process.seen_at < clock_timestamp() - interval '{SILENT_S} s' THEN clock_timestamp() ELSE api_process.up_since
    END
""")


def record_heartbeat(session: Transaction, name: str) -> None:
    """Records that this process accepts requests. After a silence (stopped, frozen, cut off from Postgres) its uptime starts anew."""
    session.execute(_RECORD, {"name": name})


def remove_process(session: Transaction, name: str) -> None:
    """Removes a process that accepts no requests any more."""
    session.execute(text("DELETE FROM api_process WHERE name = :name"), {"name": name})


_REMOVE_SILENT = text("DELETE FROM api_process WHERE seen_at < clock_timestamp() - make_interval(secs => :unseen_s)")


def remove_silent(session: Transaction, *, unseen_s: float) -> None:
    """Removes processes without a heartbeat for this long: they were killed."""
    session.execute(_REMOVE_SILENT, {"unseen_s": unseen_s})
