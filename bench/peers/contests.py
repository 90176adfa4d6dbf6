"""The contests that every peer goes through alike. What came of one is read from the upstream's journal, never from the peer."""

from __future__ import annotations

import time
from dataclasses import dataclass

from bench.measure import cpu
from bench.peers.peer import Peer, Terms, Work, user_of
from bench.suites.fairness import Called, jain_while_all_wait
from bench.suites.latency import gaps
from tests.upstream.client import FakeUpstream
from tests.upstream.journal import Call

AT_ONCE = 16
RPM = 600
TPM = 90_000
SMALL, LARGE = 100, 475
ANSWER_S = 0.05
SLOW_ANSWER_S = 0.1
FAIR_AT_ONCE = 4
LIGHT = 9
EACH = 5
LEAD_S = 1.0
PAUSE_S = 0.05
PATIENCE_S = 300.0


@dataclass(frozen=True)
class Limited:
    """used: of what the limit lets through in this time, 0 to 1. refused: 429s of the upstream. given_up: jobs lost to them."""

    used: float
    calls: int
    refused: int
    given_up: int


@dataclass(frozen=True)
class Fair:
    """order: every answered call. waits_s: of each light user's jobs, from when all were handed in until it was called."""

    jain: float
    waits_s: list[float]
    order: list[Called]
    light_came: float


@dataclass(frozen=True)
class Rushed:
    """used_s: CPU seconds by part; load generator and upstream not counted."""

    jobs: int
    seconds: float
    used_s: dict[str, float]

    @property
    def per_s(self) -> float:
        return self.jobs / self.seconds

    @property
    def cpu_ms(self) -> float:
        return sum(self.used_s.values()) / self.jobs * 1000


def limited(peer: Peer, upstream: FakeUpstream, *, tokens: bool, seconds: float) -> Limited:
    """More work than the limit lets through in `seconds`, on a key of RPM and TPM that its operator knows.

    tokens: large jobs, so that tokens a minute bind; else small ones, so that requests do. No minute of the upstream holds more than
    the limit, wherever it begins; its headers say how much is left.
    """
    key = _warm(peer, upstream, Terms(AT_ONCE, rpm=RPM, tpm=TPM))
    upstream.limit(key, rpm=RPM, tpm=TPM, mode="window")
    # The first minute's allowance may go at once.
    jobs = int(RPM * (1 + seconds / 60) * 1.2)
    peer.hand_in(Work(jobs, users=20, max_tokens=LARGE if tokens else SMALL))
    upstream.wait_for_calls(1, PATIENCE_S)
    first = upstream.calls(key=key)[0].at
    time.sleep(max(0.0, first + seconds - time.time()))
    given_up = peer.given_up()
    peer.halt()
    within = [call for call in upstream.calls(key=key) if call.at < first + seconds]
    passed = [call for call in within if not call.is_refused]
    used = sum(call.tokens for call in passed) / TPM if tokens else len(passed) / RPM
    return Limited(used * 60 / seconds, len(passed), len(within) - len(passed), given_up)


def fair(peer: Peer, upstream: FakeUpstream, *, flood: int) -> Fair:
    """One user hands in `flood` jobs; a second later LIGHT others come with EACH; FAIR_AT_ONCE calls may run at a time."""
    key = _warm(peer, upstream, Terms(FAIR_AT_ONCE))
    upstream.behave(key, delay=[SLOW_ANSWER_S, SLOW_ANSWER_S])
    peer.hand_in(Work(flood, prefix="heavy"))
    upstream.wait_for_calls(1, PATIENCE_S)
    heavy_came = upstream.calls(key=key)[0].at
    time.sleep(max(0.0, heavy_came + LEAD_S - time.time()))
    began = time.time()
    peer.hand_in(Work(LIGHT * EACH, users=LIGHT, prefix="light", open_calls=LIGHT))
    peer.wait_done(within_s=PATIENCE_S)
    order = [_called(call, heavy_came, began) for call in _answered(upstream, key)]
    waits_s = [each.called - each.submitted for each in order if each.flow.startswith("light")]
    return Fair(jain_while_all_wait(order), waits_s, order, began)


def wakes_ms(peer: Peer, upstream: FakeUpstream, *, at_once: int, seconds: float) -> list[float]:
    """Seconds from each answer that frees a slot to the call that takes it, while jobs wait."""
    key = _warm(peer, upstream, Terms(at_once))
    upstream.behave(key, delay=[ANSWER_S, ANSWER_S])
    peer.hand_in(Work(max(10 * at_once, int(seconds / ANSWER_S * at_once)), users=10, open_calls=at_once))
    upstream.wait_for_calls(1, PATIENCE_S)
    time.sleep(seconds)
    calls = upstream.calls(key=key)
    peer.halt()
    return [gap * 1000 for gap in gaps(calls, at_once)]


def idle_ms(peer: Peer, upstream: FakeUpstream, *, calls: int) -> list[float]:
    """Single calls, one after another with pauses, from the question to the answer; the upstream answers at once."""
    upstream.reset()
    peer.serve(Terms(AT_ONCE))
    took_ms = []
    for _ in range(calls + 5):
        took_ms.append(peer.ask() * 1000)
        time.sleep(PAUSE_S)
    return took_ms[5:]


def rush(peer: Peer, upstream: FakeUpstream, *, jobs: int) -> Rushed:
    """As many as go, with an upstream that answers at once."""
    upstream.reset()
    peer.serve(Terms(AT_ONCE))
    peer.rush(Work(max(50, jobs // 10), users=10), within_s=PATIENCE_S)
    before, began = cpu.spent_s(peer.pids()), time.monotonic()
    peer.rush(Work(jobs, users=50), within_s=PATIENCE_S)
    seconds = time.monotonic() - began
    return Rushed(jobs, seconds, cpu.used_s(before, cpu.spent_s(peer.pids())))


def _warm(peer: Peer, upstream: FakeUpstream, terms: Terms) -> str:
    """It serves and has answered a call, which the upstream has forgotten; returns the upstream's key. Some take seconds for the first."""
    upstream.reset()
    peer.serve(terms)
    peer.ask()
    upstream.reset()
    return peer.upstream_key


def _answered(upstream: FakeUpstream, key: str) -> list[Call]:
    return sorted(upstream.calls(key=key, outcome="200"), key=lambda call: call.at)


def _called(call: Call, heavy_came: float, light_came: float) -> Called:
    user = user_of(call.text)
    return Called(user, 1.0, light_came if user.startswith("light") else heavy_came, call.at)
