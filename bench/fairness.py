"""One user floods the line; the others, who come later, must not feel it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from sqlalchemy import text

from bench import load
from bench.figure import Figure, at_least, at_most, jain
from bench.load import Wanted
from bench.stack import Caller, Stack
from models import db
from models.key import Limits

TITLE = "Fairness"
LIGHT = 99
EACH = 5
RPM = 3_000
JAIN_LEAST = 0.99
TURNS_MOST = 2.0


@dataclass(frozen=True)
class Called:
    """One job that was called; times in Unix seconds."""

    flow: str
    cost: float
    submitted: float
    called: float


def run(stack: Stack, *, short: bool) -> list[Figure]:
    """The flood is being served when the light users come; all of them stand in line before the next is admitted."""
    stack.serve()
    flood = 700 if short else 1_000
    caller = stack.caller("sk-fair", Limits(rpm=RPM))
    load.submit(Wanted(stack.port, caller.token, jobs=flood, prefix="flood"))
    others = Wanted(stack.port, caller.token, jobs=LIGHT * EACH, users=LIGHT, prefix="light")
    stack.pause(caller, until=lambda: load.submit(others))
    stack.wait_until(lambda: not stack.ask(_LEFT, id=caller.key.id), "the light users have been served", within_s=60)
    stack.clear()
    order = _order(caller)
    index, turns = jain_while_all_wait(order), _longest_wait(order)
    how = f"1 user with {flood:,} jobs, {LIGHT} with {EACH} each"
    return [
        at_least("Jain index of served cost while all wait", index, JAIN_LEAST, note=how),
        at_most("longest wait of a light user", turns, TURNS_MOST, unit="turns", note="a turn: one job of each user"),
    ]


def jain_while_all_wait(order: list[Called]) -> float:
    """Of the cost that each was served, from when the last user came until the first has nothing left in line."""
    arrived: dict[str, float] = {}
    for job in order:
        arrived[job.flow] = min(job.submitted, arrived.get(job.flow, job.submitted))
    left, last_came = Counter(job.flow for job in order), max(arrived.values())
    served: dict[str, float] = dict.fromkeys(arrived, 0.0)
    for job in order:
        left[job.flow] -= 1
        if job.called >= last_came:
            served[job.flow] += job.cost
        if not left[job.flow]:
            break
    return jain(list(served.values()))


def _order(caller: Caller) -> list[Called]:
    """Every job that was called, in the order of the calls."""
    query = """
        SELECT flow, cost, extract(epoch FROM created_at)::float8 AS submitted, extract(epoch FROM started_at)::float8 AS called FROM job
        WHERE key_id = :id AND calls > 0 ORDER BY started_at
    """
    with db.begin() as session:
        return [Called(row.flow, row.cost, row.submitted, row.called) for row in session.execute(text(query), {"id": caller.key.id})]


def _longest_wait(order: list[Called]) -> float:
    """In turns: how many others were called between two calls of a light user, or before its first one, of the users there are."""
    longest = 0.0
    previous: dict[str, int] = {}
    for n, job in enumerate(order):
        if job.flow.startswith("light"):
            since = previous.get(job.flow, sum(other.called < job.submitted for other in order[:n]))
            longest = max(longest, (n - since) / (LIGHT + 1))
        previous[job.flow] = n
    return longest


_LEFT = "SELECT count(*) FROM job WHERE key_id = :id AND flow LIKE 'light%' AND status IN ('queued', 'admitted', 'running')"
