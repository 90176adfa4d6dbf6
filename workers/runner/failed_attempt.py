"""Fails or requeues the job of an attempt that did not succeed, by its verdict and the job's own limits."""

from __future__ import annotations

from models.config.settings import settings
from models.jobs.states import MIN_CALL_S, AttemptResult, JobResult, Outcome, Status
from workers.answers import retry_policy
from workers.answers.retry_policy import NextStep, Verdict
from workers.limiter.requests import Learned
from workers.results import finish
from workers.runner import feedback
from workers.runner.attempt import Attempt
from workers.upstream import answer_body
from workers.upstream.exchange import Answer


def fail_or_requeue(attempt: Attempt, verdict: Verdict, *, answer: Answer | None, learned: Learned | None = None) -> None:
    """Writes the attempt's end. A job whose stream may have been read, or whose running time is used up, is never requeued."""
    # A partly read answer may have been paid for, however it ended.
    outcome = Outcome.UNKNOWN if attempt.publisher.has_published else verdict.outcome
    finding = AttemptResult(outcome, answer.status if answer else None, request_id_of(answer) if answer else None)
    if verdict.next == NextStep.FAIL or _is_last(attempt, verdict):
        finish.write(attempt.ended(finding, _failure(attempt, verdict, answer)))
    elif verdict.throttled:
        finish.write(attempt.requeued(finding, delay_s=_throttle_delay_s(attempt, verdict, learned), throttled=True))
    elif verdict.next == NextStep.WAIT:
        # A parked credential has not refused this job: once repaired, it may serve it.
        finish.write(attempt.requeued(finding, refusal=None if verdict.park else feedback.refusal_of(attempt.row, verdict)))
    else:
        finish.write(attempt.requeued(finding, delay_s=retry_policy.retry_delay_s(attempt.row.failures), counts=True))


def request_id_of(answer: Answer) -> str | None:
    """The upstream's X-Request-Id, at most 200 characters; None where it is missing or not printable."""
    request_id = answer.headers.get("x-request-id", "")
    return request_id[:200] if request_id.isprintable() and request_id else None


def _is_last(attempt: Attempt, verdict: Verdict) -> bool:
    """Whether the job may not be called again, whatever the verdict allows."""
    row = attempt.row
    counts = verdict.next in (NextStep.AGAIN, NextStep.UNKNOWN, NextStep.UNREADABLE)
    is_used_up = counts and (row.failures + 1 >= row.max_attempts or attempt.left_s < MIN_CALL_S)
    is_throttled_out = verdict.throttled and row.throttles + 1 >= settings().max_throttles
    policy = {NextStep.UNKNOWN: row.on_lost, NextStep.UNREADABLE: row.on_unreadable}.get(verdict.next)
    return attempt.publisher.has_published or is_used_up or is_throttled_out or policy == "fail"


def _failure(attempt: Attempt, verdict: Verdict, answer: Answer | None) -> JobResult:
    own = answer if answer and not verdict.is_of_another else None
    is_unreadable = verdict.next == NextStep.UNREADABLE
    body, media_type = answer_body.body_to_store(own.body, own.headers, is_unreadable=is_unreadable) if own else (None, None)
    return JobResult(
        Status.FAILED,
        http_status=verdict.status or (answer.status if answer else None),
        response=body,
        response_type=media_type,
        error=verdict.error,
        transcript=attempt.publisher.transcript if attempt.publisher.has_published else None,
    )


def _throttle_delay_s(attempt: Attempt, verdict: Verdict, learned: Learned | None) -> float:
    """The job's own delay after a refusal for load, never shorter than the upstream asks.

    After its first refusal the pause of its credential is enough, where it caused one.
    """
    refusals = attempt.row.throttles + 1
    if refusals == 1 and learned is not None and learned.cooldown_until_us:
        return 0.0
    return max((verdict.pause_ms or 0) / 1000, retry_policy.throttle_delay_s(refusals))
