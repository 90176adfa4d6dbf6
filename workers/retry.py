"""What becomes of a job after one attempt: a pure function of the answer, so that every case can be read and tested here."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from models.job import Outcome
from models.settings import settings
from workers import blame, headers
from workers.blame import MONEY, Fault
from workers.openai_client import Answer, Lost, NotSent, TimedOut, TooLarge

WRONG_KEY = "the upstream does not accept this key"
NO_MONEY = "the upstream account has no money left"
_PARKS = {Fault.KEY: WRONG_KEY, Fault.MONEY: NO_MONEY}
RETRYABLE = frozenset({408, 409, 425, 500, 502, 503, 504, 520, 522, 524, 529})
# What the code or the type of an error within a stream would have been as a status.
_EVENT_STATUS: dict[object, int] = {
    "invalid_request_error": 400, 400: 400, 403: 403, 404: 404, 422: 422,
    **dict.fromkeys((*MONEY, "rate_limit_exceeded", "rate_limit_error", "slow_down", 429), 429),
}  # fmt: skip
ErrorObject = dict[str, object]


class Next(StrEnum):
    """Where the job goes."""

    SUCCEED = "succeed"
    FAIL = "fail"
    AGAIN = "again"  #: back in line after a delay; counts as a failed attempt
    WAIT = "wait"  #: back in line; the attempt does not count
    UNKNOWN = "unknown"  #: on_lost decides


@dataclass(frozen=True)
class Verdict:
    """What an answer means for the job (next, outcome, error) and for the credential.

    throttled: refused for load; the credential and model pause for pause_ms, None: the upstream names no time. pushed_back: fewer calls
    in flight. park: why the credential serves nothing; unserved: why it cannot serve this endpoint and model. status: of the answer that
    `error` stands for, where that is not the last one.
    """

    next: Next
    outcome: Outcome
    error: ErrorObject | None = None
    pause_ms: int | None = None
    park: str | None = None
    unserved: str | None = None
    pushed_back: bool = False
    throttled: bool = False
    status: int | None = None
    is_of_another: bool = False


def judge(answer: Answer) -> Verdict:
    """What an answer means, by its status first and its body only where OpenAI's contract says so."""
    said = _error_in(answer)
    if 200 <= answer.status < 300:
        return _judge_body(answer)
    if answer.status == 429:
        return _judge_429(answer, said)
    if answer.status == 503 and (pause := headers.pause_ms(answer.headers)):
        return Verdict(Next.WAIT, Outcome.THROTTLED, error=said, pause_ms=pause, pushed_back=True, throttled=True)
    if answer.status in RETRYABLE or answer.status >= 500:
        return Verdict(Next.AGAIN, Outcome.FAILED, error=said, pushed_back=answer.status == 503)
    return _refused(answer.status, said)


def judge_event(answer: Answer) -> Verdict:
    """What an error within a stream means; answer: of status 200, its body the event. The key was good, so it is not to blame."""
    said = _error_in(answer)
    names = {said["code"], said["type"]} & _EVENT_STATUS.keys()
    return judge(replace(answer, status=max((_EVENT_STATUS[name] for name in names), default=500)))


def garbled() -> Verdict:
    """Neither JSON nor a stream of it: perhaps a page of a proxy, perhaps a paid answer that nobody can read."""
    message = "The upstream answered with something that is not JSON; the call may have been paid for."
    return Verdict(Next.UNKNOWN, Outcome.UNKNOWN, error=own_error(message, "upstream_invalid_response"))


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


def throttle_delay_s(refusals: int, *, rng: random.Random | None = None) -> float:
    """How long a job waits by itself after its n-th refusal for load: doubling from twice pause_s to pause_most_s, with jitter."""
    most = min(settings().pause_most_s, settings().pause_s * 2 ** min(refusals, 16))
    return float(most * (1 + (rng or random).random() / 2))


def is_object(body: bytes) -> bool:
    """Whether this is one JSON object, as every answer of OpenAI's is."""
    return parse(body) is not None


def _judge_body(answer: Answer) -> Verdict:
    if is_object(answer.body):
        return Verdict(Next.SUCCEED, Outcome.SUCCEEDED)
    return garbled()


def _judge_429(answer: Answer, said: ErrorObject) -> Verdict:
    if blame.find(429, said) == Fault.MONEY:
        return _refused(429, said)
    if "request too large" in str(said.get("message", "")).lower():
        return Verdict(Next.FAIL, Outcome.REFUSED, error=said)
    pause = headers.pause_ms(answer.headers)
    return Verdict(Next.WAIT, Outcome.THROTTLED, error=said, pause_ms=pause, pushed_back=True, throttled=True)


def _refused(status: int, said: ErrorObject) -> Verdict:
    """A refusal that waiting does not cure; another credential may serve the job all the same."""
    fault = blame.find(status, said)
    unserved = f"{status}: {str(said.get('message'))[:200]}" if fault == Fault.MODEL else None
    return Verdict(Next.FAIL, Outcome.REFUSED, error=said, park=_PARKS.get(fault), unserved=unserved, status=status)


def own_error(message: str, code: str) -> ErrorObject:
    """An error of ours in the wire contract's four keys."""
    return {"message": message, "type": "server_error", "param": None, "code": code}


def _error_in(answer: Answer) -> ErrorObject:
    """The upstream's own error object, completed to four keys; one made from the status where it sent none."""
    found = (parse(answer.body) or {}).get("error")
    if isinstance(found, str):
        found = {"message": found}
    if isinstance(found, Mapping) and isinstance(found.get("message"), str):
        said = {_storable(name): _storable(value) for name, value in found.items() if value is None or isinstance(value, str | bool | int)}
        return {"type": None, "param": None, "code": None, **said}
    return own_error(f"The upstream answered {answer.status} without saying why. Try again later.", "upstream_error")


def parse(body: bytes) -> dict[str, Any] | None:
    """The JSON object that this is; None for anything else, however it is broken."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _storable(value: Any) -> Any:
    """As jsonb takes it: without NUL and lone surrogates."""
    return value.replace("\x00", "\ufffd").encode(errors="replace").decode() if isinstance(value, str) else value
