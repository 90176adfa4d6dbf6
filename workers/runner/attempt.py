"""Attempt: a claimed job while one thread runs it, and the records that can end it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

from models.content.endpoints import PAID
from models.jobs.states import AttemptResult, JobResult, Status
from models.sessions import stored_completions
from workers.limiter.requests import CredentialModel
from workers.observe.attempt_log import AttemptLog
from workers.results.attempt_record import AttemptRecord
from workers.runner.stream_publisher import StreamPublisher
from workers.upstream import request
from workers.upstream.call import CallControl
from workers.upstream.exchange import Body


@dataclass(frozen=True)
class Attempt:
    """row: of claims.claim. began: monotonic seconds of the claim. content: the request's body, once it is loaded."""

    row: Any
    meter: CredentialModel
    call: CallControl
    publisher: StreamPublisher
    log: AttemptLog
    began: float
    content: bytes | Body = b""

    @property
    def left_s(self) -> float:
        """Seconds of timeout_s that no attempt has used yet."""
        return float(self.row.timeout_s - self.row.ran_s - (time.monotonic() - self.began))

    def ended(self, finding: AttemptResult, result: JobResult) -> AttemptRecord:
        """The record that ends the job."""
        row = self.row
        self.log.record_result(finding)
        asked_tokens = partial(request.asked_tokens, row, self.content) if row.endpoint in PAID else None
        store_as = stored_completions.metadata_to_store(row.endpoint, bytes(row.request)) if result.status == Status.SUCCEEDED else None
        return AttemptRecord(
            row.id, row.dispatch_id, row.key_id, row.lane_id, row.model, finding, result, is_turn=row.conversation_id is not None,
            asked_tokens=asked_tokens, store_as=store_as,
        )  # fmt: skip

    def requeued(self, finding: AttemptResult, *, delay_s: float = 0, counts: bool = False, why: str = "", **more: Any) -> AttemptRecord:
        """The record that requeues the job. more: throttled and refusal, as in AttemptRecord."""
        row = self.row
        self.log.record_result(finding, why=why)
        return AttemptRecord(row.id, row.dispatch_id, row.key_id, row.lane_id, row.model, finding, None, delay_s, counts, why, **more)
