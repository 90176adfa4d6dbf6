"""Heartbeats of the API processes: since when a caller that lost its connection could reach one of them, without a break.

One row for each process, written by itself every EVERY_S while it is ready (api/server/heartbeat.py). All times are Postgres's, so the
hosts'
clocks do not matter, and every pacer reads the same.
"""

from __future__ import annotations

from sqlalchemy import text

from models.database.db import Transaction

HEARTBEAT_S = 2.0
# A process without a heartbeat for this long counts as away; its next one begins anew. Three heartbeats, as for workers.
SILENT_S = 3 * HEARTBEAT_S
# A condition for statements with the parameter `longer_than_s`: one process was there all that time, and is now.
REACHABLE = f"""EXISTS (
    SELECT FROM api_process WHERE seen_at > clock_timestamp() - interval '{SILENT_S} s'
    AND up_since <= clock_timestamp() - make_interval(secs => :longer_than_s)
)"""


def record_heartbeat(session: Transaction, name: str) -> None:
    """This process can take callers now. After a silence (stopped, frozen, cut off from Postgres) it is up since now."""
    session.execute(_REPORT, {"name": name})


def remove_process(session: Transaction, name: str) -> None:
    """This process takes no callers any more."""
    session.execute(text("DELETE FROM api_process WHERE name = :name"), {"name": name})


def remove_silent(session: Transaction, *, unseen_s: float) -> None:
    """Removes processes without a heartbeat for this long: they were killed."""
    session.execute(
        text("DELETE FROM api_process WHERE seen_at < clock_timestamp() - make_interval(secs => :unseen_s)"), {"unseen_s": unseen_s}
    )


_REPORT = text(f"""
    INSERT INTO api_process (name, up_since, seen_at) VALUES (:name, clock_timestamp(), clock_timestamp())
    ON CONFLICT (name) DO UPDATE SET seen_at = clock_timestamp(), up_since = CASE
        WHEN api_process.seen_at < clock_timestamp() - interval '{SILENT_S} s' THEN clock_timestamp() ELSE api_process.up_since
    END
""")
