"""Stores what an answer teaches about its credential in Postgres: learned limits, pauses, parked keys. Redis has its own copy."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from models.config.settings import settings
from models.content import endpoints
from models.database import db
from models.jobs.states import Outcome
from models.keys import limits, parking
from models.platform.errors import Unavailable
from workers.answers.retry_policy import NextStep, Verdict
from workers.limiter.requests import Learned, Report

log = logging.getLogger(__name__)

# Headers of the client that choose the account that pays.
ACCOUNT_HEADERS = frozenset({"openai-organization", "openai-project"})
# When several credentials have refused a job, its caller gets the first of these statuses: those that the caller can fix.
_STATUS_RANK = {status: rank for rank, status in enumerate((400, 404, 403, 402, 429, 401))}


def store_feedback(row: Any, learned: Learned | None, verdict: Verdict) -> Verdict:
    """Stores the feedback; returns the verdict on the job, which may change with it. row: of claims.claim."""
    if verdict.park and _chooses_account(row):
        # The account that this request's headers choose is at fault, not the credential, which other jobs use too.
        verdict = replace(verdict, park=None)
    has_learned = learned is not None and learned.changed
    may_try_others = bool(verdict.unserved or verdict.exceeds) and not _is_model_lookup(row)
    if not (verdict.park or may_try_others or has_learned or row.is_probe):
        return verdict
    try:
        with db.begin() as session:
            if learned is not None and has_learned:
                limits.store_learned(session, row.credential_id, row.model, **_lasting(learned))
            if verdict.park:
                return _parked(session, row, verdict)
            if may_try_others:
                return _unserved(session, row, verdict)
            if verdict.next == NextStep.SUCCEED and row.is_probe:
                parking.unpark(session, row.credential_id)
                parking.unpark_model(session, row.credential_id, model=row.model, endpoint=row.endpoint)
    except Unavailable:
        log.warning("feedback not stored: Postgres is unavailable", extra={"credential_id": row.credential_id})
        if verdict.park or may_try_others:
            # Whether another credential may serve the job is unknown: the job is requeued, and its next attempt decides.
            return replace(verdict, next=NextStep.WAIT)
    return verdict


def unreported_pause(report: Report) -> Learned | None:
    """The pause in a report that Redis did not receive; stored in Postgres for the state that will be rebuilt."""
    pause_ms = report.cooldown_ms or (int(settings().pause_s * 1000) if report.throttled else None)
    if pause_ms is None:
        return None
    until_us = time.time_ns() // 1000 + pause_ms * 1000
    return Learned(window=None, learned_rpm=None, learned_tpm=None, cooldown_until_us=until_us, changed=True)


def refusal_of(row: Any, verdict: Verdict) -> dict[str, Any]:
    """The refusal in the form that the job's row keeps."""
    return {"credential_id": row.credential_id, "status": verdict.status, "error": verdict.error}


def _parked(session: db.Transaction, row: Any, verdict: Verdict) -> Verdict:
    """Parks the credential. A caller's own key fails the job with the upstream's error; jobs of a pool wait for another key."""
    parked = parking.park(session, row.credential_id, reason=verdict.park or "", error=verdict.error, status=verdict.status)
    log.error("credential parked", extra={"credential_id": row.credential_id, "reason": verdict.park})
    return verdict if parked.is_own else replace(verdict, next=NextStep.WAIT, outcome=Outcome.THROTTLED)


def _unserved(session: db.Transaction, row: Any, verdict: Verdict) -> Verdict:
    """Records the refusal. The pool's other credentials are tried first; when all refused, the job fails with the best ranked error."""
    earlier = row.refusals or []
    has_others = parking.record_refusal(
        session, job_id=row.id, credential_id=row.credential_id, model=row.model, endpoint=row.endpoint, reason=verdict.unserved,
        refused_by=[refusal["credential_id"] for refusal in earlier],
    )  # fmt: skip
    if has_others and verdict.unserved:
        fields = {"credential_id": row.credential_id, "model": row.model, "reason": verdict.unserved}
        log.warning("credential parked for one model", extra=fields)
    if has_others:
        return replace(verdict, next=NextStep.WAIT)
    last = refusal_of(row, verdict)
    best = min([last, *earlier], key=lambda refusal: _STATUS_RANK.get(refusal["status"], len(_STATUS_RANK)))
    return verdict if best is last else replace(verdict, error=best["error"], status=best["status"], is_of_another=True)


def _chooses_account(row: Any) -> bool:
    return not ACCOUNT_HEADERS.isdisjoint(row.headers or ())


def _is_model_lookup(row: Any) -> bool:
    # For `GET /v1/models/{id}` a 404 is the answer.
    return bool(row.endpoint.startswith(f"{endpoints.MODELS}/"))


def _lasting(learned: Learned) -> dict[str, Any]:
    cooldown = datetime.fromtimestamp(learned.cooldown_until_us / 1e6, UTC) if learned.cooldown_until_us else None
    return {
        "learned_rpm": learned.learned_rpm,
        "learned_tpm": learned.learned_tpm,
        "window_size": learned.window,
        "cooldown_until": cooldown,
        "tpm_refuted": learned.tpm_refuted,
    }
