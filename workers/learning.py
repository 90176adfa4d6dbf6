"""What an answer says of the credential that was called: limits, pauses, a key that is no good. Stored beside what Redis knows."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from models import db, meter, parking
from models.errors import Unavailable
from models.job import Outcome
from workers import retry
from workers.limiter import Learned, Meter, Report
from workers.retry import Next, Verdict

log = logging.getLogger(__name__)


def remember(bound: Meter, learned: Learned | None, verdict: Verdict, *, is_probe: bool) -> Verdict:
    """What the answer says of the credential is stored; returns the verdict on the job, which may depend on that."""
    is_news = learned is not None and learned.changed
    if not (verdict.park or is_news or is_probe):
        return verdict
    try:
        with db.begin() as session:
            if learned is not None and is_news:
                meter.remember(session, bound.credential_id, bound.model, **_lasting(learned))
            if verdict.park:
                return _parked(session, bound, verdict)
            if verdict.next == Next.SUCCEED:
                parking.unpark(session, bound.credential_id)
    except Unavailable:
        log.warning("what was learned is not stored: Postgres is away", extra={"credential_id": bound.credential_id})
    return verdict


def unheard(report: Report) -> Learned | None:
    """What there is to remember of a report that Redis did not hear: a pause at least, for the state that will be rebuilt."""
    if report.cooldown_ms is None:
        return None
    until_us = time.time_ns() // 1000 + report.cooldown_ms * 1000
    return Learned(window=None, learned_rpm=None, learned_tpm=None, cooldown_until_us=until_us, changed=True)


def _parked(session: db.Session, bound: Meter, verdict: Verdict) -> Verdict:
    """Of an own key the job that found out fails, with the upstream's own words; of a pool no caller is to blame, so it waits."""
    is_wrong_key = verdict.park == retry.WRONG_KEY
    found = parking.park(session, bound.credential_id, reason=verdict.park or "", error=verdict.error if is_wrong_key else None)
    log.error("credential parked", extra={"credential_id": bound.credential_id, "reason": verdict.park})
    if found.is_own and (is_wrong_key or not found.was_parked):
        return verdict
    return replace(verdict, next=Next.WAIT, outcome=Outcome.THROTTLED)


def _lasting(learned: Learned) -> dict[str, Any]:
    cooldown = datetime.fromtimestamp(learned.cooldown_until_us / 1e6, UTC) if learned.cooldown_until_us else None
    return {
        "learned_rpm": learned.learned_rpm,
        "learned_tpm": learned.learned_tpm,
        "window_size": learned.window,
        "cooldown_until": cooldown,
    }
