"""Refusals and unreadable answers: the real worker code classifies and stores them; the model gives the expected verdict."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

from models.billing import usage
from models.content.endpoints import PAID
from models.jobs.states import AttemptResult, JobResult
from tests.stateful.records import Call, ModelJob, Verdict
from tests.stateful.reference_model import ReferenceModel
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
# With several refusals, the caller receives the first of these.
SHOWN_FIRST = (404, 403, 402)
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
    """An attempt that keeps the records made of it."""

    endings: list[AttemptRecord] = field(default_factory=list)

    def ended(self, finding: AttemptResult, result: JobResult) -> AttemptRecord:
        self.endings.append(super().ended(finding, result))
        return self.endings[-1]

    def requeued(self, finding: AttemptResult, **how: Any) -> AttemptRecord:
        self.endings.append(super().requeued(finding, **how))
        return self.endings[-1]


def end(model: ReferenceModel, job: ModelJob, call: Call, row: Any, kind: str) -> tuple[AttemptRecord, Verdict]:
    """Stores this answer as the worker would. Returns the record, and the expected verdict."""
    expected = _expected(model, job, call, row, kind)
    work = Written(
        row, CredentialModel(row.credential_id, row.model), UpstreamCall(deadline=time.monotonic() + 60), StreamPublisher(row),
        AttemptLog(row), time.monotonic(),
        content=bytes(row.request),
    )  # fmt: skip
    answer = ANSWERS[kind]
    fail_or_requeue(work, feedback.store_feedback(row, None, retry_policy.classify(answer)), answer=answer)
    return work.endings[-1], expected


def _expected(model: ReferenceModel, job: ModelJob, call: Call, row: Any, kind: str) -> Verdict:
    if kind == "throttled":
        return _throttled(call)
    if kind == "unreadable":
        return _unreadable(job, call, row)
    status = ANSWERS[kind].status
    has_others = model.has_others(job, call)
    model.park(job, call)
    if has_others:
        return Verdict("refused", None, refused=status)
    best = min([status, *dict(call.refusals).values()], key=SHOWN_FIRST.index)
    return Verdict("refused", "failed", answer=_refusal_json(status) if best == status else None, error=f"refused_{best}")


def _refusal_json(status: int) -> Any:
    return json.loads(_refusal(status).body)


def _throttled(call: Call) -> Verdict:
    """Only the job is delayed: the limiter takes no part in this, so no credential pauses."""
    if call.throttles + 1 >= MAX_THROTTLES:
        return Verdict("throttled", "failed", answer=_refusal_json(429), error="refused_429")
    return Verdict("throttled", None, throttled=True, delay=True)


def _unreadable(job: ModelJob, call: Call, row: Any) -> Verdict:
    """May have been charged: our own count if the job ends with it, otherwise as a call of unknown outcome."""
    if row.on_unreadable == "fail" or call.failures + 1 >= job.max_attempts:
        used = usage.usage_of_unreadable(
            request.asked_tokens(row, bytes(row.request)) if row.endpoint in PAID else 0, ANSWERS["unreadable"].body, model=row.model
        )
        cost = usage.price_microusd(used, model=row.model)
        counted = (used.input_tokens, used.output_tokens, used.images, cost or 0)
        return Verdict("unknown", "failed", cost, error=INVALID, usage=counted)
    return Verdict("unknown", None, None, counts=True, delay=True)
