"""Lanes that somebody came back to: the pacer looks at them again, from where those stand."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import text

from models.db import Session


def wake(session: Session, tags: Iterable[tuple[int, float]]) -> None:
    """These lanes are due now, and nobody with one of these tags is below their low-water mark. tags: (lane id, start tag).

    The last thing to lock in a transaction, and once in it: who needs several lanes takes them in the order of their ids.
    """
    lowest: dict[int, float] = {}
    for lane_id, tag in tags:
        lowest[lane_id] = min(tag, lowest.get(lane_id, tag))
    if lowest:
        session.execute(_WAKE, {"ids": list(lowest), "tags": list(lowest.values())})


_WAKE = text("""
    WITH found AS (
        SELECT lane.id, given.tag FROM unnest(CAST(:ids AS bigint[]), CAST(:tags AS float8[])) AS given (id, tag)
        JOIN lane ON lane.id = given.id ORDER BY lane.id FOR UPDATE OF lane
    )
    UPDATE lane SET low_water = least(lane.low_water, found.tag), wake_at = now(), idle_since = NULL FROM found WHERE lane.id = found.id
""")
