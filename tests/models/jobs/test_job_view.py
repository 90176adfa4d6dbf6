"""The job list: a constant number of statements, and the same objects as for single jobs."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from models.database import db
from models.jobs import job_rows, job_view
from models.jobs.states import AttemptResult, JobResult, Outcome, Status
from models.keys.keys import Key
from tests.support.queue_tools import admit, cancel, finish, known, put_back, query, start, submit

pytestmark = pytest.mark.usefixtures("database")


class Counted:
    """A transaction that counts its statements."""

    def __init__(self, session: db.Transaction) -> None:
        self._session = session
        self.statements = 0

    def execute(self, *arguments: Any) -> Any:
        self.statements += 1
        return self._session.execute(*arguments)


@pytest.fixture
def caller() -> Key:
    return known()


def end_with_image(caller: Key) -> UUID:
    job_id = submit(caller, images=1, endpoint="/v1/images/generations")
    finish(job_id, start(caller, job_id), JobResult(Status.SUCCEEDED, http_status=200, response=b"{}"))
    query("INSERT INTO artifact (id, job_id, n, content_type, content) VALUES (gen_random_uuid(), :id, 0, 'image/png', 'x') RETURNING id",
          id=job_id)  # fmt: skip
    return job_id


def submit_one_of_each(caller: Key) -> None:
    """A queued, an admitted, a requeued, a cancelled and a succeeded job, the last with an image."""
    submit(caller)
    admit(caller, submit(caller))
    requeued = submit(caller)
    put_back(requeued, start(caller, requeued), AttemptResult(Outcome.FAILED, 500))
    cancel(caller, submit(caller))
    end_with_image(caller)


def list_counted(caller: Key) -> tuple[list[dict[str, Any]], int]:
    with db.begin() as session:
        rows = job_rows.list_jobs(session, caller.id, limit=100, before=None, status=None)
        counted = Counted(session)
        return job_view.render_jobs(counted, rows), counted.statements  # type: ignore[arg-type]


def test_job_list_runs_as_many_statements_for_many_jobs_as_for_few(caller: Key) -> None:
    submit_one_of_each(caller)
    _, few = list_counted(caller)
    for _ in range(4):
        submit_one_of_each(caller)

    jobs, many = list_counted(caller)

    assert (25, 5) == (len(jobs), many)
    assert few == many


def test_job_list_shows_jobs_as_single_jobs_are_shown(caller: Key) -> None:
    submit_one_of_each(caller)

    jobs, _ = list_counted(caller)

    with db.begin() as session:
        rows = job_rows.list_jobs(session, caller.id, limit=100, before=None, status=None)
        single = [job_view.render_job(session, job_rows.find_job(session, row.id, caller.id), with_result=False) for row in rows]
    assert single == jobs
    assert [1, 0, 1, 0, 0] == [len(job["attempts"]) for job in jobs]
    assert [1, 0, 0, 0, 0] == [len(job["artifacts"]) for job in jobs]
