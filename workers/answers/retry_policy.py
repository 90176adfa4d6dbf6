"""What becomes of a job after one attempt: a pure function of the answer, so that every case can be read and tested here."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from enum import StrEnum

from models.config.settings import settings
from models.jobs.states import Outcome
from workers.answers import blame, rate_limit_headers, upstream_error
from workers.answers.blame import MONEY, Fault
from workers.answers.upstream_error import ErrorObject
from workers.upstream.client import Answer, Lost, NotSent, TimedOut, TooLarge

UNREADABLE = (
    "The upstream's answer is not the JSON that was asked for; the call may have been paid for and is not made again "
    "(on_unreadable is `fail`, or max_attempts is reached). What it sent is kept: GET /v1/jobs/{id}/raw."
)
WRONG_KEY = "the upstream does not accept this key"
NO_MONEY = "the upstream account has no money left"
_PARKS = {Fault.KEY: WRONG_KEY, Fault.MONEY: NO_MONEY}
RETRYABLE = frozenset({408, 409, 425, 500, 502, 503, 504, 520, 522, 524, 529})


class NextStep(StrEnum):
    """Where the job goes."""

    SUCCEED = "succeed"
    FAIL = "fail"
    AGAIN = "again"  #: back in line after a delay; counts as a failed attempt
    WAIT = "wait"  #: back in line; the attempt does not count
    UNKNOWN = "unknown"  #: on_lost decides
    UNREADABLE = "unreadable"  #: on_unreadable decides


@dataclass(frozen=True)
class Verdict:
    """What an answer means for the job (next, outcome, error) and for the credential.

    throttled: refused for load; the credential and model pause for pause_ms, None: the upstream names no time. pushed_back: fewer calls
    in flight. park: why the credential serves nothing; unserved: why it cannot serve this endpoint and model. status: what a refusal,
    or an error in an answer of status 200, counts as; None: the answer's own. is_of_another: `error` and `status` are those of another
    credential's refusal, which says more than the last one. exceeds: larger than this credential's limit; another's may be higher.
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
    """What an answer means, by its status first and its body only where OpenAI's contract says so."""
    if 200 <= answer.status < 300:
        return _judge_body(answer)
    said = upstream_error.error_of(answer.status, answer.headers, answer.body)
    if answer.status == 429:
        return _judge_429(answer, said)
    if answer.status == 503 and (pause := rate_limit_headers.pause_ms(answer.headers)):
        return Verdict(NextStep.WAIT, Outcome.THROTTLED, error=said, pause_ms=pause, pushed_back=True, throttled=True)
    if answer.status in RETRYABLE or answer.status >= 500:
        return Verdict(NextStep.AGAIN, Outcome.FAILED, error=said, pushed_back=answer.status == 503)
    return _refused(answer.status, said)


def classify_error_event(answer: Answer) -> Verdict:
    """What an error in an answer of status 200 means, or in a stream; answer: its body is the error, or the event that says it.

    The key was good, so it is not to blame.
    """
    status = upstream_error.status_of(answer.json or {}, money=MONEY)
    return replace(classify(replace(answer, status=status)), status=status)


def classify_unreadable() -> Verdict:
    """Neither a JSON object nor a stream of them: perhaps a page of a proxy, perhaps a paid answer that nobody can read."""
    return Verdict(NextStep.UNREADABLE, Outcome.UNKNOWN, error=own_error(UNREADABLE, "upstream_invalid_response"))


def classify_internal_error(error: Exception, *, is_sent: bool) -> Verdict:
    """Our own failure, of whatever kind: what the upstream may have answered is lost with it."""
    said = own_error(f"This server could not process the job ({type(error).__name__}). Ask the operator.", "server_error")
    return Verdict(NextStep.UNKNOWN, Outcome.UNKNOWN, error=said) if is_sent else Verdict(NextStep.AGAIN, Outcome.NOT_SENT, error=said)


def classify_not_sent(error: NotSent) -> Verdict:
    """Provably not called: another attempt costs nothing."""
    message = f"The upstream cannot be reached: {error}. The job was never sent. Try again, or ask the operator to check the upstream."
    return Verdict(NextStep.AGAIN, Outcome.NOT_SENT, error=own_error(message, "upstream_unreachable"))


def classify_lost(error: Lost) -> Verdict:
    """Sent, and no whole answer: on_lost decides. One that is too large would be too large again, and paid for again."""
    if isinstance(error, TooLarge):
        message = "The upstream's answer is larger than this server keeps. Ask for less, or have NOWSERVING_MAX_ANSWER_BYTES raised."
        return Verdict(NextStep.FAIL, Outcome.UNKNOWN, error=own_error(message, "upstream_answer_too_large"))
    message = f"The call went out and no whole answer came back ({error}); it may have been paid for. POST …/retry calls again."
    code = "upstream_timeout" if isinstance(error, TimedOut) else "upstream_outcome_unknown"
    return Verdict(NextStep.UNKNOWN, Outcome.UNKNOWN, error=own_error(message, code))


def retry_delay_s(failures: int, *, rng: random.Random | None = None) -> float:
    """How long a job waits after its n-th failed attempt: doubling from retry_base_s up to retry_most_s, with up to half of it jitter."""
    most = min(settings().retry_most_s, settings().retry_base_s * 2 ** min(failures, 16))
    return float(most * (1 + (rng or random).random() / 2))


def throttle_delay_s(refusals: int, *, rng: random.Random | None = None) -> float:
    """How long a job waits by itself after its n-th refusal for load: doubling from twice pause_s to pause_most_s, with jitter."""
    most = min(settings().pause_most_s, settings().pause_s * 2 ** min(refusals, 16))
    return float(most * (1 + (rng or random).random() / 2))


def _judge_body(answer: Answer) -> Verdict:
    if answer.json is None:
        return classify_unreadable()
    if upstream_error.is_error(answer.json):
        return classify_error_event(answer)
    return Verdict(NextStep.SUCCEED, Outcome.SUCCEEDED)


def _judge_429(answer: Answer, said: ErrorObject) -> Verdict:
    if blame.fault_of(429, said) == Fault.MONEY:
        return _refused(429, said)
    if "request too large" in str(said.get("message", "")).lower():
        return Verdict(NextStep.FAIL, Outcome.REFUSED, error=said, status=429, exceeds=True)
    pause = rate_limit_headers.pause_ms(answer.headers)
    return Verdict(NextStep.WAIT, Outcome.THROTTLED, error=said, pause_ms=pause, pushed_back=True, throttled=True)


def _refused(status: int, said: ErrorObject) -> Verdict:
    """A refusal that waiting does not cure; another credential may serve the job all the same."""
    fault = blame.fault_of(status, said)
    unserved = f"{status}: {str(said.get('message'))[:200]}" if fault == Fault.MODEL else None
    return Verdict(NextStep.FAIL, Outcome.REFUSED, error=said, park=_PARKS.get(fault), unserved=unserved, status=status)


def own_error(message: str, code: str) -> ErrorObject:
    """An error of ours in the wire contract's four keys."""
    return {"message": message, "type": "server_error", "param": None, "code": code}
