"""Scale suite: compares the time of a pacer step, a submit and a position with few and with very many waiting jobs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from uuid import UUID

from sqlalchemy import text

from bench.measure.figure import Figure, at_most, quantile, reported
from bench.measure.stack import MODEL, Stack
from models.database import db
from models.jobs import workers
from models.keys.keys import Key, Limits
from models.queue import enqueue, lanes, position, position_index, submission
from models.queue.lane_maintenance import LONG_LANE
from models.queue.submission import Submission
from workers.broker.publish import TaskMessage
from workers.channels import notify
from workers.limiter.limiter import Limiter
from workers.limiter.requests import CredentialModel, Report
from workers.pacer.step import Pacer
from workers.pacer.wakeups import Wakeups

TITLE = "Scale"
FEW = 1_000
RATIO_MOST = 2.0
SLOTS = 16
FLOWS = 1_000
# Of each pool.
KEYS = 10
BODY = b'{"model": "gpt-4o-mini", "max_tokens": 100, "messages": [{"role": "user", "content": "Say hello."}]}'


@dataclass(frozen=True)
class Taken:
    """Milliseconds, the median of many."""

    step: float
    submit: float = 0.0
    position: float = 0.0


class RecordingPublisher:
    """A publisher that only records its messages."""

    def __init__(self) -> None:
        self.published: list[tuple[UUID, UUID]] = []

    def publish(self, messages: Sequence[TaskMessage]) -> bool:
        self.published += [(message.number, message.ticket) for message in messages]
        return True


def run(stack: Stack, *, short: bool) -> list[Figure]:
    """Runs the pacer's own code with the real limiter in this process; only Celery is left out."""
    stack.halt()
    many, lanes = (100_000, 2_000) if short else (1_000_000, 10_000)
    few = one_lane(stack, FEW)
    full = one_lane(stack, many)
    thin, wide = many_lanes(stack, FEW, jobs=FEW), many_lanes(stack, lanes, jobs=lanes)
    empty(stack)
    return [
        _ratio(f"admission step, {many:,} waiting against {FEW:,}", full, few, note=f"{SLOTS} jobs a step"),
        _ratio(f"admission step, {lanes:,} lanes against {FEW:,}", wide, thin, note=f"1 job a lane, {SLOTS} a step"),
        reported(f"submit into a queue of {many:,}", f"{full.submit:.1f} ms", note=f"{few.submit:.1f} ms into one of {FEW:,}; in process"),
        reported(
            f"position of the last job of {many:,}", f"{full.position:.1f} ms", note=f"{few.position:.1f} ms of {FEW:,}; counted to 10,000"
        ),
    ]


def one_lane(stack: Stack, jobs: int) -> Taken:
    """Measures with this many jobs waiting in one lane."""
    empty(stack)
    _make_pools(stack, 1)
    _fill(stack, jobs, lanes=1)
    pool = stack.ask("SELECT max(id) FROM pool")
    caller = Key(id=stack.ask("SELECT max(id) FROM key"), pool_id=pool, kind="own")
    step = _steps(stack)
    _swept(jobs)
    submit = _median(lambda: _submit(caller))
    _swept(jobs)
    return Taken(step=step, submit=submit, position=_median(_position_of(_last())))


def many_lanes(stack: Stack, lanes: int, *, jobs: int) -> Taken:
    """Measures the step alone, with the jobs in this many lanes, each of a pool of its own."""
    empty(stack)
    _make_pools(stack, lanes)
    _fill(stack, jobs, lanes=lanes)
    return Taken(step=_steps(stack))


def empty(stack: Stack) -> None:
    """Deletes all jobs, keys and lanes, and all keys in Redis."""
    stack.do(
        "TRUNCATE job, job_event, attempt, usage, key_flow, key_share, key_milestones, lane, meter, credential, "
        " pool, key, conversation, worker CASCADE"
    )
    lanes.id_of.cache_clear()
    with stack.redis() as client:
        client.flushdb()


def _ratio(what: str, many: Taken, few: Taken, *, note: str) -> Figure:
    return at_most(what, many.step / few.step, RATIO_MOST, unit="times", note=f"{many.step:.1f} ms against {few.step:.1f} ms, {note}")


def _steps(stack: Stack, *, times: int = 25) -> float:
    """The median step, in ms. Between steps the admitted jobs end, as if they had been answered at once."""
    limiter, publisher, took = Limiter(notify.client()), RecordingPublisher(), []
    pacer = Pacer(limiter=limiter, publisher=publisher, wakeups=Wakeups())
    for _ in range(times):
        with db.begin() as session:
            workers.record_heartbeat(session, "bench", slots=SLOTS)
            session.execute(text("UPDATE lane SET wake_at = now() - interval '1 s', claimed_until = NULL WHERE wake_at > now()"))
        began = time.perf_counter()
        pacer.step()
        took.append(time.perf_counter() - began)
        _end_all(stack, limiter, publisher)
    assert len(publisher.published) == 0
    return quantile(took[5:], 0.5) * 1000


def _end_all(stack: Stack, limiter: Limiter, publisher: RecordingPublisher) -> None:
    assert len(publisher.published) == SLOTS, f"{len(publisher.published)} of {SLOTS} jobs were admitted"
    with db.begin() as session:
        ended = text(
            "UPDATE job SET status = 'succeeded', ended_at = now() WHERE status = 'admitted' RETURNING dispatch_id, credential_id, model"
        )
        for row in session.execute(ended).all():
            limiter.release(CredentialModel(row.credential_id, row.model), str(row.dispatch_id), Report(good=True))
    publisher.published.clear()


def _median(measured: Callable[[], None], *, times: int = 30) -> float:
    took = []
    for _ in range(times):
        began = time.perf_counter()
        measured()
        took.append(time.perf_counter() - began)
    return quantile(took, 0.5) * 1000


def _swept(jobs: int) -> None:
    """Rebuilds the checkpoints of the one lane, as the sweep would do, which does not run here."""
    if jobs >= LONG_LANE:
        with db.begin() as session:
            position_index.rebuild_checkpoints(session, session.execute(text("SELECT id FROM lane")).scalar_one())


def _submit(caller: Key) -> None:
    order = Submission(key=caller, endpoint="/v1/chat/completions", model=MODEL, request=BODY, flow="late", tokens=110, expires_in_s=1e9)
    with db.autocommit() as session:
        lane_id = lanes.id_of(caller.pool_id, MODEL)
        assert enqueue.enqueue_fast(session, order, lane_id=lane_id, job_id=submission.new_job_id()) is not None


def _last() -> SimpleNamespace:
    with db.begin() as session:
        return SimpleNamespace(**session.execute(_LAST).one()._asdict())


def _position_of(job: SimpleNamespace) -> Callable[[], None]:
    def look() -> None:
        with db.begin() as session:
            position.position_of(session, job)

    return look


def _make_pools(stack: Stack, pools: int) -> None:
    """Creates pools, each with one credential, one lane, and the limiter's state for it, as after its first job."""
    stack.do("INSERT INTO pool (name) SELECT 'bench' || n FROM generate_series(1, :pools) AS n", pools=pools)
    stack.do("INSERT INTO credential (pool_id, secret) SELECT id, '' FROM pool")
    stack.do("INSERT INTO lane (pool_id, model, wake_at) SELECT id, :model, now() FROM pool", model=MODEL)
    stack.do(
        "INSERT INTO key (fingerprint, kind, pool_id) "
        "SELECT convert_to(pool.id || '-' || n, 'UTF8'), 'issued', pool.id FROM pool, generate_series(1, :keys) AS n",
        keys=KEYS,
    )
    stack.do("INSERT INTO key_share (lane_id, key_id, last_finish, virtual_time) "
             "SELECT lane.id, key.id, 0, 0 FROM lane JOIN key ON key.pool_id = lane.pool_id")  # fmt: skip
    limiter = Limiter(notify.client())
    with db.begin() as session:
        for row in session.execute(text("SELECT id FROM credential")):
            limiter.init(CredentialModel(row.id, MODEL), Limits(max_in_flight=1_000))


def _fill(stack: Stack, jobs: int, *, lanes: int) -> None:
    """Jobs as `enqueue_job` would insert them, in turn over the lanes, and in each over FLOWS flows."""
    with _in_order(stack):
        stack.do(_JOBS, jobs=jobs, lanes=lanes, flows=FLOWS, keys=KEYS, body=BODY, model=MODEL)


@contextmanager
def _in_order(stack: Stack) -> Iterator[None]:
    """Vacuums the tables after the block, as the autovacuum does."""
    yield
    with db.engine().connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text("VACUUM ANALYZE job, lane, key, key_share"))


_JOBS = """
    WITH numbered AS (SELECT id, pool_id, row_number() OVER (ORDER BY id) - 1 AS place FROM lane),
    keys AS (SELECT id, pool_id, row_number() OVER (PARTITION BY pool_id ORDER BY id) - 1 AS place FROM key)
    INSERT INTO job (id, key_id, lane_id, status, held, flow, priority, start_tag, share, cost, tokens, images, endpoint, model,
                     request, timeout_s, on_lost, created_at, expires_at, max_attempts)
    SELECT uuidv7(), keys.id, numbered.id, 'queued', false, 'flow' || (n / :lanes % :flows), 'normal', n / :lanes / :flows * 27.5,
           27.5, 110, 110, 0, '/v1/chat/completions', :model, :body, 600, 'retry', now(), now() + interval '1 day', 4
    FROM generate_series(0, CAST(:jobs AS integer) - 1) AS n JOIN numbered ON numbered.place = n % :lanes
    JOIN keys ON keys.pool_id = numbered.pool_id AND keys.place = n / :lanes % :keys
"""
_LAST = text("""
    SELECT id, lane_id, key_id, start_tag, status, held, conversation_id, not_before, turn FROM job
    WHERE status = 'queued' ORDER BY lane_id DESC, start_tag DESC, id DESC LIMIT 1
""")
