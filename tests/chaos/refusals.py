"""Rules about refusals and unreadable answers: compares the journals of client and upstream with jobs and attempts.

Times are compared only while no other fault was active: the evidence holds the windows of all faults.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

from models.platform import wire
from tests.chaos.journal import FaultWindow, RequestRecord
from tests.chaos.stack import MAX_THROTTLES, PAUSE_S, PROBE_S
from tests.upstream.journal import Call

RULES = ("held up by another", "refused too often", "failed beside a good key", "bad key called", "unreadable again")
POISON, CREDENTIAL = "poisoned requests", "failing credential"
# How long a fault affects the stack afterwards: leases, lost broker messages, restarts.
AFTERMATH_S = 12.0
# Two pauses with jitter, the second twice as long, and the delay of a busy machine.
HELD_UP_S = 1.5 * (PAUSE_S + 2 * PAUSE_S) + 3
# After its first refusal and this time a key gets only probes. A probe may be late and the next one punctual.
PARKED_AFTER_S = float(PROBE_S)
LEAST_BETWEEN_PROBES_S = 0.7 * PROBE_S
INVALID = "upstream_invalid_response"
_UNREADABLE = re.compile(r"garbage=(html|truncated|empty|binary|trailing_comma|objects|no_content)\b")


def has_reason(row: Any, outcomes: Sequence[str]) -> bool:
    """Whether the calls of a failed job explain its error. outcomes: of its attempts, in order."""
    is_throttled = "throttled" in outcomes and row.throttles == MAX_THROTTLES - 1
    is_unreachable = bool(row.error) and row.error.get("code") == "upstream_unreachable" and list(outcomes[-1:]) == ["not_sent"]
    return is_throttled or is_unreachable or bool({"unknown", "failed"} & set(outcomes))


def held_up(accepted: Sequence[RequestRecord], calls: Sequence[Call], windows: Sequence[FaultWindow]) -> Iterable[str]:
    """Jobs without a poisoned prompt that waited while their key made no call for longer than two pauses."""
    poisoned = {call.text for call in calls if "prompts=" in call.behaviour}
    first: dict[str, float] = {}
    for call in calls:
        first.setdefault(call.text, call.at)
    token_of = {record.text: record.token for record in accepted}
    busy = defaultdict(list)
    for call in calls:
        if call.text in token_of:
            busy[token_of[call.text]].append((call.at, call.ended_at if call.ended_at is not None else float("inf")))
    others = [(window.began_at, window.ended_at + AFTERMATH_S) for window in windows if window.fault != POISON]
    for record in accepted:
        # A later turn waits for the turn before it.
        if record.text in poisoned or record.text not in first or record.turn > 1:
            continue
        for window in windows:
            wait = max(record.accepted_at, window.began_at), min(first[record.text], window.ended_at)
            idle_s = uncovered_s(wait, [*busy[record.token], *others]) if window.fault == POISON else 0.0
            if idle_s > HELD_UP_S:
                yield f"{record.job_id} waited {idle_s:.1f} s while its key made no call"


def uncovered_s(wait: tuple[float, float], intervals: Iterable[tuple[float, float]]) -> float:
    """The seconds of this wait that none of the intervals covers."""
    at, end = wait
    free_s = 0.0
    for began, ended in sorted(intervals):
        if began >= end:
            break
        free_s += max(0.0, began - at)
        at = max(at, ended)
    return free_s + max(0.0, end - at)


def refused_too_often(jobs: Mapping[UUID, Any], outcomes: Mapping[UUID, Sequence[str]], lost: Mapping[UUID, int]) -> Iterable[str]:
    """Jobs with more load refusals than allowed, or with a refusal that counts against max_attempts.

    lost: the calls of each job that were reaped as lost.
    """
    for row in jobs.values():
        mine = Counter(outcomes.get(row.id, ()))
        if row.throttles >= MAX_THROTTLES:
            yield f"{row.id} was put back after {row.throttles} refusals for load"
        counted = mine["failed"] + mine["unknown"] + mine["not_sent"] + lost.get(row.id, 0)
        if row.failures > counted:
            yield f"{row.id} counts {row.failures} failures: {dict(mine)}"


def failed_beside_good_key(jobs: Mapping[UUID, Any], outcomes: Mapping[UUID, Sequence[str]]) -> Iterable[str]:
    """Jobs that failed because one credential refused them. At most one credential of the pool is bad at a time."""
    for row in jobs.values():
        if row.status == "failed" and list(outcomes.get(row.id, ()))[-1:] == ["refused"]:
            yield f"{row.id} failed with the refusal of one credential: {row.error}"


def bad_key_called(calls: Sequence[Call], windows: Sequence[FaultWindow]) -> Iterable[str]:
    """Calls with a key that refuses everything, closer together than probes."""
    refused = defaultdict(list)
    for call in calls:
        if "status=" in call.behaviour and "probability=1.0" in call.behaviour:
            refused[call.key].append(call.at)
    others = [(window.began_at, window.ended_at + AFTERMATH_S) for window in windows if window.fault != CREDENTIAL]
    for window in windows:
        for times in refused.values() if window.fault == CREDENTIAL else ():
            mine = [at for at in times if window.began_at <= at <= window.ended_at]
            later = [at for at in mine if at > mine[0] + PARKED_AFTER_S]
            for before, after in itertools.pairwise(later):
                is_calm = not any(began <= after and before <= ended for began, ended in others)
                if is_calm and after - before < LEAST_BETWEEN_PROBES_S:
                    yield f"a key that refuses everything was called twice within {after - before:.1f} s"


def unreadable_again(
    accepted: Sequence[RequestRecord], jobs: Mapping[UUID, Any], calls: Sequence[Call], lost: Mapping[UUID, int]
) -> Iterable[str]:  # fmt: skip
    """Jobs that were retried after an unreadable answer without asking for it, or failed for one that was never sent."""
    unreadable = Counter(call.text for call in calls if not call.is_stream and _UNREADABLE.search(call.behaviour))
    spoiled = {call.text for call in calls if "garbage=" in call.behaviour}
    for record in accepted:
        row = jobs.get(wire.parse_id(str(record.job_id)))
        if row is None:
            continue
        if row.error and row.error.get("code") == INVALID and record.text not in spoiled:
            yield f"{record.job_id} failed for an unreadable answer that the upstream never gave"
        # Without on_unreadable, the outcome of such an answer is unknown: on_lost decides, and max_attempts is the limit.
        policy = getattr(row, "on_unreadable", row.on_lost)
        if policy == "fail" and unreadable[record.text] > 1 + lost.get(row.id, 0):
            yield f"{record.job_id} got {unreadable[record.text]} unreadable answers"
