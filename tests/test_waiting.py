"""Waiting for a job: answered when it ends, without holding anything meanwhile."""

from __future__ import annotations

import threading
import time

import pytest
from sqlalchemy import text

from api import waiting
from api.waiting import Hall
from models import db, line, view
from models.errors import LineFull, Unavailable
from tests.http_tools import Caller, end, error_of
from workers import wake

pytestmark = pytest.mark.usefixtures("database", "redis_client")


@pytest.fixture
def caller() -> Caller:
    return Caller()


@pytest.mark.parametrize("wait", ["-1", "x", "nan", "inf", "61", "1e1", "", "0x1", "1_0"])
def test_a_wait_is_a_number_in_range(caller: Caller, wait: str) -> None:
    answer = caller.get(f"/v1/jobs/{caller.submit()}?wait={wait}")

    assert (400, "wait") == (answer.status_code, error_of(answer)["param"])


def test_an_ended_job_is_not_waited_for(caller: Caller) -> None:
    name = caller.submit()
    end(caller, name)
    began = time.monotonic()

    assert "succeeded" == caller.get(f"/v1/jobs/{name}?wait=30").json["status"]
    assert time.monotonic() - began < 1


def test_a_wait_ends_with_its_time(caller: Caller) -> None:
    name = caller.submit()
    began = time.monotonic()

    assert "queued" == caller.get(f"/v1/jobs/{name}?wait=0.3").json["status"]
    assert 0.3 <= time.monotonic() - began < 1


def test_a_wait_ends_soon_after_the_job(caller: Caller) -> None:
    name = caller.submit()
    ended: list[float] = []

    def finish() -> None:
        time.sleep(0.5)
        end(caller, name)
        wake.job(view.parse_id(name), "succeeded")
        ended.append(time.monotonic())

    mover = threading.Thread(target=finish)
    mover.start()
    answer = caller.get(f"/v1/jobs/{name}?wait=20")
    mover.join()

    assert "succeeded" == answer.json["status"]
    assert time.monotonic() - ended[0] < 0.5


def test_nothing_of_the_database_is_held_while_waiting(caller: Caller) -> None:
    name = caller.submit()
    waiter = threading.Thread(target=lambda: caller.get(f"/v1/jobs/{name}?wait=1"))
    waiter.start()
    time.sleep(0.4)

    with db.begin() as session:
        held = session.execute(
            text(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'nowserving' AND xact_start IS NOT NULL "
                "AND pid <> pg_backend_pid()"
            )
        ).scalar_one()
    out = db.engine().pool.checkedout()  # type: ignore[attr-defined]  # the queue pool's
    waiter.join()
    assert (0, 0) == (held, out)


def test_a_wake_up_reaches_all_who_wait_for_that_job() -> None:
    hall, mine, other = Hall(), line.new_id(), line.new_id()

    with hall.wait_for(mine) as first, hall.wait_for(mine) as second, hall.wait_for(other) as third:
        for _ in range(50):
            wake.job(mine, "succeeded")
            if first.wait(0.1):
                break
        assert second.wait(1)
        assert not third.is_set()
    hall.close()


def test_many_waiters_share_one_thread() -> None:
    hall, before = Hall(), threading.active_count()
    rooms = [hall.wait_for(line.new_id()) for _ in range(waiting.WAITERS_MOST)]
    for room in rooms:
        room.__enter__()

    assert 1 == threading.active_count() - before
    with pytest.raises(Unavailable), hall.wait_for(line.new_id()):
        pass
    for room in rooms:
        room.__exit__(None, None, None)
    hall.close()


def test_a_process_has_only_so_many_streams() -> None:
    hall = Hall()
    for n in range(waiting.STREAMS_MOST):
        hall.open_stream(n)

    with pytest.raises(Unavailable):
        hall.open_stream(1)


def test_a_key_has_only_so_many_streams() -> None:
    hall = Hall()
    for _ in range(waiting.STREAMS_OF_A_KEY_MOST):
        hall.open_stream(7)

    with pytest.raises(LineFull):
        hall.open_stream(7)


def test_who_waits_is_let_go_when_the_process_ends() -> None:
    hall = Hall()

    with hall.wait_for(line.new_id()) as woken:
        hall.close()
        assert woken.is_set()
