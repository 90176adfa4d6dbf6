"""Cleanup removes a backlog of any size in one pass, in small batches with pauses, and reports the remaining rows to operators."""

from __future__ import annotations

import threading
import time
from datetime import datetime, timedelta
from uuid import UUID

import pytest
import redis
from prometheus_client import REGISTRY

from models.database import db
from models.keys.keys import Key
from models.ops import queue_metrics, retention
from tests.support.queue_tools import cancel, clean_up, known, query, submit
from workers.pacer.cleanup import FIRST_BATCH, MIN_BATCH, REST_FACTOR, Cleanup
from workers.pacer.gauges import Gauges

pytestmark = pytest.mark.usefixtures("database")
# Ids of jobs that were submitted at this time.
LONG_AGO = "2024-01-01"
LATER = timedelta(days=31)


@pytest.fixture
def caller() -> Key:
    return known()


def add_old_jobs(caller: Key, number: int) -> None:
    """Old ended jobs, each with an event, an attempt and an image."""
    template = submit(caller)
    query(
        f"""
        WITH old AS (
            SELECT n, (lpad(to_hex((extract(epoch FROM timestamptz '{LONG_AGO}') * 1000)::bigint + n), 12, '0')
                       || '7' || substr(md5(n::text), 1, 19))::uuid AS id FROM generate_series(1, :number) AS n
        ), jobs AS (
            INSERT INTO job (id, key_id, lane_id, status, held, flow, priority, start_tag, share, cost, tokens, images, endpoint, model,
                             request, timeout_s, on_lost, max_attempts, ended_at)
            SELECT old.id, key_id, lane_id, 'succeeded', false, flow, priority, start_tag, share, cost, tokens, images, endpoint, model,
                   request, timeout_s, on_lost, max_attempts, timestamptz '{LONG_AGO}' + n * interval '1 ms'
            FROM old, job WHERE job.id = :template
        ), events AS (
            INSERT INTO job_event (job_id, seq, type) SELECT id, 1, 'job.succeeded' FROM old
        ), attempts AS (
            INSERT INTO attempt (dispatch_id, job_id, n, credential_id, model, tokens, images, outcome)
            SELECT id, id, 1, 1, 'm', 1, 0, 'succeeded' FROM old
        )
        INSERT INTO artifact (id, job_id, n, content_type, content) SELECT id, id, 0, 'image/png', 'x' FROM old
        """,
        number=number, template=template,
    )  # fmt: skip


def now() -> datetime:
    with db.begin() as session:
        return retention.database_now(session)


def left() -> list[int]:
    return [query(f"SELECT count(*) AS n FROM {table}")[0].n for table in ("job", "job_event", "attempt", "artifact")]


def test_five_thousand_old_jobs_are_gone_after_one_pass(caller: Key) -> None:
    add_old_jobs(caller, 5_000)

    assert 5_000 == clean_up()
    assert [1, 1, 0, 0] == left(), "the job that waits stays"


def test_waiting_user_stays_visible_to_operators_after_cancellations(caller: Key) -> None:
    jobs = [submit(caller, flow="ann") for _ in range(10)]
    for one in jobs[:9]:
        cancel(caller, one)
    query("UPDATE key_share SET low_water = (SELECT start_tag FROM job WHERE id = :id)", id=jobs[9])
    clean_up()

    assert [("ann",)] == query("SELECT name FROM key_flow")


def test_every_table_is_drained_in_one_pass(caller: Key) -> None:
    many = 2 * FIRST_BATCH + 7
    query("INSERT INTO idempotency (key_id, token, fingerprint, job_id, created_at) "
          "SELECT 1, n::text, '', gen_random_uuid(), now() - interval '2 d' FROM generate_series(1, :n) AS n", n=many)  # fmt: skip
    submit(caller)
    query("INSERT INTO key_flow (lane_id, key_id, name, last_finish) "
          "SELECT lane.id, :key, n::text, 0 FROM lane, generate_series(1, :n) AS n", key=caller.id, n=many)  # fmt: skip
    query("UPDATE key_share SET low_water = 1e9")
    query("INSERT INTO receiver (name) SELECT n::text FROM generate_series(1, :n) AS n", n=many)
    query("INSERT INTO conversation (key_id, name, last_active_at) "
          "SELECT key.id, n::text, now() - interval '31 d' FROM key, generate_series(1, :n) AS n", n=many)  # fmt: skip
    query(
        "INSERT INTO conversation (key_id, name, deleted_at) SELECT key.id, 'd' || n, now() FROM key, generate_series(1, :n) AS n", n=many
    )
    clean_up()

    tables = ("idempotency", "flow", "receiver", "conversation")
    assert [0, 0, 0, 0] == [query(f"SELECT count(*) AS n FROM {table}")[0].n for table in tables]


class Rests(threading.Event):
    """Records the pauses without waiting; is set after `limit` of them."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.rests: list[float] = []
        self._limit = limit

    def wait(self, timeout: float | None = None) -> bool:
        self.rests.append(timeout or 0.0)
        if len(self.rests) >= self._limit:
            self.set()
        return self.is_set()


def test_cleanup_pass_stops_between_two_batches(caller: Key) -> None:
    add_old_jobs(caller, 3 * FIRST_BATCH)
    stop = Rests(1)

    assert not Cleanup().run_pass(stop)
    assert 2 * FIRST_BATCH + 1 == left()[0]


def test_each_full_batch_is_followed_by_a_rest_of_three_times_its_duration(caller: Key) -> None:
    add_old_jobs(caller, 2 * MIN_BATCH)
    ticks = iter(range(1_000_000))
    cleanup, stop = Cleanup(clock=lambda: float(next(ticks))), Rests(100)
    cleanup._limits["jobs"] = MIN_BATCH

    assert cleanup.run_pass(stop)
    assert [REST_FACTOR, REST_FACTOR] == stop.rests, "one second each by this clock, and none after batches that were not full"


def test_a_step_out_of_time_leaves_the_rest_to_the_next_pass_and_other_steps_run(caller: Key) -> None:
    add_old_jobs(caller, 30)
    query("INSERT INTO receiver (name) VALUES ('gone')")
    ticks = iter(range(0, 1_000_000, 100))
    cleanup = Cleanup(clock=lambda: float(next(ticks)))
    cleanup._limits["jobs"] = MIN_BATCH

    assert not cleanup.run_pass(Rests(100))
    assert (21, []) == (left()[0], query("SELECT FROM receiver"))


def test_a_submit_at_the_same_time_keeps_its_flow(caller: Key) -> None:
    submit(caller, flow="ann")
    query("UPDATE key_share SET low_water = 1e9")
    with db.begin() as session:
        session.execute(retention.text("UPDATE key_flow SET last_finish = 2e9"))
        clean_up()

    assert 1 == len(query("SELECT FROM key_flow")), "its row was locked: passed over"


def test_the_backlog_is_shown_and_is_gone_afterwards(caller: Key, redis_client: redis.Redis) -> None:
    add_old_jobs(caller, 20)
    Gauges().refresh(1.0)
    names = ("nowserving_retention_backlog_jobs", "nowserving_retention_backlog_seconds")
    before = [REGISTRY.get_sample_value(name) or 0 for name in names]
    removed = REGISTRY.get_sample_value("nowserving_retention_removed_total", {"kind": "jobs"}) or 0
    clean_up()
    Gauges().refresh(1.0)

    assert (20, True) == (before[0], before[1] > 86_400)
    assert [0, 0] == [REGISTRY.get_sample_value(name) for name in names]
    assert removed + 20 == REGISTRY.get_sample_value("nowserving_retention_removed_total", {"kind": "jobs"})


def test_old_jobs_and_tokens_are_found_along_an_index(caller: Key) -> None:
    add_old_jobs(caller, 2_000)
    query("INSERT INTO idempotency (key_id, token, fingerprint, job_id) "
          "SELECT 1, n::text, '', gen_random_uuid() FROM generate_series(1, 5000) AS n")  # fmt: skip
    query("ANALYZE job")
    query("ANALYZE idempotency")
    values = {"before": now() - timedelta(days=365 * 30), "after": UUID(int=0), "limit": FIRST_BATCH}

    assert ["Index Scan using job_pkey", "Index Scan using idempotency_created"] == [
        scans(statement, values) for statement in (retention._OLD_JOBS, retention._TOKENS)
    ]


def scans(statement: retention.TextClause, values: dict[str, object]) -> str:
    """The scan of the inner query. No row is old, so that a plan without an index reads the whole table."""
    with db.begin() as session:
        plan = session.execute(retention.text("EXPLAIN " + statement.text), values).scalars()
    found = [line.strip(" ->") for line in plan if "Scan" in line]
    return min(found, key=lambda line: "Index" not in line).split("  ")[0].partition(" on ")[0]


def test_the_backlog_is_counted_up_to_a_limit(caller: Key) -> None:
    add_old_jobs(caller, 30)
    began = time.monotonic()
    with db.begin() as session:
        backlog = queue_metrics.retention_backlog(session, days=30, limit=10)

    assert (10, True) == (backlog.jobs, backlog.age_s > time.monotonic() - began)
