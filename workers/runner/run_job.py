"""Runs the job of one Celery message: claim, load, call, release, finish. The job's row always says how far it came."""

from __future__ import annotations

import logging
import random
import time
from dataclasses import replace
from typing import Any
from uuid import UUID

from models.billing import pricing
from models.config.settings import settings
from models.database import db
from models.jobs import claims
from models.jobs.states import MIN_CALL_S, AttemptResult, JobResult, Outcome, Status
from models.platform import crash_points, wire
from models.platform.errors import LimiterUnavailable, Unavailable
from models.telemetry import logs
from workers.answers import event_answer, rate_limit_headers, retry_policy
from workers.answers.retry_policy import NextStep, Verdict
from workers.channels import notify
from workers.limiter.limiter import CredentialModel, Learned, Limiter, Report
from workers.observe import counters
from workers.observe.attempt_log import AttemptLog
from workers.results import finish
from workers.runner import feedback, outgoing, stream
from workers.runner.attempt import Attempt
from workers.runner.failed_attempt import fail_or_requeue, request_id_of
from workers.runner.leases import Leases, RunningJob
from workers.runner.stream_publisher import StreamPublisher
from workers.upstream import body_budget, request
from workers.upstream.body_budget import FREE_BYTES, BodyReservation
from workers.upstream.call import CallControl
from workers.upstream.client import send
from workers.upstream.exchange import Aborted, Answer, Lost, NotSent

log = logging.getLogger(__name__)

# A claim later than this after its admission is charged again, so that calls admitted evenly do not arrive in a burst. The limiter's
# windows are longer by exactly this (LATE in limiter.lua), so calls that are no later keep within every window of the upstream.
LATE_S = 0.5
# A job that finds no room in the memory budget is requeued with this delay; another process may run it.
NO_ROOM_DELAY_S = 1.0
NO_ROOM = "no memory for its body"


class JobRunner:
    """Runs jobs with the process's limiter and leases. Thread-safe."""

    def __init__(self, limiter: Limiter, leases: Leases) -> None:
        self._limiter = limiter
        self._leases = leases
        pricing.load_price_list()  # now, so that the first finished job does not wait for it

    def run(self, job_id: UUID, dispatch_id: UUID) -> None:
        """Runs the job, unless this dispatch no longer holds it. Celery may deliver the same message any number of times."""
        with logs.bound(job=wire.public_id(job_id)):
            began = time.monotonic()
            crash_points.hit("worker.before_claim")
            with body_budget.budget().room() as room:
                if self._has_room(job_id, dispatch_id, room):
                    self._claim_and_run(job_id, dispatch_id, room, began=began)

    def _has_room(self, job_id: UUID, dispatch_id: UUID, room: BodyReservation) -> bool:
        """Reserves memory before the claim, so that the wait does not use up running time. False: the job was requeued."""
        if not room.is_short():
            return True
        try:
            with db.autocommit() as session:
                row = claims.find_claimable(session, job_id, dispatch_id)
        except Unavailable:
            return True  # the claim fails in the same way
        if row is None or not (size := _body_bytes(row)):
            return True
        if room.may_wait(settings().worker_threads // 2) and room.reserve(size):
            return True
        self._release(CredentialModel(row.credential_id, row.model), row, Report(sent=False))
        finish.requeue_unclaimed(row, why=NO_ROOM, delay_s=NO_ROOM_DELAY_S)
        return False

    def _claim_and_run(self, job_id: UUID, dispatch_id: UUID, room: BodyReservation, *, began: float) -> None:
        try:
            with db.autocommit() as session:
                row = claims.claim(session, job_id, dispatch_id, lease_s=settings().lease_s, max_bytes=FREE_BYTES)
        except Unavailable:
            log.warning("claim failed: Postgres is unavailable; the reaper requeues the job")
            return
        if row is None:
            self._release_ended(job_id, dispatch_id)
            return
        crash_points.hit("worker.after_claim")
        attempt_log = AttemptLog(row)
        counters.claimed(row)
        if row.due:
            notify.deliveries_due(row.due)
        claimed = time.monotonic()
        call = CallControl(deadline=claimed + max(MIN_CALL_S, row.timeout_s - row.ran_s), room=room)
        attempt = Attempt(row, CredentialModel(row.credential_id, row.model), call, StreamPublisher(row), attempt_log, claimed)
        self._leases.add(dispatch_id, RunningJob(job_id=job_id, meter=attempt.meter, call=call))
        try:
            self._load_and_call(attempt, room, began=began)
        finally:
            self._leases.drop(dispatch_id)
            attempt.publisher.end()
            attempt_log.end()
            counters.served(row, seconds=time.monotonic() - began)

    def _load_and_call(self, attempt: Attempt, room: BodyReservation, *, began: float) -> None:
        try:
            attempt, why = _load(attempt, room)
            if why := why or self._why_not_to_call(attempt, began=began):
                self._release(attempt.meter, attempt.row, Report(sent=False))
                delay_s = NO_ROOM_DELAY_S if why == NO_ROOM else 0
                finish.write(attempt.requeued(AttemptResult(Outcome.NOT_SENT), why=why, delay_s=delay_s))
            else:
                self._call(attempt)
        except Exception as error:
            # A border: the job must not wait until its lease expires, nor count as called when it was not.
            log.exception("a job could not be processed", extra={"dispatch_id": str(attempt.row.dispatch_id)})
            self._release(attempt.meter, attempt.row, Report(sent=attempt.call.is_sent))
            fail_or_requeue(attempt, retry_policy.classify_internal_error(error, is_sent=attempt.call.is_sent), answer=None)

    def _why_not_to_call(self, attempt: Attempt, *, began: float) -> str:
        """The reason against the call; empty: it may go out. began: monotonic seconds before the claim."""
        crash_points.hit("worker.before_send")
        held_s = time.monotonic() - began
        # A process that was frozen since the claim may have lost its lease, and another one may run the job.
        if held_s > settings().lease_s / 2 and not _holds_lease(attempt.row):
            return "lease lost before the call"
        if attempt.row.late_s + held_s > LATE_S and not self._charge_again(attempt.meter, attempt.row.dispatch_id):
            return "claimed too late"
        return ""

    def _call(self, attempt: Attempt) -> None:
        try:
            answer, verdict = _send(attempt)
        except NotSent as error:
            self._release(attempt.meter, attempt.row, Report(sent=False))
            fail_or_requeue(attempt, retry_policy.classify_not_sent(error), answer=None)
        except Aborted:
            self._release(attempt.meter, attempt.row, Report())
            cost_microusd = None if attempt.call.is_sent else 0
            result = JobResult(Status.CANCELLED, transcript=attempt.publisher.transcript)
            finish.write(attempt.ended(AttemptResult(Outcome.CANCELLED, cost_microusd=cost_microusd), result))
        except Lost as error:
            self._release(attempt.meter, attempt.row, Report(pushed_back=True))
            fail_or_requeue(attempt, retry_policy.classify_lost(error), answer=None)
        else:
            self._finish_answered(attempt, answer, verdict)

    def _finish_answered(self, attempt: Attempt, answer: Answer, verdict: Verdict) -> None:
        """Releases the slot with what the answer says about limits, then writes the end of the attempt."""
        crash_points.hit("worker.after_answer")
        counters.answered(attempt.row, answer.status)
        learned = self._release(attempt.meter, attempt.row, _report(attempt.row, answer, verdict))
        verdict = feedback.store_feedback(attempt.row, learned, verdict)
        if verdict.next == NextStep.SUCCEED:
            finding = AttemptResult(verdict.outcome, answer.status, request_id_of(answer))
            transcript = attempt.publisher.transcript
            result = JobResult(Status.SUCCEEDED, http_status=answer.status, response=answer.body, transcript=transcript)
            attempt.log.record_usage(finish.write(attempt.ended(finding, result)))
        else:
            fail_or_requeue(attempt, verdict, answer=answer, learned=learned)

    def _charge_again(self, meter: CredentialModel, dispatch_id: UUID) -> bool:
        try:
            grant = self._limiter.charge_again(meter, str(dispatch_id), lease_ms=int(settings().lease_s * 1000))
            return grant.admitted == 1
        except LimiterUnavailable:
            return False

    def _release(self, meter: CredentialModel, row: Any, report: Report) -> Learned | None:
        """Releases the slot and passes the report to the limiter; returns what it learned."""
        try:
            return self._limiter.release(meter, str(row.dispatch_id), report, tell=notify.budget_freed(row.lane_id))
        except LimiterUnavailable:
            # A pause that the upstream asked for is stored in Postgres, for the state that will be rebuilt.
            return feedback.unreported_pause(report)

    def _release_ended(self, job_id: UUID, dispatch_id: UUID) -> None:
        """Releases the reservation of a job that ended before it was claimed."""
        try:
            with db.begin() as session:
                row = claims.ended_unclaimed(session, job_id, dispatch_id)
        except Unavailable:
            return  # the slot's own lease expires
        if row is not None:
            self._release(CredentialModel(row.credential_id, row.model), row, Report(sent=False))


def _load(attempt: Attempt, room: BodyReservation) -> tuple[Attempt, str]:
    """The attempt with its request's body, and why it could not be loaded; empty: it was."""
    try:
        row, content = outgoing.load(attempt.row, room, is_over=lambda: attempt.call.is_aborted)
    except Unavailable:
        return attempt, "its request could not be read"
    except outgoing.NoMemory:
        return attempt, NO_ROOM
    return replace(attempt, row=row, content=content), ""


def _body_bytes(row: Any) -> int:
    """About how many bytes an unclaimed job will load; 0 where that is too few to count. row: of claims.find_claimable."""
    size = row.request_bytes + (settings().max_body_bytes if row.remembers else 0)
    return size if size > FREE_BYTES else 0


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
