"""Very many clients held waiting by one API process: what each costs in memory, and what a submit beside them pays."""

from __future__ import annotations

import time
from dataclasses import dataclass

import psutil

from bench.measure import load
from bench.measure.figure import Figure, at_least, at_most, quantile, reported
from bench.measure.load import Load, Wanted
from bench.measure.stack import Stack
from bench.measure.waiting_clients import Crowd, Served, Wish
from models.keys.keys import Limits

TITLE = "Clients held waiting by one API process"
HELD = 2_000
OF_ONE_KEY = 20
SLOWER_MOST = 2.0
SETTLE_S = 3.0


@dataclass(frozen=True)
class Held:
    """came_in: connections that stood when all had come. rss: bytes of the API's processes more than without them."""

    clients: int
    came_in: int
    rss: int
    submits: Load
    served: Served

    @property
    def ends(self) -> str:
        """How it ended for them, in words."""
        ends = ", ".join(f"{n:,} {end}" for end, n in self.served.ends.items() if n)
        return f"{self.came_in:,} connected, {ends}"


def run(stack: Stack, *, short: bool) -> list[Figure]:
    """A third streams, a third calls without one, a third long polls, of a line that stands still; then it moves, and all are answered."""
    alone = _alone(stack)
    return _figures(hold(stack, HELD), alone)


def hold(stack: Stack, clients: int) -> Held:
    """So many clients wait at a fresh API process, then all are answered."""
    stack.halt()
    stack.serve()
    tokens = [stack.caller(f"sk-held-{clients}-{n}", Limits(max_in_flight=100)).token for n in range(-(-clients // OF_ONE_KEY))]
    stack.do("UPDATE lane SET paused_at = now()")
    _submits(stack)  # what the process needs for those as well is not the crowd's
    before = _rss(stack)
    crowd = Crowd(Wish(stack.port, tokens, clients, patience_s=60 + clients / 20))
    came_in = crowd.wait_until_in()
    time.sleep(SETTLE_S)
    submits, rss = _submits(stack), _rss(stack) - before
    stack.do("UPDATE lane SET paused_at = NULL, wake_at = now()")
    served = crowd.wait_until_served()
    stack.clear()
    return Held(clients, came_in, rss, submits, served)


def _alone(stack: Stack) -> Load:
    """Submits to a fresh API process without waiting clients."""
    stack.halt()
    stack.serve()
    return _submits(stack)


def _submits(stack: Stack) -> Load:
    caller = stack.caller("sk-beside", Limits(max_in_flight=1))
    stack.do("UPDATE lane SET paused_at = now() WHERE id = :id", id=caller.lane_id)
    load.submit(Wanted(stack.port, caller.token, jobs=50, connections=1))
    return load.submit(Wanted(stack.port, caller.token, jobs=300, connections=1))


def _rss(stack: Stack) -> int:
    first = psutil.Process(stack.pids()["api"])
    return sum(process.memory_info().rss for process in (first, *first.children(recursive=True)))


def _figures(held: Held, alone: Load) -> list[Figure]:
    how = f"{held.clients:,} held"
    slower = quantile(held.submits.took_s, 0.5) / quantile(alone.took_s, 0.5)
    return [
        at_least("clients answered", held.served.served, held.clients, note=f"{how}; {held.ends}"),
        reported("memory per client", f"{held.rss / held.clients / 1024:.0f} KiB", note=how),
        at_most("submit beside them, p50, relative to no waiting clients", slower, SLOWER_MOST, unit="times", note=how),
        reported("submit beside them, p50 / p99", _latency(held.submits), note=f"{_latency(alone)} without waiting clients"),
    ]


def _latency(one: Load) -> str:
    return " / ".join(f"{quantile(one.took_s, share) * 1000:.1f}" for share in (0.5, 0.99)) + " ms"
