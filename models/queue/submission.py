"""A job as its caller submits it, before it is in the queue."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from uuid_utils.compat import uuid7

from models.keys.keys import Key

PRIORITY_WEIGHTS = {"low": 1.0, "normal": 4.0, "high": 16.0}
# For fair shares, an image costs this many tokens. Lanes rarely mix the two, so only the order of magnitude matters.
TOKENS_PER_IMAGE = 1_000.0
# The column has 32 bits, and no limit is higher.
MAX_TOKENS = 2**31 - 1


@dataclass(frozen=True)
class Submission:
    """A job to enqueue. tokens and images: the budget that it reserves. request: the upstream body, byte for byte.

    reserved_microusd: maximum cost of one call; 0: free; None: unknown price, or a key without a budget.
    content_type: of the request; None: JSON. streamed: the upstream returns a stream. wants_urls: images are returned as links.
    fingerprint, reader: of a client that waits on an open connection (models/jobs/waiters.py).
    attachments: of its conversation. turn_tokens: tokens of its question in the history of its conversation, without attachments;
    None: not part of a history. headers: forwarded to the upstream; names in lower case.
    request_id, traceparent: of the HTTP request that submits it, and of its span.
    """

    key: Key
    endpoint: str
    model: str
    request: bytes
    flow: str
    tokens: int
    images: int = 0
    reserved_microusd: int | None = None
    priority: str = "normal"
    conversation: str | None = None
    expires_in_s: float = 86_400
    timeout_s: float = 600
    on_lost: str = "retry"
    on_unreadable: str = "fail"
    max_attempts: int = 4
    metadata: dict[str, str] | None = None
    webhook_url: str | None = None
    retry_of: UUID | None = None
    content_type: str | None = None
    headers: dict[str, str] | None = None
    streamed: bool = False
    wants_urls: bool = False
    fingerprint: bytes | None = None
    reader: UUID | None = None
    attachments: tuple[UUID, ...] = ()
    turn_tokens: int | None = None
    request_id: UUID | None = None
    traceparent: str | None = None

    @property
    def cost(self) -> float:
        """Cost for fair queueing, in tokens; at least 1."""
        return max(1.0, self.images * TOKENS_PER_IMAGE if self.images else float(self.tokens))


def new_job_id() -> UUID:
    """A new job id: UUIDv7, so that ids sort by time."""
    return uuid7()
