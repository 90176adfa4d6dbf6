"""The states of a job and of an attempt, and the two values that end them. Transitions live in the modules named below.

    queued ─ admit ─▶ admitted ─ claim ─▶ running ─ finish ─▶ succeeded | failed | cancelled
      ▲                  │                   │
      └───── requeue ◀───┴───────────────────┘        queued ─ expire ─▶ expired       any ─ cancel ─▶ cancelled

models/queue/admission.py admits. The other transitions are in this package: claims, completion, requeue and cancellation (with expiry).
Each transition is one compare-and-set statement, fenced by the dispatch id. Terminal states never change. A dispatch id names one
admission; while the job runs, it is also the lease of the one worker that claimed the job.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

# A job with less than this left of its timeout_s is not called again.
MIN_CALL_S = 1
# Error code of a job whose answer is stored, but could not be parsed.
UNREADABLE = "upstream_invalid_response"


class Status(StrEnum):
    """The status of a job."""

    QUEUED = "queued"  #: In the queue, or held behind an earlier turn of its conversation.
    ADMITTED = "admitted"  #: Its budget is reserved and its Celery message is sent; callers see `queued`.
    RUNNING = "running"  #: A worker holds its lease; the call may have been sent.
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"  #: It waited longer than expires_in_s.


TERMINAL = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELLED, Status.EXPIRED})


class Outcome(StrEnum):
    """The outcome of one attempt."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    REFUSED = "refused"  #: The upstream refused it and would again: 400, 401, 403, 404, 422, no money.
    THROTTLED = "throttled"  #: 429 or 503 with a time: a pause, not a failure.
    FAILED = "failed"  #: 5xx and the like; another attempt may succeed.
    UNKNOWN = "unknown"  #: The call may have been made and charged; this cannot be known.
    CANCELLED = "cancelled"
    NOT_SENT = "not_sent"  #: Provably never sent.


# The upstream may charge an aborted call in part or whole: the caller already received the tokens before the abort.
_MAYBE_PAID = frozenset({Outcome.SUCCEEDED, Outcome.UNKNOWN, Outcome.CANCELLED})


@dataclass(frozen=True)
class JobResult:
    """How a job ends: its status, and the upstream's body or our error (the four keys of the error object).

    response_type: media type of a body that is not JSON, or that cannot be parsed as the expected answer; None: JSON.
    transcript: the events of a stream as published; `response` is then the answer assembled from them.
    turn_tokens: tokens that the answer adds to the history of a conversation.
    """

    status: Status
    http_status: int | None = None
    response: bytes | None = None
    error: Mapping[str, object] | None = None
    transcript: bytes | None = None
    turn_tokens: int = 0
    response_type: str | None = None


@dataclass(frozen=True)
class AttemptResult:
    """How one attempt ended.

    cost_microusd: cost of a call that was made; None: unknown. is_estimated: the cost is computed from our own token count.
    """

    outcome: Outcome
    http_status: int | None = None
    upstream_request_id: str | None = None
    cost_microusd: int | None = None
    is_estimated: bool = False

    @property
    def owed_microusd(self) -> int | None:
        """The charge for this attempt; None: unknown. The upstream charges nothing for a refused or failed call."""
        return self.cost_microusd if self.outcome in _MAYBE_PAID else 0

    @property
    def note(self) -> str | None:
        """The note on the ledger entry."""
        return "estimated" if self.is_estimated and self.cost_microusd is not None else None
