"""The retry policy: classifies the answer of an attempt into a Verdict on the job and its credential. Pure functions."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from enum import StrEnum

from models.config.settings import settings
from models.jobs.states import Outcome
from workers.answers import blame, rate_limit_headers, upstream_error
from workers.answers.blame import NO_MONEY_CODES, Fault
from workers.answers.upstream_error import ErrorObject
from workers.upstream.exchange import Answer, Lost, NotSent, TimedOut, TooLarge

UNREADABLE = (
    "The upstream's answer is not the JSON that was asked for; the call may have been paid for and is not made again "
    "(on_unreadable is `fail`, or max_attempts is reached). What it sent is kept: GET /v1/jobs/{id}/raw."
)
WRONG_KEY = "the upstream does not accept this key"
NO_MONEY = "the upstream account has no money left"
_PARKS = {Fault.KEY: WRONG_KEY, Fault.MONEY: NO_MONEY}
RETRYABLE = frozenset({408, 409, 425, 500, 502, 503, 504, 520, 522, 524, 529})


class NextStep(StrEnum):
    """The next state of the job."""

    SUCCEED = "succeed"
    FAIL = "fail"
    AGAIN = "again"  #: requeued with a delay; the attempt counts as failed
    WAIT = "wait"  #: requeued; the attempt does not count
    UNKNOWN = "unknown"  #: the job's on_lost decides
    UNREADABLE = "unreadable"  #: the job's on_unreadable decides


@dataclass(frozen=True)
class Verdict:
    """The consequences for the job (next, outcome, error) and for the credential.

    throttled: refused for load; the credential and model pause for pause_ms (None: the upstream gives no time).
    pushed_back: reduce the calls in flight. park: the reason why the credential serves no requests.
    unserved: the reason why it cannot serve this endpoint and model. exceeds: larger than this credential's limit; another's may be higher.
    status: of a refusal, or of an error in an answer with status 200; None: the answer's own.
    is_of_another: `error` and `status` come from another credential's refusal, which is more useful to the caller than the last one.
    """

    next: NextStep
    outcome: Outcome
    error: ErrorObject | None = None
    pause_ms: int | None = None
    park: str | None = None
    unserved: str | None = None
    pushed_back: bool = False
    throttled: bool = False
    status: int | None = None
    is_of_another: bool = False
    exceeds: bool = False


def classify(answer: Answer) -> Verdict:
    """Classifies an answer by its status, and by its body only where OpenAI's contract says so."""
    if 200 <= answer.status < 300:
        return _classify_body(answer)
    error = upstream_error.error_of(answer.status, answer.headers, answer.body)
    if answer.status == 429:
        return _classify_429(answer, error)
    if answer.status == 503 and (pause := rate_limit_headers.pause_ms(answer.headers)):
        return Verdict(NextStep.WAIT, Outcome.THROTTLED, error=error, pause_ms=pause, pushed_back=True, throttled=True)
    if answer.status in RETRYABLE or answer.status >= 500:
        return Verdict(NextStep.AGAIN, Outcome.FAILED, error=error, pushed_back=answer.status == 503)
    return _classify_refusal(answer.status, error)


def classify_error_event(answer: Answer) -> Verdict:
    """Classifies an error in an answer with status 200, or in a stream. answer: its body is the error, or the event that holds it.

    The upstream accepted the key, so the key is not at fault.
    """
    status = upstream_error.status_of(answer.json or {}, money=NO_MONEY_CODES)
    return replace(classify(replace(answer, status=status)), status=status)


def classify_unreadable() -> Verdict:
    """The verdict on an answer without a JSON object: it may be a proxy's page, or a paid answer that cannot be parsed."""
    return Verdict(NextStep.UNREADABLE, Outcome.UNKNOWN, error=own_error(UNREADABLE, "upstream_invalid_response"))


def classify_internal_error(error: Exception, *, is_sent: bool) -> Verdict:
    """The verdict on a failure of this server, with which the upstream's answer is lost."""
    message = f"This server could not process the job ({type(error).__name__}). Ask the operator."
    next_step, outcome = (NextStep.UNKNOWN, Outcome.UNKNOWN) if is_sent else (NextStep.AGAIN, Outcome.NOT_SENT)
    return Verdict(next_step, outcome, error=own_error(message, "server_error"))


def classify_not_sent(error: NotSent) -> Verdict:
    """The verdict on a call that was provably not made: another attempt costs nothing."""
    message = f"The upstream cannot be reached: {error}. The job was never sent. Try again, or ask the operator to check the upstream."
    return Verdict(NextStep.AGAIN, Outcome.NOT_SENT, error=own_error(message, "upstream_unreachable"))


def classify_lost(error: Lost) -> Verdict:
    """The verdict on a sent call without a whole answer: on_lost decides. One that is too large would be so again, and be charged again."""
    if isinstance(error, TooLarge):
        message = "The upstream's answer is larger than this server keeps. Ask for less, or have NOWSERVING_MAX_ANSWER_BYTES raised."
        return Verdict(NextStep.FAIL, Outcome.UNKNOWN, error=own_error(message, "upstream_answer_too_large"))
    message = f"The call went out and no whole answer came back ({error}); it may have been paid for. POST …/retry calls again."
    code = "upstream_timeout" if isinstance(error, TimedOut) else "upstream_outcome_unknown"
    return Verdict(NextStep.UNKNOWN, Outcome.UNKNOWN, error=own_error(message, code))


def retry_delay_s(failures: int, *, rng: random.Random | None = None) -> float:
    """The delay after the n-th failed attempt: exponential from retry_base_s to retry_most_s, plus up to half of it as jitter."""
    delay_s = min(settings().retry_most_s, settings().retry_base_s * 2 ** min(failures, 16))
    return float(delay_s * (1 + (rng or random).random() / 2))


def throttle_delay_s(refusals: int, *, rng: random.Random | None = None) -> float:
    """The job's own delay after its n-th refusal for load: exponential from twice pause_s to pause_most_s, plus jitter."""
    delay_s = min(settings().pause_most_s, settings().pause_s * 2 ** min(refusals, 16))
    return float(delay_s * (1 + (rng or random).random() / 2))


def _classify_body(answer: Answer) -> Verdict:
    if answer.json is None:
        return classify_unreadable()
    if upstream_error.is_error(answer.json):
        return classify_error_event(answer)
    return Verdict(NextStep.SUCCEED, Outcome.SUCCEEDED)


def _classify_429(answer: Answer, error: ErrorObject) -> Verdict:
    if blame.fault_of(429, error) == Fault.MONEY:
        return _classify_refusal(429, error)
    if "request too large" in str(error.get("message", "")).lower():
        return Verdict(NextStep.FAIL, Outcome.REFUSED, error=error, status=429, exceeds=True)
    pause = rate_limit_headers.pause_ms(answer.headers)
    return Verdict(NextStep.WAIT, Outcome.THROTTLED, error=error, pause_ms=pause, pushed_back=True, throttled=True)


def _classify_refusal(status: int, error: ErrorObject) -> Verdict:
    """The verdict on a refusal that waiting does not end; another credential may still serve the job."""
    fault = blame.fault_of(status, error)
    unserved = f"{status}: {str(error.get('message'))[:200]}" if fault == Fault.MODEL else None
    return Verdict(NextStep.FAIL, Outcome.REFUSED, error=error, park=_PARKS.get(fault), unserved=unserved, status=status)


def own_error(message: str, code: str) -> ErrorObject:
    """An error of this server with the wire contract's four fields."""
    return {"message": message, "type": "server_error", "param": None, "code": code}
