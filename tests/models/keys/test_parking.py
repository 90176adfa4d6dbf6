"""Pools that the upstream refuses: probes, the status shown to waiting jobs, and failures of callers on an open connection."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID, uuid4

import pytest
import redis

from api.openai import sse_frames
from models.database import db
from models.jobs import job_rows, job_view
from models.jobs.states import Status
from models.keys import parking
from models.keys.keys import Key
from models.platform import wire
from models.queue import position
from tests.support.http_tools import Caller
from tests.support.programs.in_process import InProcessStack, ask, mark_issued, pool_of
from tests.support.queue_tools import query, row
from tests.upstream.client import FakeUpstream, upstream
from workers.pacer.reaper import Reaper
from workers.pacer.wakeups import Wakeups

__all__ = ["upstream"]
pytestmark = pytest.mark.usefixtures("database")

MONEY = {"status": 429, "kind": "quota"}


@pytest.fixture
def workshop(redis_client: redis.Redis, upstream: FakeUpstream, override: Callable[..., None]) -> InProcessStack:
    override(pause_s=0.05, pause_most_s=0.5, retry_base_s=0.02, probe_s=600, parked_most_s=600)
    return InProcessStack(redis_client, upstream)


@pytest.fixture
def caller(upstream: FakeUpstream) -> Key:
    made, _ = pool_of(upstream, "sk-parked")
    mark_issued(made)
    return made


def held(caller: Key, result: str = "held") -> UUID:
    """A job whose caller waits on a connection."""
    return ask(caller, result, reader=uuid4(), fingerprint=uuid4().bytes)


def park(workshop: InProcessStack, upstream: FakeUpstream, caller: Key, how: dict[str, object], *jobs: UUID) -> None:
    """The upstream refuses the key of this pool, as its first call finds out."""
    upstream.behave("sk-parked", **how)
    workshop.run(lambda: bool(query("SELECT FROM credential WHERE parked_at IS NOT NULL")))
    workshop.run(lambda: "parked" == query("SELECT blocked_by FROM lane")[0].blocked_by)


def sweep(workshop: InProcessStack) -> None:
    Reaper(limiter=workshop.limiter, wakeups=Wakeups()).step(now=0.0)


def later(seconds: float) -> None:
    """Jobs came, and credentials were parked, so much earlier."""
    query("UPDATE job SET created_at = created_at - make_interval(secs => :s)", s=seconds)
    query("UPDATE credential SET parked_since = parked_since - make_interval(secs => :s)", s=seconds)


def probe(workshop: InProcessStack) -> None:
    """The next probe is due, and goes."""
    before = len(workshop.calls())
    query("UPDATE credential SET parked_at = now() - interval '1 day' WHERE parked_at IS NOT NULL")
    workshop.run(lambda: len(workshop.calls()) > before)


# Who probes


@pytest.mark.parametrize(("slots", "turns"), [(64, ["first", "second", "third"]), (1, ["first", "second"])])
def test_waiting_jobs_are_the_probe_in_turn(
    workshop: InProcessStack, upstream: FakeUpstream, caller: Key, slots: int, turns: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one slot free the pacer sees no more than two heads."""
    monkeypatch.setattr("tests.support.programs.in_process.SLOTS", slots)
    for result in ("first", "second", "third"):
        ask(caller, result, flow=result)
    park(workshop, upstream, caller, {"status": 401})
    for _ in range(5):
        probe(workshop)

    assert turns * (6 // len(turns)) == workshop.calls()


def test_a_job_that_alone_is_refused_parks_the_key_for_one_probe_only(
    workshop: InProcessStack, upstream: FakeUpstream, caller: Key
) -> None:
    poison = ask(caller, "poison [[fake:status=401]]")
    workshop.run(lambda: bool(query("SELECT FROM credential WHERE parked_at IS NOT NULL")))
    good = [ask(caller, f"good {n}") for n in range(3)]
    query("UPDATE credential SET parked_at = now() - interval '1 day'")
    workshop.run(lambda: all("succeeded" == row(one).status for one in good))

    assert ["good 0", "good 1", "good 2"] == [result for result in workshop.calls() if result.startswith("good")]
    assert Status.QUEUED == row(poison).status


def test_a_good_probe_forgets_since_when_the_key_was_parked(workshop: InProcessStack, upstream: FakeUpstream, caller: Key) -> None:
    one = ask(caller, "one")
    park(workshop, upstream, caller, MONEY)
    upstream.behave("sk-parked")
    probe(workshop)
    workshop.run(lambda: "succeeded" == row(one).status)

    assert [(None, None)] == [tuple(one) for one in query("SELECT parked_since, parked_words FROM credential")]


def test_a_key_that_an_older_version_opened_is_parked_from_its_next_refusal_on(
    workshop: InProcessStack, upstream: FakeUpstream, caller: Key
) -> None:
    ask(caller, "one")
    query("UPDATE credential SET parked_since = now() - interval '1 day'")
    park(workshop, upstream, caller, MONEY)

    assert [True] == [one.is_new for one in query("SELECT parked_since > now() - interval '1 h' AS is_new FROM credential")]


def test_probes_do_not_move_since_when_a_key_is_parked(workshop: InProcessStack, upstream: FakeUpstream, caller: Key) -> None:
    ask(caller, "one")
    park(workshop, upstream, caller, MONEY)
    later(100)
    (before,) = query("SELECT parked_since FROM credential")
    probe(workshop)
    (after,) = query("SELECT parked_since, parked_at FROM credential")

    assert before.parked_since == after.parked_since < after.parked_at


# The status shown to waiting jobs


def test_a_parked_line_has_a_place_and_no_time(workshop: InProcessStack, upstream: FakeUpstream, caller: Key) -> None:
    jobs = [ask(caller, f"job {n}") for n in range(2)]
    park(workshop, upstream, caller, MONEY)
    with db.begin() as session:
        place = position.position_of(session, job_rows.find_job(session, jobs[1], caller.id))
        shown = job_view.render_position(place)

    assert (2, None, "parked") == (shown["position"], shown["eta_s"], shown["blocked_by"])
    assert b": queued position=2 blocked_by=parked\n" == sse_frames.comment(Status.QUEUED, place)


def test_a_line_whose_probe_is_on_its_way_stays_parked_for_the_others(
    workshop: InProcessStack, upstream: FakeUpstream, caller: Key
) -> None:
    for n in range(3):
        ask(caller, f"job {n}")
    park(workshop, upstream, caller, MONEY)
    seen: list[str | None] = []
    query("UPDATE credential SET parked_at = now() - interval '1 day'")
    before = len(workshop.calls())
    workshop.run(lambda: len(workshop.calls()) > before, after_step=lambda: seen.append(query("SELECT blocked_by FROM lane")[0].blocked_by))

    assert {"parked"} == set(seen)


# Who fails, and when


@pytest.mark.parametrize(("how", "status", "code"), [(MONEY, 429, "credit_balance_exhausted"), ({"status": 401}, 503, "invalid_api_key")])
def test_a_caller_on_a_connection_fails_after_a_while_with_the_upstreams_words(
    workshop: InProcessStack, upstream: FakeUpstream, caller: Key, how: dict[str, object], status: int, code: str
) -> None:
    waiting, queued = held(caller), ask(caller, "job of the job API")
    park(workshop, upstream, caller, how)
    sweep(workshop)
    assert Status.QUEUED == row(waiting).status, "not at once"
    later(601)
    sweep(workshop)

    failed = row(waiting)
    assert ("failed", status, code) == (failed.status, failed.http_status, failed.error["code"])
    assert "Its last words: " in failed.error["message"] and "Ask the operator" in failed.error["message"]
    assert Status.QUEUED == row(queued).status, "it waits until it expires"


@pytest.mark.parametrize(
    "instead",
    [
        "UPDATE job SET created_at = now()", "UPDATE credential SET parked_since = now()", "UPDATE pool SET paused_at = now()",
        "UPDATE job SET left_at = now()", "UPDATE credential SET parked_at = NULL, parked_since = NULL",
        "UPDATE credential SET paused_at = now()",
    ],
    ids=["a new caller", "just parked", "paused", "a caller that left", "open again", "paused credential"],
)  # fmt: skip
def test_others_go_on_waiting(workshop: InProcessStack, upstream: FakeUpstream, caller: Key, instead: str) -> None:
    waiting = held(caller)
    park(workshop, upstream, caller, MONEY)
    later(601)
    query(instead)
    sweep(workshop)

    assert Status.QUEUED == row(waiting).status


def test_pool_with_one_good_key_fails_no_job(workshop: InProcessStack, upstream: FakeUpstream, caller: Key) -> None:
    waiting = held(caller)
    park(workshop, upstream, caller, MONEY)
    query("INSERT INTO credential (pool_id, secret) VALUES (:pool, 'x')", pool=caller.pool_id)
    later(601)
    sweep(workshop)

    assert Status.QUEUED == row(waiting).status


def test_jobs_of_an_own_key_without_money_fail_with_the_upstreams_status(
    workshop: InProcessStack, upstream: FakeUpstream
) -> None:  # fmt: skip
    own, _ = pool_of(upstream, "sk-parked")
    upstream.behave("sk-parked", **MONEY)
    first = ask(own, "first")
    workshop.run(lambda: "failed" == row(first).status)
    second = held(own, "second")
    workshop.run(lambda: "failed" == row(second).status)

    assert [429, 429] == [row(one).http_status for one in (first, second)]
    assert row(first).error == row(second).error
    assert ["first"] == workshop.calls()


def test_resume_of_an_operator_opens_a_parked_key_wholly(workshop: InProcessStack, upstream: FakeUpstream, caller: Key) -> None:
    ask(caller, "one")
    park(workshop, upstream, caller, MONEY)
    with db.begin() as session:
        for found in query("SELECT id FROM credential"):
            parking.unpark(session, found.id)

    assert [None] == [one.parked_since for one in query("SELECT parked_since FROM credential")]


def test_a_late_caller_reads_the_stored_failure_of_a_parked_pool(workshop: InProcessStack, upstream: FakeUpstream, caller: Key) -> None:
    waiting = held(caller)
    park(workshop, upstream, caller, MONEY)
    later(601)
    sweep(workshop)
    name = wire.public_id(waiting)
    shown = Caller("sk-parked").get(f"/v1/jobs/{name}").json

    assert ("failed", 429) == (shown["status"], shown["http_status"])
    assert shown["error"]["message"].startswith("The upstream refuses every key of this pool")
    assert "insufficient_quota" == shown["error"]["type"]
