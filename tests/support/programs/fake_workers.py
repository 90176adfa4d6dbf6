"""Fake pacer, workers and webhook senders in a thread of this process, so that waiting callers get their answers at once."""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from types import TracebackType
from typing import Any, Self
from uuid import UUID, uuid4

from models.database import db
from models.jobs import claims
from models.jobs.states import AttemptResult, JobResult, Outcome, Status
from models.platform.errors import Unavailable
from models.queue import admission
from tests.support import webhook_tools
from tests.support.queue_tools import query
from workers.channels import notify
from workers.results import finish
from workers.results.attempt_record import AttemptRecord

EVERY_S = 0.02
CHAT = {"id": "chatcmpl-1", "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}]}
GOOD = (JobResult(Status.SUCCEEDED, http_status=200, response=json.dumps(CHAT).encode()), AttemptResult(Outcome.SUCCEEDED, 200, "req_1"))
REFUSED = (
    JobResult(Status.FAILED, http_status=400, response=b'{"error":{"message":"no","type":"t","param":null,"code":"c"}}',
           error={"message": "no", "type": "t", "param": None, "code": "c"}),
    AttemptResult(Outcome.REFUSED, 400, "req_1"),
)  # fmt: skip


class FakeWorkers:
    """A context manager that finishes all queued jobs, two of three successfully, and sends all due webhooks."""

    def __init__(self) -> None:
        self.failures: list[BaseException] = []
        self.ended = 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._is_over.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._is_over.wait(EVERY_S):
            try:
                with suppress(Unavailable):
                    self.step()
            except BaseException as error:
                self.failures.append(error)

    def step(self) -> None:
        """Finishes all jobs that are queued now, and sends all due webhooks."""
        for row in query(_NEXT):
            end(row, *(GOOD if self.ended % 3 else REFUSED))
            self.ended += 1
        for picked in webhook_tools.pick():
            if (claimed := webhook_tools.claim(picked)) is not None:
                # All deliveries succeed: a failing receiver is retried once a second, and tests of endpoints would wait for that.
                webhook_tools.settle(claimed)


def end(row: Any, result: JobResult, finding: AttemptResult) -> bool:
    """Runs the queued job of this row (id, credential_id) to this result; False: it was cancelled before."""
    given = admission.Admission(UUID(str(row.id)), uuid4(), row.credential_id)
    with db.begin() as session:
        admission.admit(session, [given])
    with db.begin() as session:
        if (claimed := claims.claim(session, given.job_id, given.dispatch_id, lease_s=30)) is None:
            return False
    ended = AttemptRecord(
        claimed.id, given.dispatch_id, claimed.key_id, claimed.lane_id, claimed.model, finding, result,
        is_turn=claimed.conversation_id is not None,
    )  # fmt: skip
    finish.commit(ended)
    notify.job_changed(given.job_id, "ended")
    return True


_NEXT = """
    SELECT job.id, (SELECT min(credential.id) FROM credential WHERE credential.pool_id = lane.pool_id) AS credential_id
    FROM job JOIN lane ON lane.id = job.lane_id WHERE job.status = 'queued' AND NOT job.held ORDER BY job.id LIMIT 50
"""
