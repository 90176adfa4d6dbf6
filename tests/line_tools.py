"""Short ways to put jobs in line and to move them on, for tests that are about the line itself."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import text

from models import db, line, pacing
from models.key import Key

BODY = b'{"model": "m", "messages": [{"role": "user", "content": "hi"}]}'


def submit(caller: Key, **wanted: Any) -> UUID:
    """One more job in this key's line for model `m`; returns its id."""
    order = {"endpoint": "/v1/chat/completions", "model": "m", "request": BODY, "flow": "someone", "tokens": 100, **wanted}
    job_id = line.new_id()
    with db.begin() as session:
        line.join(session, line.Order(key=caller, **order), job_id=job_id)
    return job_id


def admit_all(caller: Key, *, most: int) -> list[UUID]:
    """The next `most` jobs of the key's line are admitted, as the pacer would without any limit; returns them in order."""
    with db.begin() as session:
        credential_id = session.execute(text("SELECT id FROM credential WHERE pool_id = :id"), {"id": caller.pool_id}).scalar_one()
        session.execute(text("UPDATE lane SET claimed_until = NULL, wake_at = now() - interval '1 s'"))
        lanes = pacing.claim_lanes(session, woken=[], most=100)
        heads = pacing.heads(session, lanes, most=most)
        given = [pacing.Admission(job_id=head.id, dispatch_id=uuid4(), credential_id=credential_id) for head in heads]
        assert len(given) == len(pacing.admit(session, given))
        pacing.settle(
            session,
            [pacing.Settled(lane_id=lane.id, virtual_time=max([lane.virtual_time, *(head.start_tag for head in heads)]), wake_in_s=0, blocked_by=None) for lane in lanes],
        )
    return [head.id for head in heads]
