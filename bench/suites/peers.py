"""Peer comparison: nowserving and other tools pass the same contests, one after another, on the same machine and upstream."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from bench.measure import plots
from bench.measure.figure import Figure, quantile, reported
from bench.measure.stack import Stack
from bench.peers import contests
from bench.peers.contests import Fair, Limited, Rushed
from bench.peers.litellm import LitellmPeer
from bench.peers.ours import Ours
from bench.peers.peer import Peer
from bench.peers.recipe import Recipe
from bench.peers.scripted import BareScript

TITLE = "Compared with other tools"
PICTURE = "fairness.svg"
SHARES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True)
class Effort:
    """The size of each contest."""

    limit_s: float
    limits: tuple[bool, ...]  # contests.limited: whether tokens bind
    flood: int
    slots: tuple[int, ...]
    slots_s: float
    idle_calls: int
    jobs: int


LONG = Effort(limit_s=120, limits=(False,), flood=300, slots=(1, 4), slots_s=6, idle_calls=100, jobs=2_000)
SHORT = Effort(limit_s=15, limits=(False,), flood=100, slots=(2,), slots_s=2, idle_calls=15, jobs=200)


@dataclass
class Results:
    """The results of one peer in all contests."""

    title: str
    settings: str
    limited: dict[bool, Limited] = field(default_factory=dict)
    fair: Fair | None = None
    wakes_ms: dict[int, list[float]] = field(default_factory=dict)
    idle_ms: list[float] = field(default_factory=list)
    rushed: Rushed | None = None


def run(stack: Stack, *, short: bool) -> list[Figure]:
    """Runs all contests for one peer after another; the other peers are stopped meanwhile."""
    effort = SHORT if short else LONG
    results = [_all(peer, stack, effort) for peer in peers(stack)]
    plots.fairness({each.title: each.fair for each in results if each.fair}, to=stack.pictures / PICTURE)
    how = [reported(f"settings of {each.title}", "", note=each.settings) for each in results]
    return [
        *how,
        *_limit_figures(results, effort),
        *_fairness_figures(results, effort),
        *_wakeup_figures(results),
        *_idle_figures(results),
        *_rush_figures(results),
    ]


def peers(stack: Stack) -> list[Peer]:
    """The compared peers, ours first; none is started yet."""
    url = stack.upstream.base_url
    return [Ours(stack), LitellmPeer(stack.folder, base_url=url), Recipe(stack.folder, base_url=url), BareScript(base_url=url)]


def _all(peer: Peer, stack: Stack, effort: Effort) -> Results:
    found = Results(peer.title, peer.settings)
    upstream = stack.upstream
    with _halted(peer):
        found.rushed = contests.rush(peer, upstream, jobs=effort.jobs)
        found.idle_ms = contests.idle_ms(peer, upstream, calls=effort.idle_calls)
        found.fair = contests.fair(peer, upstream, flood=effort.flood)
        for most in effort.slots:
            found.wakes_ms[most] = contests.wakes_ms(peer, upstream, at_once=most, seconds=effort.slots_s)
        for tokens in effort.limits:
            found.limited[tokens] = contests.limited(peer, upstream, tokens=tokens, seconds=effort.limit_s)
    return found


@contextmanager
def _halted(peer: Peer) -> Iterator[None]:
    try:
        yield
    finally:
        peer.halt()


def _limit_figures(results: list[Results], effort: Effort) -> Iterator[Figure]:
    """Figures of the request limit, then of the token limit."""
    for tokens in effort.limits:
        bound = f"{contests.TPM:,} tokens/min" if tokens else f"{contests.RPM} requests/min"
        for each in results:
            limited = each.limited[tokens]
            lost = f", {limited.given_up} jobs given up" if limited.given_up else ""
            note = f"{bound} as the limit, exact window; {limited.calls} calls in {effort.limit_s:g} s{lost}"
            yield reported(f"limit used / 429s, {each.title}", f"{limited.used * 100:.1f} % / {limited.refused:,}", note=note)


def _fairness_figures(results: list[Results], effort: Effort) -> Iterator[Figure]:
    crowd = (
        f"1 user with {effort.flood}, a second later {contests.LIGHT} with {contests.EACH} each; {contests.FAIR_AT_ONCE} calls at a time"
    )
    for each in results:
        if each.fair:
            yield reported(f"Jain index while all wait, {each.title}", f"{each.fair.jain:.3f}", note=crowd)
    for each in results:
        if each.fair:
            p50, longest = quantile(each.fair.waits_s, 0.5), max(each.fair.waits_s)
            yield reported(f"a light user's wait, p50 / longest, {each.title}", f"{p50:.1f} / {longest:.1f} s", note="submitted → called")


def _wakeup_figures(results: list[Results]) -> Iterator[Figure]:
    for most in results[0].wakes_ms:
        for each in results:
            found = each.wakes_ms[most]
            what = f"slot free → next call, {' / '.join(SHARES)}, {each.title}"
            yield reported(what, _spread(found), note=f"{most} at a time, {len(found)} calls of {contests.ANSWER_S * 1000:g} ms")


def _idle_figures(results: list[Results]) -> Iterator[Figure]:
    for each in results:
        what = f"added to a call at idle, {' / '.join(SHARES)}, {each.title}"
        yield reported(what, _spread(each.idle_ms), note=f"request → answer, {len(each.idle_ms)} calls; the upstream answers at once")


def _rush_figures(results: list[Results]) -> Iterator[Figure]:
    for each in results:
        if rushed := each.rushed:
            note = f"{rushed.jobs:,} jobs, {contests.AT_ONCE} at a time, the upstream answers at once"
            yield reported(f"jobs per second, {each.title}", f"{rushed.per_s:.0f}", note=note)
    for each in results:
        if rushed := each.rushed:
            parts = ", ".join(f"{part} {spent / rushed.jobs * 1000:.2f}" for part, spent in rushed.used_s.items())
            yield reported(f"CPU per job, {each.title}", f"{rushed.cpu_ms:.2f} ms", note=parts)


def _spread(values_ms: list[float]) -> str:
    return " / ".join(f"{quantile(values_ms, share):.1f}" for share in SHARES.values()) + " ms"
