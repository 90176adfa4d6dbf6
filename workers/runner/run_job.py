"""One doorbell, one job: claim, call, finish. Whatever happens in between, the row says what is known."""

from __future__ import annotations

import logging
import random
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from uuid import UUID

from models.billing import pricing
from models.config.settings import settings
from models.content.endpoints import PAID
from models.database import db
from models.jobs import claims, states
from models.jobs.states import AttemptResult, JobResult, Outcome, Status
from models.platform import crash_points, wire
from models.platform.errors import LineUnavailable, Unavailable
from models.sessions import stored_completions
from models.telemetry import logs
from workers.answers import event_answer, rate_limit_headers, retry_policy
from workers.answers.retry_policy import NextStep, Verdict
from workers.channels import notify
from workers.limiter.limiter import CredentialModel, Learned, Limiter, Report
from workers.observe import counters
from workers.observe.attempt_log import AttemptLog
from workers.runner import feedback, finish, outgoing, stream
from workers.runner.finish import AttemptRecord
from workers.runner.leases import Leases, RunningJob
from workers.runner.stream_publisher import StreamPublisher
from workers.upstream import answer_body, body_budget, request
from workers.upstream.body_budget import FREE_BYTES, BodyReservation
from workers.upstream.call import CallControl
from workers.upstream.client import Aborted, Answer, Body, Lost, NotSent, send

log = logging.getLogger(__name__)

# A claim later than this after its admission pays again: calls let go evenly must not arrive in a heap. The limiter's
# windows are longer by just this (LATE in limiter.lua), so calls that are no later keep every window of the upstream's whole.
LATE_S = 0.5
# A job that found no room in the memory budget waits so long before it is admitted again, perhaps for another process.
NO_ROOM_DELAY_S = 1.0
NO_ROOM = "no memory for its body"


@dataclass(frozen=True)
class Attempt:
    """A claimed job in the hands of one thread. content: what goes out, once it was loaded."""

    row: Any
    meter: CredentialModel
    call: CallControl
    relay: StreamPublisher
    telling: AttemptLog
    began: float
    content: bytes | Body = b""

    @property
    def left_s(self) -> float:
        """Seconds of timeout_s that no attempt has used yet."""
        return float(self.row.timeout_s - self.row.ran_s - (time.monotonic() - self.began))

    def done(self, finding: AttemptResult, result: JobResult) -> AttemptRecord:
        """It ends so."""
        row = self.row
        self.telling.found(finding)
        asked = partial(request.asked_tokens, row, self.content) if row.endpoint in PAID else None
        store_as = stored_completions.metadata_to_store(row.endpoint, bytes(row.request)) if result.status == Status.SUCCEEDED else None
        return AttemptRecord(
            row.id, row.dispatch_id, row.key_id, row.lane_id, row.model, finding, result, is_turn=row.conversation_id is not None,
            asked_tokens=asked, store_as=store_as,
        )  # fmt: skip

    def back(self, finding: AttemptResult, *, delay_s: float = 0, counts: bool = False, why: str = "", **more: Any) -> AttemptRecord:
        """The job is requeued. more: throttled and refusal, as of Ending."""
        row = self.row
        self.telling.found(finding, why=why)
        return AttemptRecord(row.id, row.dispatch_id, row.key_id, row.lane_id, row.model, finding, None, delay_s, counts, why, **more)


class JobRunner:
    """What the Celery task runs, with the process's limiter and leases."""

    def __init__(self, limiter: Limiter, leases: Leases) -> None:
        self._limiter = limiter
        self._leases = leases
        pricing.load()  # not while the first job waits to be stored

    def run(self, job_id: UUID, dispatch_id: UUID) -> None:
        """The job has run, or is provably somebody else's business. Safe to call any number of times for one doorbell."""
        with logs.bound(job=wire.public_id(job_id)):
            self._run_once(job_id, dispatch_id)

    def _run_once(self, job_id: UUID, dispatch_id: UUID) -> None:
        began = time.monotonic()
        crash_points.at("worker.before_claim")
        with body_budget.budget().room() as room:
            if self._has_room(job_id, dispatch_id, room):
                self._run_claimed(job_id, dispatch_id, room, began=began)

    def _has_room(self, job_id: UUID, dispatch_id: UUID, room: BodyReservation) -> bool:
        """Waits for memory before the job is claimed, so that its running time does not pass. False: it is back in its line."""
        if not room.is_short():
            return True
        try:
            with db.autocommit() as session:
                row = claims.find_claimable(session, job_id, dispatch_id)
        except Unavailable:
            return True  # as the claim will find out
        if row is None or not (wanted := _body_bytes(row)):
            return True
        if room.may_wait(settings().worker_threads // 2) and room.reserve(wanted):
            return True
        self._release(CredentialModel(row.credential_id, row.model), row, Report(sent=False))
        finish.put_back(row, why=NO_ROOM, delay_s=NO_ROOM_DELAY_S)
        return False

    def _run_claimed(self, job_id: UUID, dispatch_id: UUID, room: BodyReservation, *, began: float) -> None:
        try:
            with db.autocommit() as session:
                row = claims.claim(session, job_id, dispatch_id, lease_s=settings().lease_s, max_bytes=FREE_BYTES)
        except Unavailable:
            log.warning("claim failed: Postgres is away; the job goes back to the line by itself")
            return
        if row is None:
            self._give_back(job_id, dispatch_id)
            return
        crash_points.at("worker.after_claim")
        telling = AttemptLog(row)
        counters.claimed(row)
        if row.due:
            notify.deliveries_due(row.due)
        claimed = time.monotonic()
        call = CallControl(deadline=claimed + max(states.MIN_CALL_S, row.timeout_s - row.ran_s), room=room)
        work = Attempt(row, CredentialModel(row.credential_id, row.model), call, StreamPublisher(row), telling, claimed)
        self._leases.add(dispatch_id, RunningJob(job_id=job_id, meter=work.meter, call=work.call))
        try:
            work, why = _load(work, room)
            if why := why or self._why_not(work, began=began):
                self._release(work.meter, row, Report(sent=False))
                finish.write(work.back(AttemptResult(Outcome.NOT_SENT), why=why, delay_s=NO_ROOM_DELAY_S if why == NO_ROOM else 0))
            else:
                self._call(work)
        except Exception as error:
            # A border: the job must not wait for its lease to run out, nor count as called when it was not.
            log.exception("a job could not be processed", extra={"dispatch_id": str(dispatch_id)})
            self._release(work.meter, row, Report(sent=work.call.is_sent))
            _fail_or_again(work, retry_policy.classify_internal_error(error, is_sent=work.call.is_sent), answer=None)
        finally:
            self._leases.drop(dispatch_id)
            work.relay.end()
            telling.end()
            counters.served(row, seconds=time.monotonic() - began)

    def _why_not(self, work: Attempt, *, began: float) -> str:
        """Why the call must not go out after all; empty: it may. began: before the claim, in monotonic seconds."""
        crash_points.at("worker.before_send")
        held_s = time.monotonic() - began
        # Frozen since the claim? Then the lease may have run out, and the job may be another's already.
        if held_s > settings().lease_s / 2 and not _is_ours(work.row):
            return "lease lost before the call"
        if work.row.late_s + held_s > LATE_S and not self._pays_again(work.meter, work.row.dispatch_id):
            return "claimed too late"
        return ""

    def _call(self, work: Attempt) -> None:
        try:
            answer, verdict = _send(work)
        except NotSent as error:
            self._release(work.meter, work.row, Report(sent=False))
            _fail_or_again(work, retry_policy.classify_not_sent(error), answer=None)
        except Aborted:
            self._release(work.meter, work.row, Report())
            cost = None if work.call.is_sent else 0
            result = JobResult(Status.CANCELLED, transcript=work.relay.transcript)
            finish.write(work.done(AttemptResult(Outcome.CANCELLED, cost_microusd=cost), result))
        except Lost as error:
            self._release(work.meter, work.row, Report(pushed_back=True))
            _fail_or_again(work, retry_policy.classify_lost(error), answer=None)
        else:
            self._take(work, answer, verdict)

    def _take(self, work: Attempt, answer: Answer, verdict: Verdict) -> None:
        """An answer came: first the limiter learns from it and the slot is free, then the row is written."""
        crash_points.at("worker.after_answer")
        counters.answered(work.row, answer.status)
        is_good = verdict.next == NextStep.SUCCEED
        told = rate_limit_headers.parse_headers(answer.headers)
        report = Report(
            good=is_good,
            cooldown_ms=verdict.pause_ms,
            pushed_back=verdict.pushed_back,
            throttled=verdict.throttled,
            exceeds=verdict.exceeds,
            is_repeat=work.row.throttles > 0,
            jitter=random.random(),
            **vars(told if is_good else told.of_refusal() if verdict.throttled else rate_limit_headers.NO_RATE_LIMITS),
        )
        learned = self._release(work.meter, work.row, report)
        verdict = feedback.store_feedback(work.row, learned, verdict)
        if verdict.next == NextStep.SUCCEED:
            finding = AttemptResult(verdict.outcome, answer.status, _request_id(answer))
            result = JobResult(Status.SUCCEEDED, http_status=answer.status, response=answer.body, transcript=work.relay.transcript)
            work.telling.used(finish.write(work.done(finding, result)))
        else:
            _fail_or_again(work, verdict, answer=answer, learned=learned)

    def _pays_again(self, bound: CredentialModel, dispatch_id: UUID) -> bool:
        try:
            return self._limiter.charge_again(bound, str(dispatch_id), lease_ms=_lease_ms()).admitted == 1
        except LineUnavailable:
            return False

    def _release(self, bound: CredentialModel, row: Any, report: Report) -> Learned | None:
        """The slot is free and the limiter has the report; what it learned, None when it cannot be reached."""
        try:
            return self._limiter.release(bound, str(row.dispatch_id), report, tell=notify.budget_freed(row.lane_id))
        except LineUnavailable:
            # A pause that the upstream asked for is stored at least, for the state that will be rebuilt.
            return feedback.unreported_pause(report)

    def _give_back(self, job_id: UUID, dispatch_id: UUID) -> None:
        """A doorbell for a job that ended meanwhile without this call: what was reserved for it is free again."""
        try:
            with db.begin() as session:
                ghost = claims.ended_unclaimed(session, job_id, dispatch_id)
        except Unavailable:
            return  # the slot frees itself when its lease runs out
        if ghost is not None:
            self._release(CredentialModel(ghost.credential_id, ghost.model), ghost, Report(sent=False))


def _load(work: Attempt, room: BodyReservation) -> tuple[Attempt, str]:
    """With all that goes out: a turn of a conversation remembers those before it. And why it could not be loaded; empty: it was."""
    try:
        row, content = outgoing.load(work.row, room, is_over=lambda: work.call.is_aborted)
    except Unavailable:
        return work, "what it asks could not be read"
    except outgoing.NoMemory:
        return work, NO_ROOM
    return replace(work, row=row, content=content), ""


def _body_bytes(row: Any) -> int:
    """About how much a job that was not claimed yet will load, as far as it counts. row: as of job.claimable."""
    size = row.request_bytes + (settings().max_body_bytes if row.remembers else 0)
    return size if size > FREE_BYTES else 0


def _send(work: Attempt) -> tuple[Answer, Verdict]:
    asked = request.build(work.row, work.content)
    if work.row.streamed:
        return stream.call_streamed(work.row, asked, call=work.call, relay=work.relay)
    answer = event_answer.with_json_body(send(asked, call=work.call), work.row)
    return answer, retry_policy.classify(answer)


def _fail_or_again(work: Attempt, verdict: Verdict, *, answer: Answer | None, learned: Learned | None = None) -> None:
    """Fails the job, or requeues it. Never again when somebody may have read a part of its stream, or its running time is used up."""
    # What a reader has had of an answer may have been paid for, however it ended.
    outcome = Outcome.UNKNOWN if work.relay.has_begun else verdict.outcome
    finding = AttemptResult(outcome, answer.status if answer else None, _request_id(answer) if answer else None)
    counts = verdict.next in (NextStep.AGAIN, NextStep.UNKNOWN, NextStep.UNREADABLE)
    is_last = counts and (work.row.failures + 1 >= work.row.max_attempts or work.left_s < states.MIN_CALL_S)
    is_refused = verdict.throttled and work.row.throttles + 1 >= settings().max_throttles
    is_over = work.relay.has_begun or is_last or is_refused or _is_final(verdict, work.row)
    if verdict.next == NextStep.FAIL or is_over:
        is_unreadable = verdict.next == NextStep.UNREADABLE
        said = answer if answer and not verdict.is_of_another else None
        kept, kept_type = answer_body.body_to_store(said.body, said.headers, is_unreadable=is_unreadable) if said else (None, None)
        failed = JobResult(
            Status.FAILED,
            http_status=verdict.status or (answer.status if answer else None),
            response=kept,
            response_type=kept_type,
            error=verdict.error,
            transcript=work.relay.transcript if work.relay.has_begun else None,
        )
        finish.write(work.done(finding, failed))
    elif verdict.throttled:
        finish.write(work.back(finding, delay_s=_throttle_delay_s(work, verdict, learned), throttled=True))
    elif verdict.next == NextStep.WAIT:
        # A credential that serves nobody has not refused this job: mended meanwhile, it may serve it.
        finish.write(work.back(finding, refusal=None if verdict.park else feedback.refusal_of(work.row, verdict)))
    else:
        finish.write(work.back(finding, delay_s=retry_policy.retry_delay_s(work.row.failures), counts=True))


def _throttle_delay_s(work: Attempt, verdict: Verdict, learned: Learned | None) -> float:
    """How long the job waits by itself after a refusal for load, and never shorter than the upstream asks.

    After its first refusal the pause of its key is enough, where it caused one.
    """
    refusals = work.row.throttles + 1
    if refusals == 1 and learned is not None and learned.cooldown_until_us:
        return 0.0
    return max((verdict.pause_ms or 0) / 1000, retry_policy.throttle_delay_s(refusals))


def _is_final(verdict: Verdict, row: Any) -> bool:
    """Whether the job does not want to be called again after this."""
    policy = {NextStep.UNKNOWN: row.on_lost, NextStep.UNREADABLE: row.on_unreadable}.get(verdict.next)
    return policy == "fail"


def _is_ours(row: Any) -> bool:
    try:
        with db.begin() as session:
            return bool(claims.renew_leases(session, {row.dispatch_id: row.id}, lease_s=settings().lease_s))
    except Unavailable:
        return False


def _request_id(answer: Answer) -> str | None:
    said = answer.headers.get("x-request-id", "")
    return said[:200] if said.isprintable() and said else None


def _lease_ms() -> int:
    return int(settings().lease_s * 1000)
