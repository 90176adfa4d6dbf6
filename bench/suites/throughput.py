"""Jobs a second from end to end with an upstream that answers at once, and what each part's CPU pays for one job."""

from __future__ import annotations

import time
from dataclasses import dataclass

from bench.measure import cpu, load
from bench.measure.figure import Figure, at_least, reported
from bench.measure.load import Load, Wanted
from bench.measure.stack import Stack
from models.keys.keys import Limits

TITLE = "Throughput, everything durable"
CONNECTIONS = 16
LEAST_PER_S = 100


@dataclass(frozen=True)
class Done:
    """seconds: from the first submit to the last result. used_s: CPU seconds by part."""

    jobs: int
    seconds: float
    used_s: dict[str, float]
    submitted: Load

    @property
    def per_s(self) -> float:
        return self.jobs / self.seconds

    @property
    def cpu_ms(self) -> float:
        return sum(self.used_s.values()) / self.jobs * 1000


def run(stack: Stack, *, short: bool) -> list[Figure]:
    """Through the HTTP API into Postgres with fsync on, out to the upstream and back."""
    stack.serve()
    jobs, warm = (1_000, 100) if short else (5_000, 300)
    done = measure(stack, "sk-throughput", jobs=jobs, warm=warm)
    return [
        at_least("jobs per second, submit to result", done.per_s, LEAST_PER_S, note=f"{jobs:,} jobs, {CONNECTIONS} connections"),
        reported("submits per second meanwhile", f"{done.submitted.per_s:.0f}"),
        reported("CPU per job, all parts", f"{done.cpu_ms:.2f} ms", note="without the load generator"),
        *(reported(f"CPU per job, {name}", f"{spent / jobs * 1000:.2f} ms") for name, spent in done.used_s.items()),
    ]


def measure(stack: Stack, token: str, *, jobs: int, warm: int) -> Done:
    """A stack that serves takes these jobs of one new key to their results; `warm` others go before them."""
    caller = stack.caller(token, Limits(max_in_flight=1_000))
    load.submit(Wanted(stack.port, caller.token, jobs=warm, connections=CONNECTIONS, users=10))
    stack.wait_until_ended(caller, warm, within_s=60)
    before, began = cpu.spent_s(stack.pids()), time.monotonic()
    submitted = load.submit(Wanted(stack.port, caller.token, jobs=jobs, connections=CONNECTIONS, users=50))
    stack.wait_until_ended(caller, warm + jobs, within_s=180)
    seconds = time.monotonic() - began
    return Done(jobs, seconds, cpu.used_s(before, cpu.spent_s(stack.pids())), submitted)
