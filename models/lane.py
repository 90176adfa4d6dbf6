"""Lanes that somebody came back to: the pacer looks at them again."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import text

from models.db import Session


def wake(session: Session, lane_ids: Iterable[int]) -> None:
    """These lanes are due now.

    The last thing to lock in a transaction, and once in it: who needs several lanes takes them in the order of their ids. Jobs that come
    back to them have to be told of before (key_share.come_back).
    """
    wanted = sorted(set(lane_ids))
    if wanted:
        session.execute(_WAKE, {"ids": wanted})


_WAKE = text("""
    WITH found AS (SELECT id FROM lane WHERE id = ANY(CAST(:ids AS bigint[])) ORDER BY id FOR UPDATE)
    UPDATE lane SET wake_at = now(), idle_since = NULL FROM found WHERE lane.id = found.id
""")
