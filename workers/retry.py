"""What becomes of a job after one attempt: a pure function of the answer, so that every case can be read and tested here."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from enum import StrEnum

from models.job import Outcome
from models.settings import settings
from workers import headers, upstream_error
from workers.openai_client import Answer, Lost, NotSent, TimedOut, TooLarge
from workers.upstream_error import ErrorObject

# 429s that no waiting cures.
MONEY = frozenset(
    {"insufficient_quota", "credit_balance_exhausted", "organization_spend_limit_exceeded", "project_spend_limit_exceeded",
     "organization_usage_limit_exceeded", "billing_hard_limit_reached"}
)  # fmt: skip
UNREADABLE = (
    "The upstream's answer is not the JSON that was asked for; the call may have been paid for and is not made again "
    "(on_unreadable is `fail`, or max_attempts is reached). What it sent is kept: GET /v1/jobs/{id}/raw."
)
WRONG_KEY = "the upstream does not accept this key (401)"
NO_MONEY = "the upstream account has no money left"
RETRYABLE = frozenset({408, 409, 425, 500, 502, 503, 504, 520, 522, 524, 529})


class Next(StrEnum):
    """Where the job goes."""

    SUCCEED = "succeed"
    FAIL = "fail"
    AGAIN = "again"  #: back in line after a delay; counts as a failed attempt
    WAIT = "wait"  #: back in line; the attempt does not count
    UNKNOWN = "unknown"  #: on_lost decides
    UNREADABLE = "unreadable"  #: on_unreadable decides


@dataclass(frozen=True)
class Verdict:
    """next: where the job goes. pause_ms: nobody calls this credential and model for so long. park: why nobody should at all.

    status: the one that an error in an answer of status 200 means; None: that of the answer.
    """

    next: Next
    outcome: Outcome
    error: ErrorObject | None = None
    pause_ms: int | None = None
    park: str | None = None
    pushed_back: bool = False
    status: int | None = None


def judge(answer: Answer) -> Verdict:
    """What an answer means, by its status first and its body only where OpenAI's contract says so."""
    if 200 <= answer.status < 300:
        return _judge_body(answer)
    said = upstream_error.read(answer.status, answer.headers, answer.body)
    if answer.status == 429:
        return _judge_429(answer, said)
    if answer.status == 401:
        return Verdict(Next.FAIL, Outcome.REFUSED, error=said, park=WRONG_KEY)
    if answer.status == 503 and (pause := headers.retry_after_ms(answer.headers)):
        return Verdict(Next.WAIT, Outcome.THROTTLED, error=said, pause_ms=pause, pushed_back=True)
    if answer.status in RETRYABLE or answer.status >= 500:
        return Verdict(Next.AGAIN, Outcome.FAILED, error=said, pushed_back=answer.status == 503)
    return Verdict(Next.FAIL, Outcome.REFUSED, error=said)


def judge_event(answer: Answer) -> Verdict:
    """What an error in an answer of status 200 means, or in a stream; answer: its body is the error, or the event that says it.

    The key was good, so it is not to blame.
    """
    status = upstream_error.status_of(answer.said or {}, money=MONEY)
    return replace(judge(replace(answer, status=status)), status=status)


def garbled() -> Verdict:
    """Neither a JSON object nor a stream of them: perhaps a page of a proxy, perhaps a paid answer that nobody can read."""
    return Verdict(Next.UNREADABLE, Outcome.UNKNOWN, error=own_error(UNREADABLE, "upstream_invalid_response"))


def broken(error: Exception, *, is_sent: bool) -> Verdict:
    """Our own failure, of whatever kind: what the upstream may have answered is lost with it."""
    said = own_error(f"This server could not process the job ({type(error).__name__}). Ask the operator.", "server_error")
    return Verdict(Next.UNKNOWN, Outcome.UNKNOWN, error=said) if is_sent else Verdict(Next.AGAIN, Outcome.NOT_SENT, error=said)


def unsent(error: NotSent) -> Verdict:
    """Provably not called: another attempt costs nothing."""
    message = f"The upstream cannot be reached ({error}); the job was never sent. Try again, or ask the operator to check OPENAI_BASE_URL."
    return Verdict(Next.AGAIN, Outcome.NOT_SENT, error=own_error(message, "upstream_unreachable"))


def lost(error: Lost) -> Verdict:
    """Sent, and no whole answer: on_lost decides. One that is too large would be too large again, and paid for again."""
    if isinstance(error, TooLarge):
        message = "The upstream's answer is larger than this server keeps. Ask for less, or have NOWSERVING_MAX_ANSWER_BYTES raised."
        return Verdict(Next.FAIL, Outcome.UNKNOWN, error=own_error(message, "upstream_answer_too_large"))
    message = f"The call went out and no whole answer came back ({error}); it may have been paid for. POST …/retry calls again."
    code = "upstream_timeout" if isinstance(error, TimedOut) else "upstream_outcome_unknown"
    return Verdict(Next.UNKNOWN, Outcome.UNKNOWN, error=own_error(message, code))


def delay_s(failures: int, *, rng: random.Random | None = None) -> float:
    """How long a job waits after its n-th failed attempt: doubling from retry_base_s up to retry_most_s, with up to half of it jitter."""
    most = min(settings().retry_most_s, settings().retry_base_s * 2 ** min(failures, 16))
    return float(most * (1 + (rng or random).random() / 2))


def _judge_body(answer: Answer) -> Verdict:
    if answer.said is None:
        return garbled()
    if upstream_error.is_error(answer.said):
        return judge_event(answer)
    return Verdict(Next.SUCCEED, Outcome.SUCCEEDED)


def _judge_429(answer: Answer, said: ErrorObject) -> Verdict:
    if {said.get("code"), said.get("type")} & MONEY:
        return Verdict(Next.FAIL, Outcome.REFUSED, error=said, park=NO_MONEY)
    if "request too large" in str(said.get("message", "")).lower():
        return Verdict(Next.FAIL, Outcome.REFUSED, error=said)
    told = headers.retry_after_ms(answer.headers)
    pause = told if told is not None else int(settings().pause_s * 1000)
    return Verdict(Next.WAIT, Outcome.THROTTLED, error=said, pause_ms=pause, pushed_back=True)


def own_error(message: str, code: str) -> ErrorObject:
    """An error of ours in the wire contract's four keys."""
    return {"message": message, "type": "server_error", "param": None, "code": code}
