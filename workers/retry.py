"""What becomes of a job after one attempt: a pure function of the answer, so that every case can be read and tested here."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from models.job import Outcome
from models.settings import settings
from workers import headers
from workers.openai_client import Answer

# 429s that no waiting cures.
MONEY = frozenset(
    {"insufficient_quota", "credit_balance_exhausted", "organization_spend_limit_exceeded", "project_spend_limit_exceeded",
     "organization_usage_limit_exceeded", "billing_hard_limit_reached"}
)  # fmt: skip
WRONG_KEY = "the upstream does not accept this key (401)"
NO_MONEY = "the upstream account has no money left"
RETRYABLE = frozenset({408, 409, 425, 500, 502, 503, 504, 520, 522, 524, 529})
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
    """next: where the job goes. pause_ms: nobody calls this credential and model for so long. park: why nobody should at all."""

    next: Next
    outcome: Outcome
    error: ErrorObject | None = None
    pause_ms: int | None = None
    park: str | None = None
    pushed_back: bool = False


def judge(answer: Answer) -> Verdict:
    """What an answer means, by its status first and its body only where OpenAI's contract says so."""
    said = _error_in(answer)
    if 200 <= answer.status < 300:
        return _judge_body(answer)
    if answer.status == 429:
        return _judge_429(answer, said)
    if answer.status == 401:
        return Verdict(Next.FAIL, Outcome.REFUSED, error=said, park=WRONG_KEY)
    if answer.status == 503 and (pause := headers.retry_after_ms(answer.headers)):
        return Verdict(Next.WAIT, Outcome.THROTTLED, error=said, pause_ms=pause, pushed_back=True)
    if answer.status in RETRYABLE or answer.status >= 500:
        return Verdict(Next.AGAIN, Outcome.FAILED, error=said, pushed_back=answer.status == 503)
    return Verdict(Next.FAIL, Outcome.REFUSED, error=said)


def delay_s(failures: int, *, rng: random.Random | None = None) -> float:
    """How long a job waits after its n-th failed attempt: doubling from retry_base_s up to retry_most_s, with up to half of it jitter."""
    most = min(settings().retry_most_s, settings().retry_base_s * 2 ** min(failures, 16))
    return float(most * (1 + (rng or random).random() / 2))


def is_object(body: bytes) -> bool:
    """Whether this is one JSON object, as every answer of OpenAI's is."""
    return _object(body) is not None


def _judge_body(answer: Answer) -> Verdict:
    if is_object(answer.body):
        return Verdict(Next.SUCCEED, Outcome.SUCCEEDED)
    return Verdict(
        Next.UNKNOWN,
        Outcome.UNKNOWN,
        error=own_error(
            "The upstream answered with something that is not JSON; the call may have been paid for.", "upstream_invalid_response"
        ),
    )


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


def _error_in(answer: Answer) -> ErrorObject:
    """The upstream's own error object, completed to four keys; one made from the status where it sent none."""
    found = (_object(answer.body) or {}).get("error")
    if isinstance(found, Mapping) and isinstance(found.get("message"), str):
        return {"type": None, "param": None, "code": None, **{str(name): value for name, value in found.items() if _is_plain(value)}}
    return own_error(f"The upstream answered {answer.status} without saying why. Try again later.", "upstream_error")


def _object(body: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _is_plain(value: object) -> bool:
    # What goes into jsonb: no NUL, no lone surrogate.
    return value is None or (isinstance(value, str) and "\x00" not in value and value.isprintable()) or isinstance(value, bool | int)
