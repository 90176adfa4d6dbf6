"""Runs a claimed attempt: loads the body, calls the upstream, releases the slot, and writes the end of the attempt."""

from __future__ import annotations

import logging
import random
import time
from dataclasses import replace
from typing import Any
from uuid import UUID

from models.config.settings import settings
from models.database import db
from models.jobs import claims
from models.jobs.states import AttemptResult, JobResult, Outcome, Status
from models.platform import crash_points
from models.platform.errors import LimiterUnavailable, Unavailable
from workers.answers import event_answer, rate_limit_headers, retry_policy
from workers.answers.retry_policy import NextStep, Verdict
from workers.channels import notify
from workers.limiter.limiter import Limiter
from workers.limiter.requests import CredentialModel, Learned, Report
from workers.observe import counters
from workers.results import finish
from workers.runner import feedback, outgoing, stream
from workers.runner.attempt import Attempt
from workers.runner.failed_attempt import fail_or_requeue, request_id_of
from workers.upstream import request
from workers.upstream.body_budget import BodyReservation
from workers.upstream.client import send
from workers.upstream.exchange import Aborted, Answer, Lost, NotSent

log = logging.getLogger(__name__)

# A claim later than this after its admission is charged again, so that calls admitted evenly do not arrive in a burst. The limiter's
# windows are longer by exactly this (LATE in limiter.lua), so calls that are no later keep within every window of the upstream.
LATE_S = 0.5
# A job that finds no room in the memory budget is requeued with this delay; another process may run it.
NO_ROOM_DELAY_S = 1.0
NO_ROOM = "no memory for its body"


def run_attempt(limiter: Limiter, attempt: Attempt, room: BodyReservation, *, began: float) -> None:
    try:
        attempt, why = _load(attempt, room)
        if why := why or _why_not_to_call(limiter, attempt, began=began):
            release_slot(limiter, attempt.meter, attempt.row, Report(sent=False))
            delay_s = NO_ROOM_DELAY_S if why == NO_ROOM else 0
            finish.write(attempt.requeued(AttemptResult(Outcome.NOT_SENT), why=why, delay_s=delay_s))
        else:
            _call(limiter, attempt)
    except Exception as error:
        # A border: the job must not wait until its lease expires, nor count as called when it was not.
        log.exception("a job could not be processed", extra={"dispatch_id": str(attempt.row.dispatch_id)})
        release_slot(limiter, attempt.meter, attempt.row, Report(sent=attempt.call.is_sent))
        fail_or_requeue(attempt, retry_policy.classify_internal_error(error, is_sent=attempt.call.is_sent), answer=None)


def _why_not_to_call(limiter: Limiter, attempt: Attempt, *, began: float) -> str:
    """The reason against the call; empty: it may go out. began: monotonic seconds before the claim."""
    crash_points.hit("worker.before_send")
    held_s = time.monotonic() - began
    # A process that was frozen since the claim may have lost its lease, and another one may run the job.
    if held_s > settings().lease_s / 2 and not _holds_lease(attempt.row):
        return "lease lost before the call"
    if attempt.row.late_s + held_s > LATE_S and not _charge_again(limiter, attempt.meter, attempt.row.dispatch_id):
        return "claimed too late"
    return ""


def _call(limiter: Limiter, attempt: Attempt) -> None:
    try:
        answer, verdict = _send(attempt)
    except NotSent as error:
        release_slot(limiter, attempt.meter, attempt.row, Report(sent=False))
        fail_or_requeue(attempt, retry_policy.classify_not_sent(error), answer=None)
    except Aborted:
        release_slot(limiter, attempt.meter, attempt.row, Report())
        cost_microusd = None if attempt.call.is_sent else 0
        result = JobResult(Status.CANCELLED, transcript=attempt.publisher.transcript)
        finish.write(attempt.ended(AttemptResult(Outcome.CANCELLED, cost_microusd=cost_microusd), result))
    except Lost as error:
        release_slot(limiter, attempt.meter, attempt.row, Report(pushed_back=True))
        fail_or_requeue(attempt, retry_policy.classify_lost(error), answer=None)
    else:
        _finish_answered(limiter, attempt, answer, verdict)


def _finish_answered(limiter: Limiter, attempt: Attempt, answer: Answer, verdict: Verdict) -> None:
    """Releases the slot with what the answer says about limits, then writes the end of the attempt."""
    crash_points.hit("worker.after_answer")
    counters.answered(attempt.row, answer.status)
    learned = release_slot(limiter, attempt.meter, attempt.row, _report(attempt.row, answer, verdict))
    verdict = feedback.store_feedback(attempt.row, learned, verdict)
    if verdict.next == NextStep.SUCCEED:
        finding = AttemptResult(verdict.outcome, answer.status, request_id_of(answer))
        transcript = attempt.publisher.transcript
        result = JobResult(Status.SUCCEEDED, http_status=answer.status, response=answer.body, transcript=transcript)
        attempt.log.record_usage(finish.write(attempt.ended(finding, result)))
    else:
        fail_or_requeue(attempt, verdict, answer=answer, learned=learned)


def _charge_again(limiter: Limiter, meter: CredentialModel, dispatch_id: UUID) -> bool:
    try:
        grant = limiter.charge_again(meter, str(dispatch_id), lease_ms=int(settings().lease_s * 1000))
        return grant.admitted == 1
    except LimiterUnavailable:
        return False


def release_slot(limiter: Limiter, meter: CredentialModel, row: Any, report: Report) -> Learned | None:
    """Releases the slot and passes the report to the limiter; returns what it learned."""
    try:
        return limiter.release(meter, str(row.dispatch_id), report, message=notify.budget_freed(row.lane_id))
    except LimiterUnavailable:
        # A pause that the upstream asked for is stored in Postgres, for the state that will be rebuilt.
        return feedback.unreported_pause(report)


def _load(attempt: Attempt, room: BodyReservation) -> tuple[Attempt, str]:
    """The attempt with its request's body, and why it could not be loaded; empty: it was."""
    try:
        row, content = outgoing.load(attempt.row, room, is_over=lambda: attempt.call.is_aborted)
    except Unavailable:
        return attempt, "its request could not be read"
    except outgoing.NoMemory:
        return attempt, NO_ROOM
    return replace(attempt, row=row, content=content), ""


def _send(attempt: Attempt) -> tuple[Answer, Verdict]:
    outgoing_request = request.build(attempt.row, attempt.content)
    if attempt.row.streamed:
        return stream.call_streamed(attempt.row, outgoing_request, call=attempt.call, publisher=attempt.publisher)
    answer = event_answer.with_json_body(send(outgoing_request, call=attempt.call), attempt.row)
    return answer, retry_policy.classify(answer)


def _report(row: Any, answer: Answer, verdict: Verdict) -> Report:
    """What the limiter needs to know of this answer."""
    is_good = verdict.next == NextStep.SUCCEED
    limits = rate_limit_headers.parse_headers(answer.headers)
    return Report(
        good=is_good,
        cooldown_ms=verdict.pause_ms,
        pushed_back=verdict.pushed_back,
        throttled=verdict.throttled,
        exceeds=verdict.exceeds,
        is_repeat=row.throttles > 0,
        jitter=random.random(),
        **vars(limits if is_good else limits.resets_only() if verdict.throttled else rate_limit_headers.NO_RATE_LIMITS),
    )


def _holds_lease(row: Any) -> bool:
    try:
        with db.begin() as session:
            return bool(claims.renew_leases(session, {row.dispatch_id: row.id}, lease_s=settings().lease_s))
    except Unavailable:
        return False
