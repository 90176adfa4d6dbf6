"""Waiting connections are counted by key, of all kinds together: one key opens all it can, and another still gets each kind at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from werkzeug.test import TestResponse

from api.waiting.registry import waiter_registry
from models.platform import wire
from tests.support.http_tools import CHAT, Caller, error_of, stored
from tests.support.programs.process import until
from tests.support.queue_tools import finish, start

pytestmark = pytest.mark.usefixtures("database", "redis_client", "small")
CAPACITY = 60
KINDS = ("held", "stream", "events", "poll")


@pytest.fixture
def small(override: Callable[..., None]) -> None:
    """Few waiters. A held call sends 200 at once, so its waiter stays taken while the client does not read."""
    override(max_waiting_per_process=CAPACITY, status_grace_s=0)


class Opener:
    """Opens connections of each kind and leaves them open. polls: answers of long polls that have ended."""

    def __init__(self, caller: Caller, rooms: ExitStack) -> None:
        self.caller, self.polls = caller, list[TestResponse]()
        self._rooms, self.name = rooms, caller.submit()

    def opens(self, kind: str) -> bool:
        """Whether one more connection of this kind waits now."""
        return self._polls() if kind == "poll" else 200 == self.answer(kind).status_code

    def answer(self, kind: str) -> TestResponse:
        """The answer to a held call, a stream or an event stream, as far as it has begun."""
        client, headers = self.caller.app.test_client(), {"Authorization": f"Bearer {self.caller.token}"}
        if kind == "events":
            made = client.get(f"/v1/jobs/{self.name}/events", headers=headers)
        else:
            body = {**CHAT["body"], "stream": kind == "stream"}
            made = client.post("/v1/chat/completions", json=body, headers=headers)
        self._rooms.callback(made.close)
        return made

    def _polls(self) -> bool:
        before, ended = len(waiter_registry), len(self.polls)
        thread = threading.Thread(target=lambda: self.polls.append(self.caller.get(f"/v1/jobs/{self.name}?wait=50")))
        thread.start()
        self._rooms.callback(thread.join)
        until(lambda: len(waiter_registry) > before or len(self.polls) > ended, what="waiting or answered")
        return len(self.polls) == ended

    def stop(self) -> None:
        """The job that is polled and followed ends, and so do its polls."""
        self.caller.post(f"/v1/jobs/{self.name}/cancel")


@pytest.fixture
def opener() -> Iterator[Callable[[str], Opener]]:
    """Makes an opener for this key. What it opened is closed when the test is over."""
    made: list[Opener] = []
    with ExitStack() as rooms:

        def make(token: str) -> Opener:
            made.append(Opener(Caller(token), rooms))
            return made[-1]

        yield make
        for one in made:
            one.stop()
    until(lambda: 0 == len(waiter_registry), what="all waiters free")


def flood(opener: Opener) -> None:
    """Opens all kinds in turn until none can be opened any more."""
    while sum(opener.opens(kind) for kind in KINDS):
        pass


def test_one_key_opens_all_it_can_and_another_gets_each_kind_at_once(opener: Callable[[str], Opener]) -> None:
    greedy, other = opener("sk-greedy"), opener("sk-other")
    flood(greedy)
    taken = len(waiter_registry)
    assert CAPACITY / 2 < taken < CAPACITY

    assert [True] * 4 == [other.opens(kind) for kind in KINDS]
    assert taken + 4 == len(waiter_registry)
    assert [False] * 4 == [greedy.opens(kind) for kind in KINDS]


def test_refused_request_names_the_next_step_and_makes_no_job(opener: Callable[[str], Opener]) -> None:
    greedy = opener("sk-greedy")
    flood(greedy)
    jobs = stored()

    for kind in ("held", "stream", "events"):
        refused = greedy.answer(kind)
        assert (429, "5") == (refused.status_code, refused.headers["Retry-After"])
        assert {"code": "too_many_waiting", "type": "rate_limit_error"}.items() <= error_of(refused).items()
        assert "GET /v1/jobs/{id}" in error_of(refused)["message"]
        # SDKs come back after that time by themselves.
        assert "x-should-retry" not in refused.headers
    assert jobs == stored()

    asked = greedy.caller.post("/v1/chat/completions", CHAT["body"], headers={"Prefer": "respond-async, wait=30"})
    assert (202, jobs + 1) == (asked.status_code, stored())


def test_long_poll_beyond_the_limit_is_answered_at_once(opener: Callable[[str], Opener]) -> None:
    greedy = opener("sk-greedy")
    flood(greedy)
    name = greedy.caller.submit()
    job_id = wire.parse_id(name)

    answer = greedy.caller.get(f"/v1/jobs/{name}?wait=50")
    assert (200, "queued", "5") == (answer.status_code, answer.json["status"], answer.headers["Retry-After"])

    assert finish(job_id, start(greedy.caller.key, job_id))
    answer = greedy.caller.get(f"/v1/jobs/{name}?wait=50")
    assert (200, "succeeded", None) == (answer.status_code, answer.json["status"], answer.headers.get("Retry-After"))


def test_a_closed_connection_makes_room_for_the_next(opener: Callable[[str], Opener]) -> None:
    greedy = opener("sk-greedy")
    first = greedy.answer("stream")
    flood(greedy)
    first.close()

    assert greedy.opens("held")
