"""Rebuilds the limiter's lost state of one credential and model from the rows in Postgres."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Any

from models.database import db
from models.jobs import requeue
from models.keys import limits
from models.platform import crash_points
from workers.limiter.limiter import Limiter
from workers.limiter.requests import CredentialModel, PastCharges

log = logging.getLogger(__name__)

MINUTES_S = 600
DAY_S = 86_400


def rebuild(limiter: Limiter, lost: CredentialModel) -> None:
    """Writes state that is never looser than the lost one. Raises Unavailable, LimiterUnavailable.

    Unclaimed admissions are requeued first, because their messages are as lost as the state. After that, no claim can add a call that
    the history read below does not hold.
    """
    with db.begin() as session:
        requeue.requeue_unclaimed(session, older_than_s=0, credential_id=lost.credential_id, model=lost.model)
    with db.begin() as session:
        known = limits.state_of(session, lost.credential_id, lost.model)
        minutes = limits.attempt_history(session, lost.credential_id, lost.model, seconds=MINUTES_S, step_s=1)
        day = limits.attempt_history(session, lost.credential_id, lost.model, seconds=DAY_S, step_s=60) if known.limits.rpd else []
        live = limits.running_attempts(session, lost.credential_id, lost.model)
    crash_points.hit("rebuild.before_init")
    now_us = time.time_ns() // 1000
    limiter.init(
        lost,
        known.limits,
        learned_rpm=known.learned_rpm,
        learned_tpm=known.learned_tpm,
        window=known.window_size,
        cooldown_until_us=int(known.cooldown_until.timestamp() * 1e6) if known.cooldown_until else 0,
        past=_past(minutes),
        day=_past(day),
        leases={str(row.dispatch_id): (now_us + int(row.left_s * 1e6), row.tokens, row.images) for row in live},
    )
    log.info("limiter state rebuilt", extra={"credential_id": lost.credential_id, "model": lost.model, "live": len(live)})


def _past(rows: Iterable[Any]) -> list[PastCharges]:
    return [PastCharges(row.ends_us, row.requests, int(row.tokens), int(row.images)) for row in rows]
