"""What must hold whatever happened: the journals of client, upstream and receiver, laid beside the database."""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from models.jobs.requeue import LOST
from models.jobs.states import TERMINAL
from models.platform import wire
from tests.chaos import refusals
from tests.chaos.journal import Journal, Note, Span
from tests.support.queue_tools import query
from tests.support.servers.webhook_receiver import Got
from tests.upstream.chat import echo
from tests.upstream.journal import Call

# What the upstream itself does to a call so that nobody can know what came of it.
SPOILS = ("hang=", "reset=", "garbage=", "cut_after=", "drip=")
AT_ONCE = 500  # jobs in one question: on a busy machine a statement has 5 s
PER_RULE = 5  # broken promises shown of each


@dataclass(frozen=True)
class Evidence:
    """What client, upstream and receiver wrote down. lost: calls in flight when something was killed. spans: when each fault was on."""

    journal: Journal
    calls: Sequence[Call]
    got: Sequence[Got]
    lost: int = 0
    spans: Sequence[Span] = ()


@dataclass
class Found:
    """Counts, and the promises that were broken, in words. allowed: calls that may be of unknown outcome."""

    jobs: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    calls: int = 0
    unknown: int = 0
    allowed: int = 0
    doubled: int = 0
    repeats: int = 0
    deliveries: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)

    def breaks(self, rule: str, what: Iterable[str]) -> None:
        """These are broken promises of that rule."""
        found = list(what)
        self.counts[rule] += len(found)
        self.broken += [f"{rule}: {one}" for one in found[:PER_RULE]]


RULES = ("lost or stuck", "answered twice, unmarked", "unknown without cause", "wrong result", "over a limit", "turn out of order",
         "ledger off", "webhook missing", "odd answer", *refusals.RULES)  # fmt: skip


def check(evidence: Evidence) -> Found:
    """The whole of it, laid beside the database as it is now."""
    journal, calls = evidence.journal, evidence.calls
    accepted = [note for note in journal if note.job_id]
    jobs = {row.id: row for row in query("SELECT * FROM job WHERE id = ANY(:ids)", ids=[_id(note) for note in accepted])}
    attempts = query("SELECT * FROM attempt WHERE job_id = ANY(:ids) ORDER BY n", ids=list(jobs))
    found = Found(jobs=len(accepted), calls=len(calls), repeats=journal.repeats)
    found.statuses = Counter(row.status for row in jobs.values())
    found.unknown = sum(one.outcome == "unknown" for one in attempts)
    found.allowed = evidence.lost + sum(any(name in call.behaviour for name in SPOILS) for call in calls)
    found.doubled = sum(row.possible_duplicate_calls for row in jobs.values())
    found.breaks("lost or stuck", _lost(accepted, jobs, attempts))
    found.breaks("answered twice, unmarked", _doubles(jobs, attempts, calls))
    found.breaks("unknown without cause", [f"{found.unknown} of at most {found.allowed}"] if found.unknown > found.allowed else [])
    found.breaks("wrong result", _wrong(accepted, jobs, attempts, calls))
    found.breaks("over a limit", (f"call {call.n} of {call.key} was refused by the upstream" for call in calls if call.is_refused))
    found.breaks("turn out of order", _turns(accepted, jobs, attempts, calls))
    found.breaks("ledger off", _ledger(list(jobs)))
    arrived = _arrived(evidence.got)
    names = {note.job_id for note in accepted}
    found.deliveries = sum(n for (_, _, job_id), n in arrived.items() if job_id in names)
    found.breaks("webhook missing", _untold(accepted, jobs, arrived))
    found.breaks("odd answer", journal.odd)
    _check_refusals(found, evidence, accepted, jobs, attempts)
    return found


def _check_refusals(found: Found, evidence: Evidence, accepted: Sequence[Note], jobs: dict[UUID, Any], attempts: Sequence[Any]) -> None:
    calls, spans, outcomes = evidence.calls, evidence.spans, _outcomes(attempts)
    lost = {row.job_id: row.n for row in query(_LOST, ids=list(jobs))}
    found.breaks("held up by another", refusals.held_up(accepted, calls, spans))
    found.breaks("refused too often", refusals.refused_too_often(jobs, outcomes, lost))
    found.breaks("failed beside a good key", refusals.failed_beside_good_key(jobs, outcomes))
    found.breaks("bad key called", refusals.bad_key_called(calls, spans))
    found.breaks("unreadable again", refusals.unreadable_again(accepted, jobs, calls, lost))


def _outcomes(attempts: Sequence[Any]) -> dict[UUID, list[str]]:
    """What each job's attempts came to, in order."""
    found = defaultdict(list)
    for attempt in attempts:
        found[attempt.job_id].append(attempt.outcome)
    return found


def _content(row: Any) -> str:
    """What the stored answer says."""
    return str(json.loads(bytes(row.response))["choices"][0]["message"]["content"])


def _id(note: Note) -> UUID:
    return wire.parse_id(str(note.job_id))


def _lost(accepted: Sequence[Note], jobs: dict[UUID, Any], attempts: Sequence[Any]) -> Iterable[str]:
    """Not there, not ended, ended without a reason, or ended otherwise than the client was told."""
    outcomes = _outcomes(attempts)
    for one in attempts:
        if one.outcome == "running" and jobs[one.job_id].status in TERMINAL:
            yield f"an attempt of {one.job_id} never ended"
    for note in accepted:
        row = jobs.get(_id(note))
        if row is None:
            yield f"{note.job_id} was accepted and is not there"
        elif row.status not in TERMINAL:
            yield f"{note.job_id} is still {row.status}: {row.error or ''}"
        elif row.status == "failed" and not _has_reason(row, outcomes.get(row.id, [])):
            yield f"{note.job_id} failed for no reason: {row.error}"
        elif row.status in ("cancelled", "expired") and note.how in ("poll", "wait", "hook"):
            yield f"{note.job_id} was {row.status} though nobody asked for it"
        elif note.status not in (None, row.status):
            yield f"{note.job_id} is {row.status} and its client was told {note.status}"
        elif note.status is None and note.how != "hook":
            yield f"{note.job_id} is {row.status} and its client ({note.how}) never heard of it"


def _has_reason(row: Any, outcomes: Sequence[str]) -> bool:
    """Whether its calls explain why it failed. One that was given up for lost may have answered since, and a refusal has its own rule."""
    is_lost = bool(row.error) and row.error.get("code") == LOST["code"]
    return (is_lost and bool(outcomes)) or list(outcomes[-1:]) == ["refused"] or refusals.has_reason(row, outcomes)


def _doubles(jobs: dict[UUID, Any], attempts: Sequence[Any], calls: Sequence[Call]) -> Iterable[str]:
    """Two good answers for one job and no mark on it; or a call that was never written down ahead."""
    job_of = {str(one.dispatch_id): one.job_id for one in attempts}
    answered: Counter[UUID] = Counter()
    for call in calls:
        job_id = job_of.get(call.headers.get("x-client-request-id", ""))
        if job_id is None:
            known = query("SELECT 1 FROM attempt WHERE dispatch_id::text = :id", id=call.headers.get("x-client-request-id", ""))
            if not known:
                yield f"call {call.n} ({call.text!r}) is of no attempt on record"
        elif call.outcome == "200":
            answered[job_id] += 1
    for job_id, n in answered.items():
        if n > 1 + jobs[job_id].possible_duplicate_calls:
            yield f"{job_id} was answered {n} times and is marked with {jobs[job_id].possible_duplicate_calls} possible duplicates"


def _wrong(accepted: Sequence[Note], jobs: dict[UUID, Any], attempts: Sequence[Any], calls: Sequence[Call]) -> Iterable[str]:
    """Another job's answer, one that the upstream never gave, or one that the client got otherwise."""
    given = {call.request_id: call for call in calls if call.outcome == "200"}
    source = {one.job_id: one.upstream_request_id for one in attempts if one.outcome == "succeeded"}
    for note in accepted:
        row = jobs.get(_id(note))
        if row is None or row.status != "succeeded":
            continue
        stored = _content(row)
        call = given.get(source.get(row.id, ""))
        is_own = stored == echo(note.text) or (call is not None and "garbage=" in call.behaviour and stored.endswith(note.text))
        if not is_own or (note.said is not None and note.said != stored):
            yield f"{note.job_id} was answered with {stored!r}, its client got {note.said!r}, and it had asked {note.text!r}"
        elif call is None or call.text != note.text:
            yield f"{note.job_id} has an answer that the upstream gave to {call.text if call else 'nobody'!r}"


def _turns(accepted: Sequence[Note], jobs: dict[UUID, Any], attempts: Sequence[Any], calls: Sequence[Call]) -> Iterable[str]:
    """Each turn began after the end of the one before it, and its call was told of all that had been answered."""
    begun: dict[UUID, Any] = {}
    for one in attempts:
        begun.setdefault(one.job_id, one.started_at)
    asked = defaultdict(list)
    for call in calls:
        asked[call.text].append(call)
    talks = defaultdict(list)
    for note in accepted:
        if note.conversation and _id(note) in jobs:
            talks[note.conversation].append(note)
    for name, notes in talks.items():
        heard: list[list[str]] = []
        before = None
        for note in sorted(notes, key=lambda each: each.turn):
            row = jobs[_id(note)]
            if before is not None and (row.turn <= before.turn or (row.id in begun and not begun[row.id] >= before.ended_at)):
                yield f"turn {note.turn} of {name} did not wait for the one before it"
            if any(call.before != heard for call in asked[note.text]):
                yield f"turn {note.turn} of {name} was told {[call.before for call in asked[note.text]]} and not {heard}"
            if row.status == "succeeded":
                heard = [*heard, ["user", note.text], ["assistant", _content(row)]]
            before = row


def _ledger(ids: Sequence[UUID]) -> Iterable[str]:
    """Each call's entries add up to what its answer used; to the reservation when nobody knows; to nothing otherwise."""
    for row in itertools.chain.from_iterable(query(_BOOKS, ids=ids[n : n + AT_ONCE]) for n in range(0, len(ids), AT_ONCE)):
        expected = -row.cost if row.cost is not None else -row.reserved if row.outcome in ("unknown", "cancelled") else 0
        if row.booked != expected:
            yield f"an attempt ({row.outcome}) of {row.job_id} is booked with {row.booked} and not {expected} micro-USD"
        if row.outcome == "succeeded" and row.cost is None:
            yield f"{row.job_id} succeeded and there is no usage of it"


def _arrived(got: Sequence[Got]) -> Counter[tuple[str, str, str]]:
    """How often each event arrived: path, kind, job."""
    return Counter((one.path, one.event["type"], one.event["data"]["id"]) for one in got if one.status == 200)


def _untold(accepted: Sequence[Note], jobs: dict[UUID, Any], arrived: Counter[tuple[str, str, str]]) -> Iterable[str]:
    for note in accepted:
        row = jobs.get(_id(note))
        if row is None or row.status not in TERMINAL:
            continue
        for path in ("/endpoint", *(["/own"] if note.how == "hook" else [])):
            if not arrived[path, f"job.{row.status}", str(note.job_id)]:
                yield f"nobody told {path} that {note.job_id} {row.status}"


_LOST = """
    SELECT job_id, count(*) AS n FROM job_event WHERE job_id = ANY(:ids) AND detail->>'reason' = 'lost' GROUP BY job_id
"""
_BOOKS = """
    SELECT attempt.job_id, attempt.outcome, usage.cost_microusd AS cost, coalesce(job.reserved_microusd, 0) AS reserved,
           (SELECT coalesce(sum(amount_microusd), 0)::bigint FROM ledger WHERE ledger.dispatch_id = attempt.dispatch_id) AS booked
    FROM attempt JOIN job ON job.id = attempt.job_id LEFT JOIN usage ON usage.dispatch_id = attempt.dispatch_id
    WHERE attempt.job_id = ANY(:ids)
"""
