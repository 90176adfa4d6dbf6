"""One run: start the load, inject the scheduled faults, stop the load, wait until all jobs have ended, and check the promises."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from uuid import UUID

import psycopg

from models.platform.errors import ServingError
from tests.chaos import leaks
from tests.chaos.check import Evidence, Findings, check
from tests.chaos.client import Client
from tests.chaos.fault import Fault
from tests.chaos.journal import FaultWindow, Journal
from tests.chaos.schedule import FAULTS, WARM_UP_S, Event, Faults
from tests.chaos.stack import Stack
from tests.support.queue_tools import query

# A job that has not ended this long after the last fault is stuck.
SETTLE_S = 120.0
STEP_S = 0.1
# The load continues this long after the last fault, to show damage that a fault left behind.
AFTER_S = 6.0
SHORTEN_EVERY_S = 1.0
# The longest time between two probes of a credential.
MAX_PROBE_INTERVAL_S = 6
_numbers = count()


@dataclass
class RunResult:
    """The result of a run. settled_s: from the end of the last fault to the end of the last job."""

    name: str
    events: Sequence[Event]
    findings: Findings
    evidence: Evidence
    settled_s: float
    broken: list[str] = field(default_factory=list)


def run(
    stack: Stack, name: str, events: Sequence[Event], *, seed: int, rate: float, print_line: Callable[[str], None], faults: Faults = FAULTS
) -> RunResult:
    """Run all events and leave the stack healthy. rate: requests a second. faults: the classes by event name."""
    with _shortened_waits():
        return _run(stack, name, [(event, faults[event.fault]) for event in events], seed=seed, rate=rate, print_line=print_line)


def _run(
    stack: Stack, name: str, plan: Sequence[tuple[Event, type[Fault]]], *, seed: int, rate: float, print_line: Callable[[str], None]
) -> RunResult:
    number = next(_numbers)
    journal = Journal(stack.folder / f"client-{number}.jsonl")
    # The pool has several keys, so it gets more load.
    tokens = [*stack.tokens, stack.pool_token, stack.pool_token]
    client = Client(stack.apis, tokens, journal, hook=stack.receiver.url("/own", fail=0.1), seed=seed * 100 + number)
    since, surprises = stack.upstream.stats()["all"]["calls"], len(stack.surprises)
    sessions_before = set(stack.sessions)
    client.start(rate=rate)
    faults, windows = _inject(stack, plan, print_line)
    last = time.monotonic()
    stack.wait(lambda: time.monotonic() > last + AFTER_S, "some more load", within_s=AFTER_S + 5)
    client.stop_sending.set()
    broken: list[str] = []
    try:
        stack.wait_ready()
        stack.wait(lambda: not _open_jobs(), "every job has ended", within_s=max(1, last + SETTLE_S - time.monotonic()))
    except TimeoutError as error:
        broken.append(str(error))
    settled_s = time.monotonic() - last
    with suppress(TimeoutError):
        stack.wait(lambda: _all_ends_known(journal), "the client knows how each ended", within_s=45)
    with suppress(TimeoutError):
        stack.wait(lambda: not _open_deliveries(), "every webhook has arrived", within_s=90)
    client.stop()
    lost = sum(fault.lost for fault in faults)
    evidence = Evidence(journal, stack.upstream.calls(since=since), stack.receiver.got(), lost, windows)
    findings = check(evidence)
    broken += findings.broken + stack.surprises[surprises:] + leaks.find_leaks(stack, sessions=sessions_before | stack.sessions)
    return RunResult(name, [event for event, _ in plan], findings, evidence, settled_s, broken)


def _inject(
    stack: Stack, plan: Sequence[tuple[Event, type[Fault]]], print_line: Callable[[str], None]
) -> tuple[list[Fault], list[FaultWindow]]:
    """Inject all planned faults; return them and their windows."""
    began, ahead = time.monotonic(), sorted(plan, key=lambda planned: planned[0].at_s)
    now_on: list[tuple[float, str, Fault]] = []
    faults: list[Fault] = []
    begun_at: dict[Fault, float] = {}
    windows: list[FaultWindow] = []
    while ahead or now_on or time.monotonic() - began < WARM_UP_S:
        now = time.monotonic() - began
        while ahead and ahead[0][0].at_s <= now:
            # A fault that overruns keeps its resources: two faults on one service would wait for each other.
            if any(ahead[0][1].on & fault.on for _, _, fault in now_on):
                break
            event, kind = ahead.pop(0)
            fault = kind(stack, random.Random(event.seed))
            begun_at[fault] = time.time()
            fault.begin()
            print_line(f"{now:6.1f} s  {event.fault}" + (f" ({fault.lost} calls in flight)" if fault.lost else ""))
            faults.append(fault)
            now_on.append((time.monotonic() - began + fault.lasts_s, event.fault, fault))
        for active in list(now_on):
            ends_at, name, fault = active
            if time.monotonic() - began < ends_at or not fault.is_over():
                fault.step()
            else:
                fault.end()
                now_on.remove(active)
                windows.append(FaultWindow(name, begun_at[fault], time.time()))
        stack.restart_exited()
        time.sleep(STEP_S)
    return faults, windows


@contextmanager
def _shortened_waits() -> Iterator[None]:
    """Meanwhile shorten the waits for a webhook's next attempt and for the lease of a dead sender."""
    done = threading.Event()
    threading.Thread(target=_keep_shortening, args=(done,), daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _keep_shortening(done: threading.Event) -> None:
    while not done.wait(SHORTEN_EVERY_S):
        with suppress(ServingError, psycopg.Error):
            _shorten_waits()


def _shorten_waits() -> None:
    query("UPDATE delivery SET next_at = now(), retries_left = 9 WHERE status = 'pending' AND next_at > now() + interval '1 s'")
    query("UPDATE parked_model SET probe_at = now() + make_interval(secs => :s) WHERE probe_at > now() + make_interval(secs => :s)",
          s=MAX_PROBE_INTERVAL_S)  # fmt: skip
    query("UPDATE delivery SET held_until = now() WHERE status = 'sending' AND sent_at < now() - interval '8 s' AND held_until > now()")


def _open_jobs() -> list[UUID]:
    return [row.id for row in query("SELECT id FROM job WHERE status IN ('queued', 'admitted', 'running')")]


def _open_deliveries() -> bool:
    return bool(query("SELECT 1 FROM delivery WHERE status IN ('pending', 'rung', 'sending') LIMIT 1"))


def _all_ends_known(journal: Journal) -> bool:
    return all(record.status for record in journal if record.how != "hook" and record.job_id)
