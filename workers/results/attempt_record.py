"""AttemptRecord: the end of one attempt, as it is written to Postgres or, during an outage, to the spool."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from uuid import UUID

from models.jobs.states import AttemptResult, JobResult


@dataclass(frozen=True)
class AttemptRecord:
    """The field names are part of the spool's file format.

    result: how the job ends; None: it is requeued after delay_s, and the attempt `counts` or not. why: the reason in the job's event.
    is_turn: the job is a turn of a conversation, which keeps its answer. throttled, refusal: as in requeue.requeue_job.
    asked_tokens: our count of the prompt, used where the answer states none; None: such a call costs nothing.
    store_as: metadata of a chat completion to store; None: the request does not store.
    """

    job_id: UUID
    dispatch_id: UUID
    key_id: int
    lane_id: int
    model: str
    finding: AttemptResult
    result: JobResult | None = None
    delay_s: float = 0
    counts: bool = False
    why: str = ""
    is_turn: bool = False
    throttled: bool = False
    refusal: Mapping[str, object] | None = None
    asked_tokens: int | Callable[[], int] | None = None
    store_as: dict[str, str] | None = None

    @property
    def body_bytes(self) -> int:
        """The size of the bodies that are moved to Postgres."""
        return 0 if self.result is None else len(self.result.response or b"") + len(self.result.transcript or b"")

    @property
    def prompt_tokens(self) -> Callable[[], int] | None:
        """asked_tokens as a function, which may be slow."""
        tokens = self.asked_tokens
        return (lambda: tokens) if isinstance(tokens, int) else tokens
