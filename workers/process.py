"""One doorbell, one job: claim, call, finish. Whatever happens in between, the row says what is known."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from models import crash, db, job, meter, parking, secret
from models.errors import LineUnavailable, Unavailable
from models.job import Finding, Outcome, Result, Status
from models.settings import settings
from workers import ending, headers, retry, wake
from workers.ending import Ending
from workers.leases import Held, Leases
from workers.limiter import Learned, Limiter, Meter, Report
from workers.openai_client import Aborted, Answer, Call, Lost, NotSent, post
from workers.retry import Next, Verdict

log = logging.getLogger(__name__)

# A claim later than this after its admission pays again: calls let go evenly must not arrive in a heap. The limiter's
# windows are longer by just this (LATE in limiter.lua), so calls that are no later keep every window of the upstream's whole.
LATE_S = 0.5


class Processor:
    """What the Celery task runs, with the process's limiter and leases."""

    def __init__(self, limiter: Limiter, leases: Leases) -> None:
        self._limiter = limiter
        self._leases = leases

    def serve(self, job_id: UUID, dispatch_id: UUID) -> None:
        """The job has run, or is provably somebody else's business. Safe to call any number of times for one doorbell."""
        began = time.monotonic()
        crash.at("worker.before_claim")
        try:
            with db.begin() as session:
                row = job.claim(session, job_id, dispatch_id, lease_s=settings().lease_s)
        except Unavailable:
            log.warning("claim failed: Postgres is away; the job goes back to the line by itself", extra={"job_id": str(job_id)})
            return
        if row is None:
            self._give_back(job_id, dispatch_id)
            return
        crash.at("worker.after_claim")
        bound = Meter(row.credential_id, row.model)
        call = Call(deadline=time.monotonic() + row.timeout_s)
        self._leases.add(dispatch_id, Held(job_id=job_id, meter=bound, call=call))
        try:
            if why := self._why_not(row, bound, began=began):
                self._release(bound, row, Report(sent=False))
                ending.write(_back(row, Finding(Outcome.NOT_SENT), why=why))
            else:
                self._run(row, bound, call)
        except Exception as error:
            # A border: the job must not wait for its lease to run out, nor count as called when it was not.
            log.exception("a job could not be processed", extra={"job_id": str(job_id), "dispatch_id": str(dispatch_id)})
            self._release(bound, row, Report(sent=call.is_sent))
            self._fail_or_again(row, retry.broken(error, is_sent=call.is_sent), answer=None)
        finally:
            self._leases.drop(dispatch_id)

    def _why_not(self, row: Any, bound: Meter, *, began: float) -> str:
        """Why the call must not go out after all; empty: it may. began: before the claim, in monotonic seconds."""
        crash.at("worker.before_send")
        held_s = time.monotonic() - began
        # Frozen since the claim? Then the lease may have run out, and the job may be another's already.
        if held_s > settings().lease_s / 2 and not self._is_ours(row):
            return "lease lost before the call"
        if row.late_s + held_s > LATE_S and not self._pays_again(bound, row.dispatch_id):
            return "claimed too late"
        return ""

    def _run(self, row: Any, bound: Meter, call: Call) -> None:
        try:
            answer = self._post(row, call)
        except NotSent as error:
            self._release(bound, row, Report(sent=False))
            self._fail_or_again(row, retry.unsent(error), answer=None)
        except Aborted:
            self._release(bound, row, Report())
            ending.write(_done(row, Finding(Outcome.CANCELLED), Result(Status.CANCELLED)))
        except Lost as error:
            self._release(bound, row, Report(pushed_back=True))
            self._fail_or_again(row, retry.lost(error), answer=None)
        else:
            self._take(row, bound, answer)

    def _post(self, row: Any, call: Call) -> Answer:
        key = secret.unseal(row.secret, bound_to=f"credential:{row.credential_id}").decode()
        base_url = (row.base_url or settings().openai_base_url).rstrip("/")
        return post(
            base_url + row.endpoint.removeprefix("/v1"),
            key=key,
            content=bytes(row.request),
            headers={"X-Client-Request-Id": str(row.dispatch_id)},
            call=call,
        )

    def _take(self, row: Any, bound: Meter, answer: Answer) -> None:
        """An answer came: first the limiter learns from it and the slot is free, then the row is written."""
        crash.at("worker.after_answer")
        verdict = retry.judge(answer)
        told = headers.read(answer.headers)
        report = Report(
            good=verdict.next == Next.SUCCEED,
            cooldown_ms=verdict.pause_ms,
            pushed_back=verdict.pushed_back,
            **vars(told),
        )
        learned = self._release(bound, row, report)
        verdict = self._remember(row, bound, learned, verdict)
        if verdict.next == Next.SUCCEED:
            finding = Finding(verdict.outcome, answer.status, _request_id(answer))
            ending.write(_done(row, finding, Result(Status.SUCCEEDED, http_status=answer.status, response=answer.body)))
        else:
            self._fail_or_again(row, verdict, answer=answer)

    def _fail_or_again(self, row: Any, verdict: Verdict, *, answer: Answer | None) -> None:
        finding = Finding(verdict.outcome, answer.status if answer else None, _request_id(answer) if answer else None)
        counts = verdict.next in (Next.AGAIN, Next.UNKNOWN)
        is_last = counts and row.failures + 1 >= row.max_attempts
        refused = verdict.next == Next.FAIL or is_last or (verdict.next == Next.UNKNOWN and row.on_lost == "fail")
        if refused:
            failed = Result(
                Status.FAILED,
                http_status=answer.status if answer else None,
                response=answer.body if answer and retry.is_object(answer.body) else None,
                error=verdict.error,
            )
            ending.write(_done(row, finding, failed))
        else:
            delay_s = retry.delay_s(row.failures) if counts else 0.0
            ending.write(_back(row, finding, delay_s=delay_s, counts=counts))

    def _is_ours(self, row: Any) -> bool:
        try:
            with db.begin() as session:
                return bool(job.beat(session, {row.dispatch_id: row.id}, lease_s=settings().lease_s))
        except Unavailable:
            return False

    def _pays_again(self, bound: Meter, dispatch_id: UUID) -> bool:
        try:
            return self._limiter.charge_again(bound, str(dispatch_id), lease_ms=_lease_ms()).admitted == 1
        except LineUnavailable:
            return False

    def _release(self, bound: Meter, row: Any, report: Report) -> Learned | None:
        """The slot is free and the limiter has the report; what it learned, None when it cannot be reached."""
        try:
            learned = self._limiter.release(bound, str(row.dispatch_id), report)
        except LineUnavailable:
            # A pause that the upstream asked for is stored at least, for the state that will be rebuilt.
            return _untold(report)
        wake.line(row.lane_id)
        return learned

    def _remember(self, row: Any, bound: Meter, learned: Learned | None, verdict: Verdict) -> Verdict:
        """What the answer says of the credential is stored; returns the verdict on the job, which may depend on that."""
        is_news = learned is not None and learned.changed
        if not (verdict.park or is_news or row.is_probe):
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

    def _give_back(self, job_id: UUID, dispatch_id: UUID) -> None:
        """A doorbell for a job that ended meanwhile without this call: what was reserved for it is free again."""
        try:
            with db.begin() as session:
                ghost = job.ghost(session, job_id, dispatch_id)
        except Unavailable:
            return  # the slot frees itself when its lease runs out
        if ghost is not None:
            self._release(Meter(ghost.credential_id, ghost.model), ghost, Report(sent=False))


def _done(row: Any, finding: Finding, result: Result) -> Ending:
    return Ending(row.id, row.dispatch_id, row.key_id, row.lane_id, row.model, finding, result)


def _back(row: Any, finding: Finding, *, delay_s: float = 0, counts: bool = False, why: str = "") -> Ending:
    return Ending(row.id, row.dispatch_id, row.key_id, row.lane_id, row.model, finding, None, delay_s, counts, why)


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


def _untold(report: Report) -> Learned | None:
    if report.cooldown_ms is None:
        return None
    until_us = time.time_ns() // 1000 + report.cooldown_ms * 1000
    return Learned(window=None, learned_rpm=None, learned_tpm=None, cooldown_until_us=until_us, changed=True)


def _request_id(answer: Answer) -> str | None:
    said = answer.headers.get("x-request-id", "")
    return said[:200] if said.isprintable() and said else None


def _lease_ms() -> int:
    return int(settings().lease_s * 1000)
