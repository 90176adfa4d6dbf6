"""Levers on a running stack: how soon they are obeyed, and that nothing that runs or waits is lost by it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from models.access import operators
from models.database import db
from models.keys import keys
from models.keys.keys import Key, Limits
from tests.support.http_tools import Caller
from tests.support.programs import processes
from tests.support.programs.live_jobs import ask, caller, wait_ended
from tests.support.programs.process import until
from tests.support.programs.processes import Stack
from tests.support.queue_tools import query

OBEYED_S = 0.1


@pytest.fixture(scope="module")
def stack(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with processes.running(tmp_path_factory.mktemp("stack"), retry_base_s=0.05, pause_s=0.3) as made:
        made.pacer()
        made.worker(threads=16)
        yield made


@pytest.fixture
def ops(stack: Stack) -> Caller:
    stack.upstream.reset()
    with db.begin() as session:
        return Caller(operators.create(session, f"operator {time.monotonic_ns()}", role="write"))


def pull(ops: Caller, path: str, **said: Any) -> None:
    made = ops.post(f"/ops/{path}", said)
    assert made.status_code < 300, made.text


def started(who: Key) -> int:
    return int(query("SELECT count(*) AS n FROM job WHERE key_id = :id AND started_at IS NOT NULL", id=who.id)[0].n)


def test_a_pause_while_two_hundred_wait_is_obeyed_at_once_and_loses_nothing(stack: Stack, ops: Caller) -> None:
    who = caller("sk-pause", max_in_flight=8)
    stack.upstream.behave("sk-pause", delay=0.2)
    jobs = [ask(who, f"n{n}") for n in range(200)]
    until(lambda: started(who) >= 16, what="at work")
    pull(ops, f"pools/{who.pool_id}/pause", reason="the bill")
    paused_at = query("SELECT paused_at FROM pool WHERE id = :id", id=who.pool_id)[0].paused_at
    until(lambda: not query("SELECT 1 FROM job WHERE key_id = :id AND status IN ('admitted', 'running')", id=who.id), what="ended")
    after = started(who)
    late = query(
        "SELECT count(*) AS n FROM job WHERE key_id = :id AND admitted_at > CAST(:at AS timestamptz) + make_interval(secs => :s)",
        id=who.id, at=paused_at, s=OBEYED_S,
    )  # fmt: skip
    statuses = {one.status for one in query("SELECT DISTINCT status FROM job WHERE key_id = :id", id=who.id)}

    assert {"succeeded", "queued"} == statuses, "what ran ended, what waited waits"
    assert 0 == late[0].n
    with pytest.raises(TimeoutError):
        until(lambda: started(who) > after, what="started while paused", within_s=1.5)
    pull(ops, f"pools/{who.pool_id}/resume")
    assert {"succeeded"} == {one.status for one in wait_ended(jobs, stack=stack)}
    admitted = [one.id for one in query("SELECT id FROM job WHERE key_id = :id ORDER BY admitted_at, start_tag, id", id=who.id)]
    assert jobs == admitted, "the order is kept"


def test_a_limit_that_was_changed_is_obeyed_by_the_next_admission(stack: Stack, ops: Caller) -> None:
    who = caller("sk-limit", max_in_flight=1)
    stack.upstream.behave("sk-limit", delay=0.5)
    jobs = [ask(who, f"n{n}") for n in range(24)]
    until(lambda: started(who) >= 1, what="at work")
    (credential,) = query("SELECT id FROM credential WHERE pool_id = :id", id=who.pool_id)
    pull(ops, f"credentials/{credential.id}/limits", max_in_flight=8)
    flying = "SELECT count(*) AS n FROM job WHERE key_id = :id AND status IN ('admitted', 'running')"

    until(lambda: query(flying, id=who.id)[0].n == 8, what="eight at a time", every_s=0.01)
    assert {"succeeded"} == {one.status for one in wait_ended(jobs, stack=stack)}


def test_jobs_of_a_parked_credential_move_to_the_next(stack: Stack, ops: Caller) -> None:
    with db.begin() as session:
        pool_id = keys.create_pool(session, "team")
        numbers = [keys.add_credential(session, pool_id=pool_id, upstream_key=token) for token in ("sk-bad", "sk-good")]
        for number in numbers:
            keys.set_limits(session, number, Limits(max_in_flight=4))
        who, _ = keys.issue(session, name="ann", pool="team")
    stack.upstream.behave("sk-bad", status=401)
    jobs = [ask(who, f"n{n}") for n in range(20)]

    assert {"succeeded"} == {one.status for one in wait_ended(jobs, stack=stack)}
    parked = {one.id: one.parked_at is not None for one in query("SELECT id, parked_at FROM credential WHERE pool_id = :id", id=pool_id)}
    assert {numbers[0]: True, numbers[1]: False} == parked
    stack.upstream.behave("sk-bad")
    pull(ops, f"credentials/{numbers[0]}/resume")
    pull(ops, f"credentials/{numbers[1]}/pause")
    again = [ask(who, f"m{n}") for n in range(5)]
    assert {numbers[0]} == {one.credential_id for one in wait_ended(again, stack=stack)}


def test_a_line_is_rebuilt_while_it_moves(stack: Stack, ops: Caller) -> None:
    who = caller("sk-rebuild", max_in_flight=4)
    stack.upstream.behave("sk-rebuild", delay=0.1)
    jobs = [ask(who, f"n{n}") for n in range(30)]
    lane_id = query("SELECT id FROM lane WHERE pool_id = :id", id=who.pool_id)[0].id
    until(lambda: started(who) >= 4, what="at work")
    pull(ops, f"lanes/{lane_id}/rebuild")

    assert {"succeeded"} == {one.status for one in wait_ended(jobs, stack=stack)}
