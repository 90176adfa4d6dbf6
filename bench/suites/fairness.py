"""One user floods the line, and keys of one pool mean harm; the others must not feel it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from sqlalchemy import text

from bench.measure import load
from bench.measure.figure import Figure, at_least, at_most, jain
from bench.measure.load import Wanted
from bench.measure.stack import Caller, Stack
from models.database import db
from models.jobs import cancellation
from models.keys.keys import Limits

TITLE = "Fairness"
LIGHT = 99
EACH = 5
RPM = 3_000
JAIN_LEAST = 0.99
TURNS_MOST = 2.0
KEYS = 10
# Of each key of the pool, at least so many jobs wait.
OF_KEY = 60


@dataclass(frozen=True)
class Called:
    """One job that was called; times in Unix seconds."""

    flow: str
    cost: float
    submitted: float
    called: float


def run(stack: Stack, *, short: bool) -> list[Figure]:
    """Users of one key, then keys of one pool."""
    stack.serve()
    return [*users(stack, short=short), *keys(stack)]


def users(stack: Stack, *, short: bool) -> list[Figure]:
    """The flood is being served when the light users come; all of them stand in line before the next is admitted."""
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


def keys(stack: Stack) -> list[Figure]:
    """One floods, one invents a user for each job, one takes other keys' users' names, one cancels half of what it sends."""
    callers = stack.pool("fair", KEYS, Limits(rpm=RPM))
    flood, inventor, impostor, canceller, *ordinary = callers

    def attack() -> None:
        load.submit(Wanted(stack.port, flood.token, jobs=10 * OF_KEY, prefix="key"))
        load.submit(Wanted(stack.port, inventor.token, jobs=OF_KEY, users=OF_KEY, prefix="new"))
        load.submit(Wanted(stack.port, impostor.token, jobs=OF_KEY, users=2))
        load.submit(Wanted(stack.port, impostor.token, jobs=2, users=2, max_tokens=100_000))
        load.submit(Wanted(stack.port, canceller.token, jobs=2 * OF_KEY, users=2))
        for each in ordinary:
            load.submit(Wanted(stack.port, each.token, jobs=OF_KEY, users=2))
        for caller in (impostor, canceller):
            for job_id in stack.ask(_TO_CANCEL, id=caller.key.id):
                with db.begin() as session:
                    cancellation.cancel(session, job_id, caller.key.id)

    stack.pause(flood, until=attack)
    stack.wait_until(lambda: any(not stack.ask(_WAITING, id=each.key.id) for each in callers), "a key has been served", within_s=120)
    stack.clear()
    orders = [_order(caller) for caller in callers]
    of_keys = sorted((replace(one, flow=str(n)) for n, order in enumerate(orders) for one in order), key=lambda one: one.called)
    least = min(jain_while_all_wait(order) for order in orders[4:])
    return [
        at_least(
            f"Jain index of {KEYS} keys of one pool",
            jain_while_all_wait(of_keys),
            JAIN_LEAST,
            note="one floods, one invents users, one uses others' names, one cancels half",
        ),
        at_least("Jain index of two users of a key beside them", least, JAIN_LEAST, note=f"the lowest of {len(ordinary)} keys"),
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


_TO_CANCEL = """
    SELECT coalesce(array_agg(id), '{}') FROM (
        SELECT id FROM (
            SELECT id, cost > 10000 AS is_costly, row_number() OVER (ORDER BY id) AS n, count(*) OVER () AS jobs FROM job
            WHERE key_id = :id AND status = 'queued'
        ) AS mine WHERE is_costly OR (jobs > 100 AND n % 2 = 0)
    ) AS chosen
"""
_WAITING = "SELECT count(*) FROM job WHERE key_id = :id AND status = 'queued'"
_LEFT = "SELECT count(*) FROM job WHERE key_id = :id AND flow LIKE 'light%' AND status IN ('queued', 'admitted', 'running')"
