"""Submits alone: how many a second, how long each takes, and what a waiting job costs in Redis."""

from __future__ import annotations

import time

from bench.measure import load
from bench.measure.figure import Figure, at_least, at_most, quantile, reported
from bench.measure.load import Load, Wanted
from bench.measure.stack import Caller, Stack
from models.keys.keys import Limits

TITLE = "Submits"
CONNECTIONS = 8
# A core each, of two.
PROCESSES = 2
REST_S = 1.5
LEAST_PER_S, P99_MS = 300, 50


def run(stack: Stack, *, short: bool) -> list[Figure]:
    """POST /v1/jobs into a paused lane; every 202 is on disk."""
    found: list[Figure] = []
    jobs = 300 if short else 1_500
    stack.serve()
    caller = stack.caller("sk-submits", Limits(max_in_flight=1))
    stack.pause(caller, until=lambda: found.extend(_measure(stack, caller, jobs=jobs)))
    stack.serve(api_processes=PROCESSES)
    stack.pause(caller, until=lambda: found.extend(_many(stack, caller, jobs=jobs)))
    stack.serve()
    return found


def _many(stack: Stack, caller: Caller, *, jobs: int) -> list[Figure]:
    how = f"{CONNECTIONS} connections, {PROCESSES} API processes"
    load.submit(Wanted(stack.port, caller.token, jobs=200, connections=4 * CONNECTIONS, users=50))
    done = load.submit(Wanted(stack.port, caller.token, jobs=jobs, connections=CONNECTIONS, users=50))
    stack.clear()
    return [reported("submits per second", f"{done.per_s:.0f}", note=how), *_latency(done, how, most_ms=None)]


def _measure(stack: Stack, caller: Caller, *, jobs: int) -> list[Figure]:
    load.submit(Wanted(stack.port, caller.token, jobs=200, connections=4 * CONNECTIONS, users=50))
    keys, memory = _redis(stack)
    alone = load.submit(Wanted(stack.port, caller.token, jobs=jobs // 5, connections=1, users=50))
    many = load.submit(Wanted(stack.port, caller.token, jobs=jobs, connections=CONNECTIONS, users=50))
    keys_after, memory_after = _redis(stack)
    waiting = jobs + jobs // 5
    stack.clear()
    return [
        at_least("submits per second", many.per_s, LEAST_PER_S, note=f"{CONNECTIONS} connections, 1 API process"),
        *_latency(many, f"{CONNECTIONS} connections"),
        *_latency(alone, "1 connection"),
        at_most("Redis keys per waiting job", (keys_after - keys) / waiting, 0, unit=""),
        reported(
            "Redis memory per waiting job", f"{(memory_after - memory) / waiting:.0f} B", note="memory of the connections, not of the jobs"
        ),
    ]


def _latency(seen: Load, how: str, *, most_ms: float | None = P99_MS) -> list[Figure]:
    p50, p99 = (quantile(seen.took_s, share) * 1000 for share in (0.5, 0.99))
    tail = (
        reported("submit, p99", f"{p99:.1f} ms", note=how) if most_ms is None else at_most("submit, p99", p99, most_ms, unit="ms", note=how)
    )
    return [reported("submit, p50", f"{p50:.1f} ms", note=how), tail]


def _redis(stack: Stack) -> tuple[int, int]:
    """Keys, and bytes of data, once the connections' buffers have come to rest."""
    time.sleep(REST_S)
    with stack.redis() as client:
        return int(client.dbsize()), int(client.info("memory")["used_memory_dataset"])
