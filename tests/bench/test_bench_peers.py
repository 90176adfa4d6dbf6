"""The textbook recipe and the bare script really do the work that the benchmark hands them, through the contests that ours goes through."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench.peers import contests
from bench.peers.peer import Peer, Terms, Work
from bench.peers.recipe import Recipe
from bench.peers.scripted import BareScript
from tests.upstream.client import FakeUpstream


@pytest.fixture(scope="module")
def upstream() -> Iterator[FakeUpstream]:
    with FakeUpstream() as started:
        yield started


@pytest.fixture(scope="module", params=["recipe", "script"])
def peer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, upstream: FakeUpstream) -> Iterator[Peer]:
    """Tests on the same terms stand together: the recipe takes seconds to start on others."""
    url = upstream.base_url
    made: Peer = Recipe(tmp_path_factory.mktemp("recipe"), base_url=url) if request.param == "recipe" else BareScript(base_url=url)
    yield made
    made.halt()


def test_peer_completes_all_work_and_reports_its_cost(peer: Peer, upstream: FakeUpstream) -> None:
    rushed = contests.rush(peer, upstream, jobs=40)

    assert 40 + 50 == upstream.stats(peer.upstream_key)["outcomes"]["200"]
    assert set(peer.pids()) == set(rushed.used_s)
    assert rushed.cpu_ms > 0


def test_a_call_at_idle_is_timed_from_question_to_answer(peer: Peer, upstream: FakeUpstream) -> None:
    assert all(took_ms > 0 for took_ms in contests.idle_ms(peer, upstream, calls=2))


def test_a_429_of_the_upstream_is_tried_again_until_it_is_answered(peer: Peer, upstream: FakeUpstream) -> None:
    upstream.reset()
    peer.serve(Terms(contests.AT_ONCE))
    upstream.behave(peer.upstream_key, {"status": 429, "retry_after": 0.1, "times": 3})
    peer.hand_in(Work(5))
    peer.wait_done(within_s=120)

    assert {"429": 3, "200": 5} == upstream.stats(peer.upstream_key)["outcomes"]
    assert 0 == peer.given_up()


def test_first_come_first_served_serves_a_flood_before_other_users(peer: Peer, upstream: FakeUpstream) -> None:
    fair = contests.fair(peer, upstream, flood=60)

    light = [n for n, called in enumerate(fair.order) if called.flow.startswith("light")]
    assert contests.LIGHT * contests.EACH == len(light) == len(fair.waits_s)
    assert len(fair.order) - len(light) == 60
    assert light[0] >= 60 - contests.FAIR_AT_ONCE


def test_no_more_calls_run_at_a_time_than_its_terms_say(peer: Peer, upstream: FakeUpstream) -> None:
    wakes_ms = contests.wakes_ms(peer, upstream, at_once=2, seconds=2)

    assert upstream.stats(peer.upstream_key)["max_in_flight"] <= 2
    assert wakes_ms
