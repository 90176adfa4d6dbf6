"""The job runner: failures between the broker message and the call."""

from __future__ import annotations

from typing import NoReturn

import pytest
import redis

from models.jobs.states import Status
from models.platform.errors import Unavailable
from tests.support.queue_tools import admit, known, outcomes, row, submit
from workers.limiter.limiter import Limiter
from workers.runner import prompt
from workers.runner.leases import Leases
from workers.runner.run_job import JobRunner

pytestmark = pytest.mark.usefixtures("database")


def test_turn_with_an_unreadable_history_is_requeued_without_a_failure(redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> NoReturn:
        raise Unavailable

    limiter = Limiter(redis_client)
    caller = known()
    turn = submit(caller, conversation="c1")
    monkeypatch.setattr(prompt, "assemble", away)
    JobRunner(limiter, Leases(limiter)).run(turn, admit(caller, turn))

    after = row(turn)
    assert (Status.QUEUED, 0, 0, ["not_sent"]) == (after.status, after.failures, after.possible_duplicate_calls, outcomes(turn))
