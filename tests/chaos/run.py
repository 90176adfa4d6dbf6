"""One course: load begins, faults come and go as the schedule says, load ends, everything settles, and it is checked."""

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
from tests.chaos.check import Evidence, Found, check
from tests.chaos.client import Client
from tests.chaos.fault import Fault
from tests.chaos.journal import Journal, Span
from tests.chaos.schedule import FAULTS, WARM_UP_S, Event, Faults
from tests.chaos.stack import Plant
from tests.support.queue_tools import query

# Accepted jobs have ended this long after the last fault, or are stuck.
SETTLE_S = 120.0
STEP_S = 0.1
# Load goes on for so long after the last fault: whoever came through it broken shows it now.
AFTER_S = 6.0
HURRY_S = 1.0
# The longest time between two probes of a credential.
PROBE_MOST_S = 6
_numbers = count()


@dataclass
class Outcome:
    """What a course came to. settled_s: from the end of the last fault to the end of the last job."""

    name: str
    events: Sequence[Event]
    found: Found
    evidence: Evidence
    settled_s: float
    broken: list[str] = field(default_factory=list)


def run(
    plant: Plant, name: str, events: Sequence[Event], *, seed: int, rate: float, say: Callable[[str], None], faults: Faults = FAULTS
) -> Outcome:
    """The course is over and the plant whole again. rate: requests a second. faults: what the events name."""
    with _hurried():
        return _run(plant, name, [(event, faults[event.fault]) for event in events], seed=seed, rate=rate, say=say)


def _run(
    plant: Plant, name: str, plan: Sequence[tuple[Event, type[Fault]]], *, seed: int, rate: float, say: Callable[[str], None]
) -> Outcome:
    number = next(_numbers)
    journal = Journal(plant.folder / f"client-{number}.jsonl")
    # The pool has several keys, so it gets more.
    tokens = [*plant.tokens, plant.pool_token, plant.pool_token]
    client = Client(plant.apis, tokens, journal, hook=plant.receiver.url("/own", fail=0.1), seed=seed * 100 + number)
    since, surprises = plant.upstream.stats()["all"]["calls"], len(plant.surprises)
    sessions_before = set(plant.sessions)
    client.start(rate=rate)
    faults, spans = _play(plant, plan, say)
    last = time.monotonic()
    _wait(plant, lambda: time.monotonic() > last + AFTER_S, "some more load", within_s=AFTER_S + 5)
    client.quiet.set()
    broken: list[str] = []
    try:
        plant.wait_ready()
        _wait(plant, lambda: not _open_jobs(), "every job has ended", within_s=max(1, last + SETTLE_S - time.monotonic()))
    except TimeoutError as error:
        broken.append(str(error))
    settled_s = time.monotonic() - last
    with suppress(TimeoutError):
        _wait(plant, lambda: _all_told(journal), "the client knows how each ended", within_s=45)
    with suppress(TimeoutError):
        _wait(plant, lambda: not _open_deliveries(), "every webhook has arrived", within_s=90)
    client.stop()
    lost = sum(fault.lost for fault in faults)
    evidence = Evidence(journal, plant.upstream.calls(since=since), plant.receiver.got(), lost, spans)
    found = check(evidence)
    broken += found.broken + plant.surprises[surprises:] + leaks.find(plant, sessions=sessions_before | plant.sessions)
    return Outcome(name, [event for event, _ in plan], found, evidence, settled_s, broken)


def _play(plant: Plant, plan: Sequence[tuple[Event, type[Fault]]], say: Callable[[str], None]) -> tuple[list[Fault], list[Span]]:
    """Every fault has begun and ended; also returns when."""
    began, ahead = time.monotonic(), sorted(plan, key=lambda planned: planned[0].at_s)
    now_on: list[tuple[float, str, Fault]] = []
    faults: list[Fault] = []
    begun_at: dict[Fault, float] = {}
    spans: list[Span] = []
    while ahead or now_on or time.monotonic() - began < WARM_UP_S:
        now = time.monotonic() - began
        while ahead and ahead[0][0].at_s <= now:
            # One that takes longer than planned keeps what it needs for itself: two on the same part would wait for each other.
            if any(ahead[0][1].on & fault.on for _, _, fault in now_on):
                break
            event, kind = ahead.pop(0)
            fault = kind(plant, random.Random(event.seed))
            begun_at[fault] = time.time()
            fault.begin()
            say(f"{now:6.1f} s  {event.fault}" + (f" ({fault.lost} calls in flight)" if fault.lost else ""))
            faults.append(fault)
            now_on.append((time.monotonic() - began + fault.lasts_s, event.fault, fault))
        for one in list(now_on):
            ends_at, name, fault = one
            if time.monotonic() - began < ends_at or not fault.is_over():
                fault.step()
            else:
                fault.end()
                now_on.remove(one)
                spans.append(Span(name, begun_at[fault], time.time()))
        plant.keep()
        time.sleep(STEP_S)
    return faults, spans


def _wait(plant: Plant, is_so: Callable[[], bool], what: str, *, within_s: float) -> None:
    plant.wait(is_so, what, within_s=within_s)


@contextmanager
def _hurried() -> Iterator[None]:
    """Nobody waits for minutes meanwhile, neither for a webhook's next attempt nor for a dead sender's lease."""
    over = threading.Event()
    threading.Thread(target=_hurry, args=(over,), daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _hurry(over: threading.Event) -> None:
    while not over.wait(HURRY_S):
        with suppress(ServingError, psycopg.Error):
            _bring_forward()


def _bring_forward() -> None:
    query("UPDATE delivery SET next_at = now(), retries_left = 9 WHERE status = 'pending' AND next_at > now() + interval '1 s'")
    query("UPDATE parked_model SET probe_at = now() + make_interval(secs => :s) WHERE probe_at > now() + make_interval(secs => :s)",
          s=PROBE_MOST_S)  # fmt: skip
    query("UPDATE delivery SET held_until = now() WHERE status = 'sending' AND sent_at < now() - interval '8 s' AND held_until > now()")


def _open_jobs() -> list[UUID]:
    return [row.id for row in query("SELECT id FROM job WHERE status IN ('queued', 'admitted', 'running')")]


def _open_deliveries() -> bool:
    return bool(query("SELECT 1 FROM delivery WHERE status IN ('pending', 'rung', 'sending') LIMIT 1"))


def _all_told(journal: Journal) -> bool:
    return all(note.status for note in journal if note.how != "hook" and note.job_id)
