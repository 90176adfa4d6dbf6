"""Bulk retry: one job that cannot be resubmitted never stops the jobs behind it, and none is resubmitted twice."""

from __future__ import annotations

import json
import time
from uuid import UUID

import pytest
from click.testing import CliRunner

from api.ops import bulk_retry
from cli.main import nowserving
from models.access import operators
from models.access.audit_log import Act
from models.database import db
from models.keys.keys import Key
from models.ops import pause
from models.ops.bulk import JobFilter
from models.ops.pause import Target
from models.platform import wire
from tests.support.http_tools import Caller
from tests.support.queue_tools import at_once, known, query, submit

pytestmark = pytest.mark.usefixtures("database")
ATTACHMENT = UUID(int=7)


@pytest.fixture
def caller() -> Key:
    return known()


@pytest.fixture
def ops() -> Caller:
    with db.begin() as session:
        return Caller(operators.create(session, "day-shift", role="write"))


def failed(caller: Key, **wanted: object) -> UUID:
    """Stores a failed job."""
    job_id = submit(caller, **wanted)
    query("UPDATE job SET status = 'failed', ended_at = now() WHERE id = :id", id=job_id)
    return job_id


def failed_with_expired_attachment(caller: Key) -> UUID:
    job_id = failed(caller, conversation=f"talk {time.monotonic_ns()}")
    query("UPDATE job SET attachments = CAST(:ids AS uuid[]) WHERE id = :id", id=job_id, ids=[ATTACHMENT])
    return job_id


def repeated() -> set[UUID]:
    return {row.retry_of for row in query("SELECT retry_of FROM job WHERE retry_of IS NOT NULL")}


def test_failed_job_is_retried_in_bulk_and_singly(caller: Key, ops: Caller) -> None:
    listing = failed(caller, endpoint="/v1/models", model="models", request=b"")

    assert 202 == ops.post(f"/ops/jobs/{wire.public_id(listing)}/retry").status_code
    query("DELETE FROM job WHERE retry_of IS NOT NULL")
    answer = ops.post("/ops/jobs/retry", {}).json
    assert (1, 0, {listing}) == (answer["retried"], answer["refused"], repeated())


def test_job_that_cannot_be_resubmitted_is_counted_and_skipped(caller: Key, ops: Caller) -> None:
    poisoned = [failed_with_expired_attachment(caller) for _ in range(12)]
    good = [failed(caller) for _ in range(3)]
    answer = ops.post("/ops/jobs/retry", {}).json

    assert (3, 12, {"not_found": 12}, False) == (answer["retried"], answer["refused"], answer["reasons"], answer["has_more"])
    assert [wire.public_id(job_id) for job_id in poisoned[:10]] == [error["job"] for error in answer["errors"]]
    assert set(good) == repeated()


def test_full_or_draining_lane_does_not_stop_bulk_retry(caller: Key, ops: Caller) -> None:
    draining, other = failed(caller, model="a"), failed(caller, model="b")
    with db.begin() as session:
        (row,) = query("SELECT lane_id FROM job WHERE id = :id", id=draining)
        pause.apply(session, Act(), "drain", Target("lane", row.lane_id))
    answer = ops.post("/ops/jobs/retry", {}).json

    assert (1, {"draining": 1}, {other}) == (answer["retried"], answer["reasons"], repeated())


def test_cursor_passes_refused_jobs(caller: Key, ops: Caller) -> None:
    poisoned = [failed_with_expired_attachment(caller) for _ in range(3)]
    failed(caller)
    first = bulk_retry.run(Act(), JobFilter(), after=None, until=0.0)
    answer = ops.post("/ops/jobs/retry", {"after": wire.public_id(poisoned[-1])}).json

    assert (0, True, None) == (first.retried, first.has_more, first.last_id), "out of time: nothing was done, and it says so"
    assert (1, 0, False) == (answer["retried"], answer["refused"], answer["has_more"])
    assert 400 == ops.post("/ops/jobs/retry", {"after": 7}).status_code
    assert 404 == ops.post("/ops/jobs/retry", {"after": "job_nonsense"}).status_code


def test_concurrent_bulk_retries_retry_each_job_once(caller: Key) -> None:
    jobs = [failed(caller) for _ in range(40)]
    reports = at_once(*[lambda: bulk_retry.run(Act(), JobFilter(), after=None, until=time.monotonic() + 60)] * 4)

    assert len(jobs) == sum(report.retried for report in reports)
    assert len(jobs) == query("SELECT count(*) AS n FROM job WHERE retry_of IS NOT NULL")[0].n


def test_command_prints_counts_and_reasons(caller: Key) -> None:
    failed_with_expired_attachment(caller)
    good = failed(caller)
    result = CliRunner().invoke(nowserving, ["retry-failed", "--json"])
    report = json.loads(result.output)

    assert (0, 1, {"not_found": 1}, wire.public_id(good)) == (result.exit_code, report["retried"], report["reasons"], report["last_id"])
    plain = CliRunner().invoke(nowserving, ["retry-failed"]).output
    assert "not_found: 1" in plain and "This session has no such attachment" in plain


def test_deleted_request_cannot_be_retried(ops: Caller) -> None:
    caller = Caller("sk-own")
    job_id = failed(caller.key)
    query("UPDATE job SET request = '' WHERE id = :id", id=job_id)
    path = f"jobs/{wire.public_id(job_id)}/retry"

    answers = [caller.post(f"/v1/{path}"), ops.post(f"/ops/{path}")]
    assert [409, 409] == [answer.status_code for answer in answers]
    assert answers[0].json == answers[1].json
