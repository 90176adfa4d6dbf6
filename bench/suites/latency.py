"""Latency suite: the time until a free slot is used again, and until an idle stack answers, on the upstream's own clock."""

from __future__ import annotations

import time
from collections.abc import Sequence

from bench.measure import load
from bench.measure.figure import Figure, at_most, quantile, reported
from bench.measure.load import Wanted
from bench.measure.stack import Stack
from models.keys.keys import Limits
from tests.upstream.journal import Call

TITLE = "Latency"
ANSWER_S = 0.05
SLOT_P95_MS = 50
IDLE_P50_MS = 30
PAUSE_S = 0.12


def run(stack: Stack, *, short: bool) -> list[Figure]:
    """Lanes of one to four calls at a time, one after the other; then single jobs into an idle stack."""
    stack.serve()
    found = [figure for most in (1, 2, 3, 4) for figure in _slots(stack, most, seconds=2.5 if short else 6)]
    return found + _idle(stack, jobs=30 if short else 100)


def gaps(calls: Sequence[Call], most: int) -> list[float]:
    """The n-th answer frees the slot that the call after the first `most` + n uses. Only while jobs waited."""
    arrivals = sorted(call.at for call in calls)
    ends = sorted(call.ended_at for call in calls if call.ended_at is not None)
    found = [at - end for at, end in zip(arrivals[most:], ends, strict=False)]
    return found[most:]  # the first round also pays for a cold start: connections, state of the limiter


def _slots(stack: Stack, most: int, *, seconds: float) -> list[Figure]:
    caller = stack.caller(f"sk-slots-{most}", Limits(max_in_flight=most))
    stack.upstream.behave(caller.token, delay=[ANSWER_S, ANSWER_S])
    load.submit(Wanted(stack.port, caller.token, jobs=int(seconds / ANSWER_S * most), users=10))
    time.sleep(seconds)
    stack.clear()
    found = gaps(stack.upstream.calls(key=caller.token), most)
    p50, p95 = (quantile(found, share) * 1000 for share in (0.5, 0.95))
    how = f"{most} in flight, {len(found)} calls"
    return [
        reported("slot free → next call, p50", f"{p50:.1f} ms", note=how),
        at_most("slot free → next call, p95", p95, SLOT_P95_MS, unit="ms", note=how),
    ]


def _idle(stack: Stack, *, jobs: int) -> list[Figure]:
    caller = stack.caller("sk-idle", Limits(max_in_flight=8))
    sent = []
    opened = load.Line(stack.port)
    for request in Wanted(stack.port, caller.token, jobs=jobs + 5).requests():
        sent.append(time.time())
        opened.ask(request)
        time.sleep(PAUSE_S)
    stack.wait_until_ended(caller, jobs + 5, within_s=20)
    arrived = sorted(call.at for call in stack.upstream.calls(key=caller.token))
    took = [at - began for at, began in zip(arrived, sent, strict=True)][5:]
    p50, p95 = (quantile(took, share) * 1000 for share in (0.5, 0.95))
    how = f"HTTP submit to the call's arrival, {jobs} jobs"
    return [
        at_most("idle submit → upstream call, p50", p50, IDLE_P50_MS, unit="ms", note=how),
        reported("idle submit → upstream call, p95", f"{p95:.1f} ms", note=how),
    ]
