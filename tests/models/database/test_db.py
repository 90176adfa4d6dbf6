"""Transactions, the connection pool, and lost connections."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import psycopg
import pytest
from psycopg.errors import UniqueViolation
from sqlalchemy import text

from models.config.settings import settings
from models.database import db, large_values, pool
from models.database.pool import FifoSemaphore
from models.platform.errors import QueueFull, Unavailable
from tests.support.programs.process import until

ADD = text("INSERT INTO pool (name) VALUES (:name)")
NAMES = text("SELECT name FROM pool ORDER BY name")
CLOSE_OTHERS = text("""
    SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
""")

KEEPALIVES = ("tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count", "tcp_user_timeout")
CLIENT_KEEPALIVES = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_USER_TIMEOUT)

pytestmark = pytest.mark.usefixtures("database")


def names() -> list[str]:
    with db.begin() as session:
        return session.execute(NAMES).scalars()


def test_a_transaction_is_stored_whole() -> None:
    with db.begin() as session:
        session.execute(ADD, [{"name": "a"}, {"name": "b"}])

    assert ["a", "b"] == names()


def test_nothing_of_a_transaction_that_failed_is_stored() -> None:
    with pytest.raises(UniqueViolation), db.begin() as session:
        session.execute(ADD, {"name": "a"})
        session.execute(ADD, {"name": "a"})

    assert [] == names()


def test_nothing_of_a_step_that_broke_off_is_stored() -> None:
    with pytest.raises(ZeroDivisionError), db.begin() as session:
        session.execute(ADD, {"name": "a"})
        raise ZeroDivisionError

    assert [] == names()


def test_both_ends_of_a_connection_notice_within_half_a_minute_that_the_other_is_cut_off() -> None:
    with db.begin() as session:
        server = {name: session.execute(text(f"SHOW {name}")).scalar_one() for name in KEEPALIVES}
        with socket.socket(fileno=os.dup(session._connection.fileno())) as client:
            found = [client.getsockopt(socket.IPPROTO_TCP, option) for option in CLIENT_KEEPALIVES]

    assert {"tcp_keepalives_idle": "15", "tcp_keepalives_interval": "5", "tcp_keepalives_count": "3", "tcp_user_timeout": "30000"} == server
    assert [10, 5, 5000] == found


def test_a_single_statement_is_stored_by_itself() -> None:
    with pytest.raises(ZeroDivisionError), db.autocommit() as session:
        session.execute(ADD, {"name": "a"})
        raise ZeroDivisionError

    assert ["a"] == names()


def test_a_connection_that_stored_one_by_itself_keeps_transactions_whole_again() -> None:
    with db.autocommit() as session:
        session.execute(ADD, {"name": "a"})
    with pytest.raises(ZeroDivisionError), db.begin() as session:
        session.execute(ADD, {"name": "b"})
        raise ZeroDivisionError

    assert ["a"] == names()


def test_a_statement_may_hold_colons_and_percents() -> None:
    with db.begin() as session:
        row = session.execute(text(r"SELECT :result || '%s %(a)s \:b' AS text, '7'::integer AS number"), {"result": "%"}).one()

    assert ("%%s %(a)s :b", 7) == (row.text, row.number)


@pytest.mark.parametrize("rows", [0, 2])
def test_one_row_is_exactly_one(rows: int) -> None:
    with pytest.raises(LookupError), db.begin() as session:
        session.execute(text("SELECT n FROM generate_series(1, :rows) AS n"), {"rows": rows}).one()


def test_connections_that_the_server_closed_cost_one_error_together() -> None:
    _open_many(5)
    with db.begin() as session:
        session.execute(CLOSE_OTHERS)
    with pytest.raises(Unavailable):
        _open_many(2)

    _open_many(5)


def _open_many(connections: int) -> None:
    """So many of the pool's connections are in use at once. Raises Unavailable when any is broken."""
    together, errors = threading.Barrier(connections), list[Unavailable]()

    def use() -> None:
        try:
            with db.begin() as session:
                together.wait(10)
                session.execute(NAMES)
        except Unavailable as error:
            errors.append(error)

    users = [threading.Thread(target=use) for _ in range(connections)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    if errors:
        raise errors[0]


def test_semaphore_serves_waiters_in_order_of_arrival() -> None:
    semaphore, served = FifoSemaphore(1), list[int]()

    def ask(n: int) -> None:
        assert semaphore.acquire(30, 30)
        served.append(n)
        semaphore.release()

    assert semaphore.acquire(30, 30)
    with ThreadPoolExecutor(20) as threads:
        for n in range(20):
            threads.submit(ask, n)
            until(lambda n=n: len(semaphore._waiters) == n + 1, what="waiting")  # type: ignore[misc]  # mypy: a lambda with a default
        assert not semaphore.acquire(0, 0)
        semaphore.release()

    assert list(range(20)) == served
    assert semaphore.acquire(0, 0)


def test_interrupted_waiter_takes_no_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object, __: float) -> NoReturn:
        raise KeyboardInterrupt

    semaphore = FifoSemaphore(1)
    assert semaphore.acquire(0, 0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(threading.Event, "wait", interrupted)
        semaphore.acquire(1, 1)
    semaphore.release()

    assert semaphore.acquire(0, 0)


@pytest.mark.parametrize(("is_served", "waits_s"), [(False, 2.0), (True, 3.0)])
def test_pool_wait_is_extended_while_others_are_served(monkeypatch: pytest.MonkeyPatch, is_served: bool, waits_s: float) -> None:
    """On a fake clock: 2 s while nothing is served, or 3 s in all."""
    now = [100.0]
    semaphore = FifoSemaphore(1)
    assert semaphore.acquire(2.0, 3.0)
    # Earlier waiters, which are served first.
    semaphore._waiters.extend(threading.Event() for _ in range(9))

    def wait(_: object, seconds: float) -> bool:
        now[0] += min(1.0, seconds)
        semaphore.release(is_served=is_served)
        return False

    monkeypatch.setattr(pool.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(threading.Event, "wait", wait)

    assert not semaphore.acquire(2.0, 3.0)
    assert pytest.approx(100.0 + waits_s) == now[0]


def test_large_transfers_do_not_wait_for_one_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_values, "STALL_TIMEOUT_S", 0.2)
    came = []

    def move(*, gives_up: bool) -> None:
        with large_values.transfer_slot(large_values.FREE_BYTES + 1, gives_up=gives_up):
            came.append(gives_up)

    with ThreadPoolExecutor(2) as threads, large_values.transfer_slot(large_values.FREE_BYTES + 1):
        given_up, done = threads.submit(move, gives_up=True), threads.submit(move, gives_up=False)
        assert isinstance(given_up.exception(10), Unavailable)
        done.result(10)
    move(gives_up=True)

    assert [False, True] == came


@pytest.mark.parametrize("asks", [db.begin, db.autocommit])
def test_pool_serves_more_callers_than_connections(override: Callable[..., None], asks: Callable[[], Any]) -> None:
    override(database_pool=2)
    db.engine.cache_clear()

    def ask(_: int) -> int:
        with asks() as session:
            return int(session.execute(text("SELECT 1 FROM pg_sleep(0.01)")).scalar_one())

    with ThreadPoolExecutor(40) as threads:
        assert 40 == sum(threads.map(ask, range(40)))
    db.engine.cache_clear()


@pytest.mark.parametrize(("error", "counts"), [(QueueFull("full"), True), (Unavailable(), False)])
def test_refused_query_counts_as_served_and_a_lost_connection_does_not(
    monkeypatch: pytest.MonkeyPatch, error: Exception, counts: bool
) -> None:
    ended = list[bool]()
    release = FifoSemaphore.release
    monkeypatch.setattr(
        FifoSemaphore, "release", lambda semaphore, *, is_served: (ended.append(is_served), release(semaphore, is_served=is_served))
    )
    with pytest.raises(type(error)), db.begin():
        raise error

    assert [counts] == ended


def test_migration_under_a_running_process_costs_one_retryable_error(database: None) -> None:
    """Postgres refuses a prepared statement whose result columns changed, for the life of the connection."""
    with db.begin() as session:
        session.execute(text("CREATE TABLE widening (a int)"))
    try:
        for _ in range(8):  # psycopg prepares what it has seen five times
            assert [] == _all_of_it()
        # By another process: on its own connection psycopg would notice.
        with psycopg.connect(settings().database_url.replace("+psycopg", "")) as other:
            other.execute("ALTER TABLE widening ADD COLUMN b int")
        with pytest.raises(Unavailable):
            _all_of_it()

        assert [[]] * 8 == [_all_of_it() for _ in range(8)]
    finally:
        with db.begin() as session:
            session.execute(text("DROP TABLE widening"))


def test_query_error_is_no_outage(database: None) -> None:
    with pytest.raises(psycopg.errors.FeatureNotSupported), db.autocommit() as session:
        session.execute(text("SELECT count(*) FROM job FOR UPDATE"))


def _all_of_it() -> list[object]:
    with db.begin() as session:
        return session.execute(text("SELECT * FROM widening")).all()


def test_autocommit_keeps_the_error_that_ended_it_in_the_middle_of_a_statement(database: None) -> None:
    with pytest.raises(KeyError, match="ours"), db.autocommit() as session:
        session._connection.pgconn.send_query(b"SELECT pg_sleep(0.1)")
        raise KeyError("ours")

    with db.begin() as session:
        assert 1 == session.execute(text("SELECT 1")).scalar_one()
