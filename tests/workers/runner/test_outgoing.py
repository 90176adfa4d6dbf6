"""Large requests: loaded whole within the memory budget and freed once written. A job that gets no memory is requeued."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
import redis

from models.database import db
from models.jobs.states import Status
from models.platform.errors import Unavailable
from models.sessions import deletion
from tests.support.programs.in_process import InProcessStack, pool_of
from tests.support.queue_tools import admit, event_types, known, outcomes, query, row, submit
from tests.upstream.client import FakeUpstream, upstream
from workers.limiter.limiter import Limiter
from workers.runner.leases import Leases
from workers.runner.run_job import JobRunner
from workers.upstream import body_budget, request
from workers.upstream.body_budget import FREE_BYTES, BodyBudget
from workers.upstream.exchange import Body

__all__ = ["upstream"]
pytestmark = pytest.mark.usefixtures("database")
LARGE = 3 * FREE_BYTES


@pytest.fixture
def budget(override: Callable[..., None]) -> Iterator[BodyBudget]:
    """The body budget of this process: 4 MB for two threads."""
    override(worker_body_bytes=4_000_000, max_body_bytes=2_000_000, worker_threads=2)
    body_budget.budget.cache_clear()
    yield body_budget.budget()
    body_budget.budget.cache_clear()


@pytest.fixture
def workshop(redis_client: redis.Redis, upstream: FakeUpstream, budget: BodyBudget) -> InProcessStack:
    return InProcessStack(redis_client, upstream)


def chat(prompt: str, *, size: int = LARGE, **more: Any) -> bytes:
    """A chat request with a message of `size` bytes before the prompt."""
    messages = [{"role": "user", "content": "x" * size}, {"role": "assistant", "content": "?"}, {"role": "user", "content": prompt}]
    return json.dumps({"model": "m", "messages": messages, **more}).encode()


def ended(*jobs: UUID) -> Callable[[], bool]:
    return lambda: all(row(one).status in ("succeeded", "failed") for one in jobs)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_large_request_is_served_like_any_other(
    workshop: InProcessStack, budget: BodyBudget, upstream: FakeUpstream, streamed: bool
) -> None:
    caller, _ = pool_of(upstream, "sk-large")
    more = {"stream": True, "n": 2} if streamed else {"store": True, "metadata": {"of": "tests"}}
    job_id = submit(caller, request=chat("hello", **more), streamed=streamed)
    workshop.run(ended(job_id))

    done = row(job_id)
    answer = json.loads(done.response)
    assert ("succeeded", 0) == (done.status, budget.held_bytes)
    assert budget.peak_bytes > LARGE
    assert (2 if streamed else 1) == len(answer["choices"])
    assert answer["usage"]["prompt_tokens"] > LARGE / 100
    if streamed:
        assert b'"choices":[],"usage"' not in done.transcript, "the client did not ask for the chunk that says what was used"
    else:
        assert [{"of": "tests"}] == [stored.metadata for stored in query("SELECT metadata FROM stored_answer")]


def test_a_large_prompt_is_counted_again_where_the_answer_does_not_say(workshop: InProcessStack, upstream: FakeUpstream) -> None:
    caller, _ = pool_of(upstream, "sk-silent")
    job_id = submit(caller, request=chat("hello [[fake:usage=missing]]"))
    workshop.run(ended(job_id))

    (used,) = query("SELECT input_tokens, estimated FROM usage")
    assert used.estimated
    assert used.input_tokens > LARGE / 100


def test_turn_sends_a_large_history(workshop: InProcessStack, budget: BodyBudget, upstream: FakeUpstream) -> None:
    caller, _ = pool_of(upstream, "sk-talk")
    first = submit(caller, request=chat("first"), conversation="tea", turn_tokens=100)
    workshop.run(ended(first))
    budget.peak_bytes = 0
    second = submit(caller, request=chat("second", size=10), conversation="tea", turn_tokens=10)
    workshop.run(ended(second))

    assert "succeeded" == row(second).status
    assert ["user", "x" * LARGE] == upstream.calls()[-1].before[0]
    assert (True, 0) == (budget.peak_bytes > LARGE, budget.held_bytes)


def test_an_answer_is_counted_until_it_is_stored(workshop: InProcessStack, budget: BodyBudget, upstream: FakeUpstream) -> None:
    caller, _ = pool_of(upstream, "sk-answer")
    body = json.dumps({"model": "m", "prompt": "a fox [[fake:picture_mb=1]]"}).encode()
    job_id = submit(caller, endpoint="/v1/images/generations", images=1, request=body)
    workshop.run(ended(job_id))

    (stored,) = query("SELECT octet_length(content) AS n FROM artifact")
    assert stored.n > 700_000
    assert (True, 0) == (budget.peak_bytes > 1_000_000 - FREE_BYTES, budget.held_bytes)


def test_without_room_a_large_job_is_back_in_its_line_and_a_small_one_is_served(
    redis_client: redis.Redis, budget: BodyBudget, upstream: FakeUpstream
) -> None:
    caller, _ = pool_of(upstream, "sk-full")
    limiter = Limiter(redis_client)
    processor = JobRunner(limiter, Leases(limiter))
    budget.room().try_reserve(3_900_000)
    large, small = submit(caller, request=chat("large")), submit(caller)
    budget._waiting.append(budget.room())  # one waits already: with two threads no more may
    for job_id in (large, small):
        processor.run(job_id, admit(caller, job_id))

    waits = row(large)
    assert (Status.QUEUED, 0, [], True) == (waits.status, waits.calls, outcomes(large), waits.not_before is not None)
    assert "queued" == event_types(large)[-1]
    assert Status.SUCCEEDED == row(small).status


def test_a_request_that_was_erased_meanwhile_is_not_sent(budget: BodyBudget, upstream: FakeUpstream) -> None:
    caller = known("sk-erased")
    job_id = submit(caller, request=chat("gone"))
    claimed = SimpleNamespace(id=job_id, request_bytes=len(chat("gone")))
    with db.begin() as session:
        deletion.erase_job(session, job_id)

    with pytest.raises(Unavailable):
        request.read_request(claimed)


def test_a_body_begins_anew_until_it_was_written_and_is_gone_then() -> None:
    written: list[int] = []
    body = Body(bytes(range(256)) * 4096, is_stored=True, on_written=lambda: written.append(1))
    half = iter(body)
    next(half)
    again = b"".join(body)

    assert (bytes(range(256)) * 4096, b"", [1]) == (again, body.content(), written)


def test_a_member_is_added_and_the_others_stay_as_they_are_written() -> None:
    content = b'{"a": [1.50, "\\u00e9"],"stream_options":{"x":1} , "n" : 2}'
    made = request.with_member(content, "stream_options", {"x": 1, "include_usage": True})

    assert b'{"a":[1.50, "\\u00e9"],"stream_options":{"x":1,"include_usage":true},"n":2}' == made
    assert b'{"a":[1.50, "\\u00e9"],"stream_options":{"x":1},"n":2}' == request.outline(content)
    assert b"{}" == request.outline(b'{"messages":"\\ud800' + b"x" * 100_000 + b'"}')
    assert {"a": "\ud800", "b": {}} == json.loads(request.with_member(b'{"a":"\\ud800"}', "b", {}))
