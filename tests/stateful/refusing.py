"""Refusals and unreadable answers: the worker judges them and writes the ending, and the picture says which ending it must be."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

from models.billing import usage
from models.content.endpoints import PAID
from models.jobs.states import AttemptResult, JobResult
from tests.stateful.records import Call, Ticket, Verdict
from tests.stateful.reference_model import Picture
from workers.answers import retry_policy
from workers.limiter.requests import CredentialModel
from workers.observe.attempt_log import AttemptLog
from workers.results.attempt_record import AttemptRecord
from workers.runner import feedback
from workers.runner.attempt import Attempt
from workers.runner.failed_attempt import fail_or_requeue
from workers.runner.stream_publisher import StreamPublisher
from workers.upstream import request
from workers.upstream.call import CallControl as UpstreamCall
from workers.upstream.exchange import Answer

MAX_THROTTLES = 3
# Of several refusals the caller gets the first of these.
TELLING = (404, 403, 402)
INVALID = "upstream_invalid_response"


def _refusal(status: int) -> Answer:
    error = {"message": "Not with this key.", "type": "invalid_request_error", "param": None, "code": f"refused_{status}"}
    return Answer(status, {}, json.dumps({"error": error}).encode())


ANSWERS: dict[str, Answer] = {
    "throttled": _refusal(429), "unpaid": _refusal(402), "no_access": _refusal(403), "no_model": _refusal(404),
    "unreadable": Answer(200, {"content-type": "text/html"}, b"<html>wait</html>"),
}  # fmt: skip


@dataclass(frozen=True)
class Written(Attempt):
    """A claimed job that keeps the ending that was made of it."""

    endings: list[AttemptRecord] = field(default_factory=list)

    def ended(self, finding: AttemptResult, result: JobResult) -> AttemptRecord:
        self.endings.append(super().ended(finding, result))
        return self.endings[-1]

    def requeued(self, finding: AttemptResult, **how: Any) -> AttemptRecord:
        self.endings.append(super().requeued(finding, **how))
        return self.endings[-1]


def end(picture: Picture, job: Ticket, call: Call, row: Any, kind: str) -> tuple[AttemptRecord, Verdict]:
    """The worker has this answer and writes what becomes of the job; returns that, and what must become of it."""
    expected = _expected(picture, job, call, row, kind)
    work = Written(
        row, CredentialModel(row.credential_id, row.model), UpstreamCall(deadline=time.monotonic() + 60), StreamPublisher(row),
        AttemptLog(row), time.monotonic(),
        content=bytes(row.request),
    )  # fmt: skip
    answer = ANSWERS[kind]
    fail_or_requeue(work, feedback.store_feedback(row, None, retry_policy.classify(answer)), answer=answer)
    return work.endings[-1], expected


def _expected(picture: Picture, job: Ticket, call: Call, row: Any, kind: str) -> Verdict:
    if kind == "throttled":
        return _throttled(call)
    if kind == "unreadable":
        return _unreadable(job, call, row)
    status = ANSWERS[kind].status
    has_others = picture.has_others(job, call)
    picture.put_aside(job, call)
    if has_others:
        return Verdict("refused", None, refused=status)
    best = min([status, *dict(call.refusals).values()], key=TELLING.index)
    return Verdict("refused", "failed", answer=_said(status) if best == status else None, error=f"refused_{best}")


def _said(status: int) -> Any:
    return json.loads(_refusal(status).body)


def _throttled(call: Call) -> Verdict:
    """The job waits by itself: no key pauses here, for the limiter has no part in this."""
    if call.throttles + 1 >= MAX_THROTTLES:
        return Verdict("throttled", "failed", answer=_said(429), error="refused_429")
    return Verdict("throttled", None, throttled=True, delay=True)


def _unreadable(job: Ticket, call: Call, row: Any) -> Verdict:
    """Perhaps paid for: charged by our own count where the job ends with it, else as a call of unknown outcome."""
    if row.on_unreadable == "fail" or call.failures + 1 >= job.max_attempts:
        used = usage.usage_of_unreadable(
            request.asked_tokens(row, bytes(row.request)) if row.endpoint in PAID else 0, ANSWERS["unreadable"].body, model=row.model
        )
        cost = usage.price_microusd(used, model=row.model)
        counted = (used.input_tokens, used.output_tokens, used.images, cost or 0)
        return Verdict("unknown", "failed", cost, error=INVALID, usage=counted)
    return Verdict("unknown", None, None, counts=True, delay=True)
