"""Parameters and results of the limiter: what a job asks for, what it is granted, and what an answer reports."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class BlockedBy(StrEnum):
    """The limit that denies a request."""

    RPM = "rpm"
    TPM = "tpm"
    IPM = "ipm"
    RPD = "rpd"
    IN_FLIGHT = "in_flight"
    COOLDOWN = "cooldown"
    UPSTREAM = "upstream"  # the upstream's headers report an exhausted limit, which other clients may have used up
    NO_STATE = "no_state"


@dataclass(frozen=True)
class CredentialModel:
    """A credential and a model: the scope of one set of limits."""

    credential_id: int
    model: str


@dataclass(frozen=True)
class AdmitRequest:
    """Request to admit one job; the dispatch id makes it idempotent.

    since_us: submit time of the job, epoch µs. A job larger than a learned limit is tried once, unless an answer has confirmed the limit
    since then; 0: it is denied at once.
    """

    dispatch_id: str
    tokens: int
    images: int = 0
    since_us: int = 0


@dataclass(frozen=True)
class Grant:
    """Answer to a list of requests. admitted: number from the front of the list; the first denied request stops the rest.

    wake_in_ms None with blocked_by: the request is larger than the limit itself and never fits. NO_STATE has 0: rebuild and retry at once.
    """

    admitted: int
    wake_in_ms: int | None
    blocked_by: BlockedBy | None


@dataclass(frozen=True)
class Headroom:
    """Unused capacity of a scope. free None: calls in flight are unlimited. share: 0 to 1 of the scarcest limit."""

    in_flight: int
    free: int | None
    wait_ms: int
    share: float


@dataclass(frozen=True)
class Report:
    """Result of one upstream call. sent False: the call never left, so its charges are refunded.

    pushed_back: reduces the window of calls in flight. throttled: refused for load; the scope pauses for cooldown_ms (the upstream's
    request), else for a time that doubles with each pause until a call is answered. is_repeat: the job was refused like this before; if
    other jobs were answered since, the refusal belongs to the job and the scope does not pause. jitter: 0 to 1. exceeds: refused because
    the job is larger than the limit.
    """

    sent: bool = True
    good: bool = False
    limit_requests: int | None = None
    limit_tokens: int | None = None
    reset_requests_ms: int | None = None
    reset_tokens_ms: int | None = None
    cooldown_ms: int | None = None
    pushed_back: bool = False
    throttled: bool = False
    is_repeat: bool = False
    jitter: float = 0.0
    exceeds: bool = False


@dataclass(frozen=True)
class Learned:
    """Learned state to store if `changed`. None and 0 mean unknown: they must not overwrite what is stored.

    window: None until the first push-back. tpm_refuted: a job larger than the learned limit was answered, so the limit is unknown again.
    """

    window: int | None
    learned_rpm: int | None
    learned_tpm: int | None
    cooldown_until_us: int
    changed: bool
    tpm_refuted: bool = False


@dataclass(frozen=True)
class PastCharges:
    """A group of past charges. at_us: end of the group, so that it never leaves the window too early."""

    at_us: int
    requests: int
    tokens: int
    images: int
