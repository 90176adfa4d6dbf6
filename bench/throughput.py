"""Jobs a second from end to end with an upstream that answers at once, and what each part's CPU pays for one job."""

from __future__ import annotations

import time

from bench import cpu, load
from bench.figure import Figure, at_least, told
from bench.load import Wanted
from bench.stack import Stack
from models.key import Limits

TITLE = "Throughput, everything durable"
CONNECTIONS = 16
LEAST_PER_S = 100


def run(stack: Stack, *, short: bool) -> list[Figure]:
    """Through the HTTP API into Postgres with fsync on, out to the upstream and back."""
    stack.serve()
    caller = stack.caller("sk-throughput", Limits(max_in_flight=1_000))
    jobs, warm = (1_000, 100) if short else (5_000, 300)
    load.submit(Wanted(stack.port, caller.token, jobs=warm, connections=CONNECTIONS, users=10))
    stack.wait_until_ended(caller, warm, within_s=60)
    before, began = cpu.spent_s(stack.pids()), time.monotonic()
    submitted = load.submit(Wanted(stack.port, caller.token, jobs=jobs, connections=CONNECTIONS, users=50))
    stack.wait_until_ended(caller, warm + jobs, within_s=180)
    seconds = time.monotonic() - began
    used = cpu.used_s(before, cpu.spent_s(stack.pids()))
    return [
        at_least("jobs per second, submit to result", jobs / seconds, LEAST_PER_S, note=f"{jobs:,} jobs, {CONNECTIONS} connections"),
        told("submits per second meanwhile", f"{submitted.per_s:.0f}"),
        told("CPU per job, all parts", f"{sum(used.values()) / jobs * 1000:.2f} ms", note="load generator not counted"),
        *(told(f"CPU per job, {name}", f"{spent / jobs * 1000:.2f} ms") for name, spent in used.items()),
    ]
