"""Bulk cancels, expiry, deletion and ends of turns at the same time: no two transactions wait for each other."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text

from models.access.audit_log import Act
from models.database import db
from models.jobs import cancellation, completion
from models.keys.keys import Key
from models.ops import bulk, priorities
from models.ops.bulk import JobFilter
from models.platform.errors import WrongState
from models.queue import admission
from models.sessions import deletion
from tests.support.http_tools import Caller
from tests.support.programs.process import until
from tests.support.queue_tools import at_once, credential_of, finish, known, query, start, submit

pytestmark = pytest.mark.usefixtures("database")
TALKS = 30


@pytest.fixture
def caller() -> Key:
    return known()


def purge_all(user: str) -> int:
    """Cancels as the route does; raises Unavailable if Postgres ends a deadlock."""
    total = 0
    while True:
        with db.begin() as session:
            done = bulk.cancel_batch(session, Act(), JobFilter(user=user))
        total += len(done)
        if not done:
            return total


def expire_all() -> None:
    for _ in range(20):
        with db.begin() as session:
            cancellation.expire(session)


def statuses() -> set[str]:
    return {row.status for row in query("SELECT DISTINCT status FROM job")}


def crossed(caller: Key, number: int) -> None:
    """Conversations of two users: in one half, one user's turn is held behind the other's; in the other half, the reverse."""
    for first, second in (("ann", "bob"), ("bob", "ann")):
        for n in range(number):
            for user in (first, second, first, second):
                submit(caller, flow=user, conversation=f"{first} {n}")


def test_bulk_cancels_of_two_users_with_shared_conversations_do_not_deadlock(caller: Key) -> None:
    crossed(caller, TALKS)
    done = at_once(lambda: purge_all("ann"), lambda: purge_all("bob"))

    assert 8 * TALKS == sum(done)
    assert {"cancelled"} == statuses()


def test_bulk_cancels_and_expiry_do_not_deadlock(caller: Key) -> None:
    crossed(caller, TALKS)
    query("UPDATE job SET expires_at = now() - interval '1 s' WHERE flow = 'bob'")
    at_once(lambda: purge_all("ann"), expire_all, expire_all)

    assert {"cancelled", "expired"} == statuses()


def test_cancels_expiry_deletes_submits_and_ends_of_turns_do_not_deadlock(caller: Key) -> None:
    crossed(caller, TALKS)
    running = []
    for n in range(10):
        first = submit(caller, flow="cid", conversation=f"running {n}")
        running.append((first, start(caller, first)))
        for user in ("ann", "bob"):
            submit(caller, flow=user, conversation=f"running {n}")
    query("UPDATE job SET expires_at = now() - interval '1 s' WHERE flow = 'bob' AND id::text < (SELECT max(id::text) FROM job)")

    def end_turns() -> None:
        for job_id, dispatch_id in running:
            assert finish(job_id, dispatch_id)

    def submit_more() -> None:
        for n in range(10):
            submit(caller, flow="ann", conversation=f"running {n}")

    def delete() -> None:
        http = Caller("sk-test")
        for n in range(10):
            assert 200 == http.send("DELETE", f"/v1/sessions/ann {n}").status_code

    works: list[Callable[[], Any]] = [
        lambda: purge_all("ann"), lambda: purge_all("ann"), lambda: purge_all("bob"), expire_all, expire_all, end_turns, submit_more, delete
    ]  # fmt: skip
    at_once(*works)
    purge_all("ann")

    assert statuses() <= {"cancelled", "expired", "succeeded"}


def test_deleting_a_session_erases_its_own_rows_only(caller: Key) -> None:
    """The rows of another key's large deleted session are left to the cleanup thread."""
    other = known("sk-other")
    for n in range(3):
        finish_job(other, f"turn {n}")
    with db.begin() as session:
        deletion.mark_deleted(session, other.id, "large")
    mine = Caller("sk-test")
    submit(caller, conversation="mine")
    answer = mine.send("DELETE", "/v1/sessions/mine")

    assert 200 == answer.status_code
    assert 3 == len(query("SELECT id FROM job WHERE key_id = :id AND length(request) > 0", id=other.id))
    assert ["large"] == [row.name for row in query("SELECT name FROM conversation")]


def test_submit_to_a_dormant_lane_and_maintenance_lock_in_the_same_order(caller: Key) -> None:
    """Both lock shares before the lane."""
    one = submit(caller)
    assert finish(one, start(caller, one))
    query("UPDATE lane SET wake_at = NULL, idle_since = now() - interval '25 s'")
    query("UPDATE key_share SET idle_since = now() - interval '25 s'")
    with ThreadPoolExecutor(1) as threads, db.begin() as session:
        session.execute(text("SELECT FROM key_share FOR UPDATE"))
        submitted = threads.submit(submit, caller)
        until_one_waits()
        session.execute(text("UPDATE lane SET usual_s = 1"))
    assert submitted.result()


@pytest.mark.parametrize("how", ["cancel", "expire", "refuse"])
def test_turn_ends_without_a_call_while_the_next_one_is_submitted(caller: Key, how: str) -> None:
    """A submit locks the conversation before the user's row."""
    one = submit(caller, conversation="talk")
    query("UPDATE job SET expires_at = now() - interval '1 s'")

    def end() -> Any:
        with db.begin() as session:
            return {
                "cancel": lambda: cancellation.cancel(session, one, caller.id), "expire": lambda: cancellation.expire(session),
                "refuse": lambda: completion.fail_queued(session, one, error={}),
            }[how]()  # fmt: skip

    with ThreadPoolExecutor(1) as threads, db.begin() as session:
        session.execute(text("SELECT FROM conversation FOR UPDATE"))
        ended = threads.submit(end)
        until_one_waits()
        session.execute(text("SELECT FROM key_flow FOR UPDATE"))
    assert ended.result()
    assert [(0,)] == query("SELECT last_finish FROM key_flow")


def test_priority_changes_while_the_pacer_admits_the_user(caller: Key) -> None:
    first, last = submit(caller), submit(caller)

    def prioritise() -> int:
        with db.begin() as session:
            return priorities.set_priority(session, Act(), last, priority="high")

    with ThreadPoolExecutor(1) as threads, db.begin() as session:
        admission.admit(session, [admission.Admission(first, uuid4(), credential_of(session, caller))])
        moved = threads.submit(prioritise)
        until_one_waits()
        admission.admit(session, [admission.Admission(last, uuid4(), credential_of(session, caller))])
    with pytest.raises(WrongState):
        moved.result()


def until_one_waits() -> None:
    until(lambda: bool(query("SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'")), what="a transaction that waits")


def finish_job(caller: Key, text: str) -> None:
    job_id = submit(caller, conversation="large", request=text.encode())
    assert finish(job_id, start(caller, job_id))
