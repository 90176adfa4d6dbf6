"""The time that a reader is away counts only while an API process could have taken its client back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from uuid import UUID, uuid4

import pytest
import redis

from api.server.heartbeat import Heartbeat
from api.waiting.disconnects import record_now
from models.database import db
from models.jobs import api_processes
from models.keys.keys import Key
from models.platform.errors import Unavailable
from tests.support.queue_tools import known, pass_time, query, report, row, submit
from workers.limiter.limiter import Limiter
from workers.pacer.reaper import Reaper
from workers.pacer.wakeups import Wakeups

pytestmark = pytest.mark.usefixtures("database")
AFTER_S = 900
# The machine may be slow: what is to happen within AFTER_S is looked at this much earlier.
MARGIN_S = 300


@pytest.fixture
def caller(database: None, override: Callable[..., None]) -> Key:
    override(abandoned_after_s=AFTER_S)
    return known()


@pytest.fixture
def sweep(redis_client: redis.Redis) -> Callable[[], None]:
    """One pass of a pacer that has just started: what it has to know is in Postgres."""
    return lambda: Reaper(limiter=Limiter(redis_client), wakeups=Wakeups()).step(now=0)


@pytest.fixture
def is_cancelled(caller: Key, sweep: Callable[[], None]) -> Callable[[UUID], bool]:
    """Whether this job is cancelled, after a pass of the sweep."""

    def look(job_id: UUID) -> bool:
        sweep()
        return bool(row(job_id).status == "cancelled")

    return look


def left(caller: Key) -> UUID:
    """A job whose reader has just left."""
    who = uuid4()
    job_id = submit(caller, reader=who)
    record_now(job_id, who)
    return job_id


def test_readers_are_not_given_up_while_all_api_processes_are_away(caller: Key, is_cancelled: Callable[[UUID], bool]) -> None:
    pass_time(2 * AFTER_S, "a", "b")
    job_id = left(caller)

    pass_time(2 * AFTER_S)
    assert not is_cancelled(job_id)

    pass_time(AFTER_S - MARGIN_S, "c")
    assert not is_cancelled(job_id)
    pass_time(MARGIN_S, "c")
    assert is_cancelled(job_id)


def test_time_while_postgres_was_away_does_not_count(caller: Key, is_cancelled: Callable[[UUID], bool]) -> None:
    pass_time(2 * AFTER_S, "a")
    job_id = left(caller)

    # The processes lived on, and could not report, take a retry or write that a reader left.
    pass_time(2 * AFTER_S)
    report("a")
    assert not is_cancelled(job_id)

    pass_time(AFTER_S, "a")
    assert is_cancelled(job_id)


def test_a_reader_could_have_come_back_to_the_other_of_two_hosts(caller: Key, is_cancelled: Callable[[UUID], bool]) -> None:
    pass_time(2 * AFTER_S, "a", "b")
    job_id = left(caller)
    pass_time(AFTER_S - MARGIN_S, "b")
    assert not is_cancelled(job_id)

    pass_time(MARGIN_S, "b")

    assert is_cancelled(job_id)


def test_time_without_a_pacer_counts(caller: Key, is_cancelled: Callable[[UUID], bool]) -> None:
    pass_time(2 * AFTER_S, "a")
    job_id = left(caller)

    pass_time(2 * AFTER_S, "a")

    assert is_cancelled(job_id)


def test_a_pacer_that_was_away_with_all_api_processes_gives_readers_their_time(caller: Key, is_cancelled: Callable[[UUID], bool]) -> None:
    pass_time(2 * AFTER_S, "a")
    job_id = left(caller)

    pass_time(2 * AFTER_S)
    pass_time(MARGIN_S, "b")

    assert not is_cancelled(job_id)


def test_processes_that_come_and_go_never_give_a_reader_up(caller: Key, is_cancelled: Callable[[UUID], bool]) -> None:
    job_id = left(caller)
    for n in range(6):
        pass_time(AFTER_S - MARGIN_S, f"process {n}")
        pass_time(2 * api_processes.SILENT_S)

        assert not is_cancelled(job_id)


def test_no_waiter_is_abandoned_before_any_heartbeat(caller: Key, is_cancelled: Callable[[UUID], bool]) -> None:
    job_id = left(caller)

    pass_time(3600)

    assert not is_cancelled(job_id)


# Heartbeats


def up_s(name: str) -> float:
    """How long this process has been up without a break."""
    return float(query("SELECT extract(epoch FROM clock_timestamp() - up_since) AS s FROM api_process WHERE name = :name", name=name)[0].s)


def test_a_silence_begins_the_time_of_a_process_anew() -> None:
    report("a")
    query("UPDATE api_process SET up_since = up_since - interval '1 h'")
    report("a")
    assert up_s("a") >= 3600

    pass_time(2 * api_processes.SILENT_S)
    report("a")

    assert up_s("a") < 3600


def test_a_process_reports_only_while_it_is_ready() -> None:
    missing = ["pacer"]
    beat = Heartbeat(missing=lambda: missing)
    beat.step()
    assert not query("SELECT FROM api_process")

    missing.clear()
    beat.step()

    assert 1 == len(query("SELECT FROM api_process"))


def test_a_process_that_stops_signs_off() -> None:
    looks = iter([True, True, False])

    def is_up() -> bool:
        if not next(looks):
            assert 1 == len(query("SELECT FROM api_process"))
            return False
        return True

    Heartbeat(missing=lambda: ()).run(is_up)

    assert not query("SELECT FROM api_process")


def test_an_error_in_one_heartbeat_does_not_stop_the_next() -> None:
    errors: Iterator[Exception] = iter([Unavailable(), ValueError()])

    def missing() -> tuple[str, ...]:
        if (error := next(errors, None)) is not None:
            raise error
        return ()

    beat = Heartbeat(missing=missing)
    for _ in range(3):
        beat.step()

    assert 1 == len(query("SELECT FROM api_process"))


def test_killed_processes_are_forgotten() -> None:
    report("a")
    pass_time(400)
    report("b")

    with db.begin() as session:
        api_processes.remove_silent(session, unseen_s=300)

    assert ["b"] == [one.name for one in query("SELECT name FROM api_process")]
