"""Operator actions on a running stack: how soon they apply, and that they lose no running or waiting job."""

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
from tests.support.queue_tools import query, store_limits

APPLIED_WITHIN_S = 0.1


@pytest.fixture(scope="module")
def stack(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with processes.running(tmp_path_factory.mktemp("stack"), retry_base_s=0.05, pause_s=0.3) as stack:
        stack.pacer()
        stack.worker(threads=16)
        yield stack


@pytest.fixture
def ops(stack: Stack) -> Caller:
    stack.upstream.reset()
    with db.begin() as session:
        return Caller(operators.create(session, f"operator {time.monotonic_ns()}", role="write"))


def act(ops: Caller, path: str, **params: Any) -> None:
    response = ops.post(f"/ops/{path}", params)
    assert response.status_code < 300, response.text


def started(key: Key) -> int:
    return int(query("SELECT count(*) AS n FROM job WHERE key_id = :id AND started_at IS NOT NULL", id=key.id)[0].n)


def test_pause_with_200_waiting_jobs_applies_at_once_and_loses_none(stack: Stack, ops: Caller) -> None:
    key = caller("sk-pause", max_in_flight=8)
    stack.upstream.behave("sk-pause", delay=0.2)
    jobs = [ask(key, f"n{n}") for n in range(200)]
    until(lambda: started(key) >= 16, what="jobs running")
    act(ops, f"pools/{key.pool_id}/pause", reason="the bill")
    paused_at = query("SELECT paused_at FROM pool WHERE id = :id", id=key.pool_id)[0].paused_at
    until(lambda: not query("SELECT 1 FROM job WHERE key_id = :id AND status IN ('admitted', 'running')", id=key.id), what="ended")
    after = started(key)
    late = query(
        "SELECT count(*) AS n FROM job WHERE key_id = :id AND admitted_at > CAST(:at AS timestamptz) + make_interval(secs => :s)",
        id=key.id, at=paused_at, s=APPLIED_WITHIN_S,
    )  # fmt: skip
    statuses = {row.status for row in query("SELECT DISTINCT status FROM job WHERE key_id = :id", id=key.id)}

    assert {"succeeded", "queued"} == statuses, "what ran ended, what waited waits"
    assert 0 == late[0].n
    with pytest.raises(TimeoutError):
        until(lambda: started(key) > after, what="started while paused", within_s=1.5)
    act(ops, f"pools/{key.pool_id}/resume")
    assert {"succeeded"} == {row.status for row in wait_ended(jobs, stack=stack)}
    admitted = [row.id for row in query("SELECT id FROM job WHERE key_id = :id ORDER BY admitted_at, start_tag, id", id=key.id)]
    assert jobs == admitted, "the order is kept"


def test_changed_limit_applies_to_the_next_admission(stack: Stack, ops: Caller) -> None:
    key = caller("sk-limit", max_in_flight=1)
    stack.upstream.behave("sk-limit", delay=0.5)
    jobs = [ask(key, f"n{n}") for n in range(24)]
    until(lambda: started(key) >= 1, what="jobs running")
    (credential,) = query("SELECT id FROM credential WHERE pool_id = :id", id=key.pool_id)
    act(ops, f"credentials/{credential.id}/limits", max_in_flight=8)
    in_flight = "SELECT count(*) AS n FROM job WHERE key_id = :id AND status IN ('admitted', 'running')"

    until(lambda: query(in_flight, id=key.id)[0].n == 8, what="eight at a time", every_s=0.01)
    assert {"succeeded"} == {row.status for row in wait_ended(jobs, stack=stack)}


def test_jobs_of_a_parked_credential_move_to_the_next(stack: Stack, ops: Caller) -> None:
    with db.begin() as session:
        pool_id = keys.create_pool(session, "team")
        credential_ids = [keys.add_credential(session, pool_id=pool_id, upstream_key=token) for token in ("sk-bad", "sk-good")]
        for credential_id in credential_ids:
            store_limits(session, credential_id, Limits(max_in_flight=4))
        key, _ = keys.issue(session, name="ann", pool="team")
    stack.upstream.behave("sk-bad", status=401)
    jobs = [ask(key, f"n{n}") for n in range(20)]

    assert {"succeeded"} == {row.status for row in wait_ended(jobs, stack=stack)}
    parked = {row.id: row.parked_at is not None for row in query("SELECT id, parked_at FROM credential WHERE pool_id = :id", id=pool_id)}
    assert {credential_ids[0]: True, credential_ids[1]: False} == parked
    stack.upstream.behave("sk-bad")
    act(ops, f"credentials/{credential_ids[0]}/resume")
    act(ops, f"credentials/{credential_ids[1]}/pause")
    moved = [ask(key, f"m{n}") for n in range(5)]
    assert {credential_ids[0]} == {row.credential_id for row in wait_ended(moved, stack=stack)}


def test_lane_can_be_rebuilt_while_its_jobs_run(stack: Stack, ops: Caller) -> None:
    key = caller("sk-rebuild", max_in_flight=4)
    stack.upstream.behave("sk-rebuild", delay=0.1)
    jobs = [ask(key, f"n{n}") for n in range(30)]
    lane_id = query("SELECT id FROM lane WHERE pool_id = :id", id=key.pool_id)[0].id
    until(lambda: started(key) >= 4, what="jobs running")
    act(ops, f"lanes/{lane_id}/rebuild")

    assert {"succeeded"} == {row.status for row in wait_ended(jobs, stack=stack)}
