"""Invariants that hold under every fault: compares the journals of client, upstream and webhook receiver with the database."""

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
from tests.chaos.journal import FaultWindow, Journal, RequestRecord
from tests.support.queue_tools import query
from tests.support.servers.webhook_receiver import Got
from tests.upstream.chat import echo
from tests.upstream.journal import Call

# Behaviours of the fake upstream after which the outcome of a call is unknown.
UNKNOWN_OUTCOME_BEHAVIOURS = ("hang=", "reset=", "garbage=", "cut_after=", "drip=")
BATCH_SIZE = 500  # job ids per query: on a busy machine a statement has 5 s
PER_RULE = 5  # violations printed per rule


@dataclass(frozen=True)
class Evidence:
    """The journals of client, upstream and receiver.

    lost: calls in flight when a process was killed. windows: when each fault was active.
    """

    journal: Journal
    calls: Sequence[Call]
    deliveries: Sequence[Got]
    lost: int = 0
    windows: Sequence[FaultWindow] = ()


@dataclass
class Findings:
    """Counters and violations, as texts. allowed: the calls that may have an unknown outcome."""

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

    def report(self, rule: str, violations: Iterable[str]) -> None:
        """Record violations of a rule."""
        violations = list(violations)
        self.counts[rule] += len(violations)
        self.broken += [f"{rule}: {violation}" for violation in violations[:PER_RULE]]


RULES = ("lost or stuck", "answered twice, unmarked", "unknown without cause", "wrong result", "over a limit", "turn out of order",
         "ledger off", "webhook missing", "unexpected answer", *refusals.RULES)  # fmt: skip


def check(evidence: Evidence) -> Findings:
    """Check all rules against the current database."""
    journal, calls = evidence.journal, evidence.calls
    accepted = [record for record in journal if record.job_id]
    jobs = {row.id: row for row in query("SELECT * FROM job WHERE id = ANY(:ids)", ids=[_job_id(record) for record in accepted])}
    attempts = query("SELECT * FROM attempt WHERE job_id = ANY(:ids) ORDER BY n", ids=list(jobs))
    findings = Findings(jobs=len(accepted), calls=len(calls), repeats=journal.repeats)
    findings.statuses = Counter(row.status for row in jobs.values())
    findings.unknown = sum(attempt.outcome == "unknown" for attempt in attempts)
    findings.allowed = evidence.lost + sum(any(name in call.behaviour for name in UNKNOWN_OUTCOME_BEHAVIOURS) for call in calls)
    findings.doubled = sum(row.possible_duplicate_calls for row in jobs.values())
    findings.report("lost or stuck", _lost_or_stuck(accepted, jobs, attempts))
    findings.report("answered twice, unmarked", _unmarked_duplicates(jobs, attempts, calls))
    findings.report(
        "unknown without cause", [f"{findings.unknown} of at most {findings.allowed}"] if findings.unknown > findings.allowed else []
    )
    findings.report("wrong result", _wrong_results(accepted, jobs, attempts, calls))
    findings.report("over a limit", (f"call {call.n} of {call.key} was refused by the upstream" for call in calls if call.is_refused))
    findings.report("turn out of order", _turns_out_of_order(accepted, jobs, attempts, calls))
    findings.report("ledger off", _ledger_mismatches(list(jobs)))
    arrived = _count_arrivals(evidence.deliveries)
    names = {record.job_id for record in accepted}
    findings.deliveries = sum(n for (_, _, job_id), n in arrived.items() if job_id in names)
    findings.report("webhook missing", _missing_webhooks(accepted, jobs, arrived))
    findings.report("unexpected answer", journal.unexpected)
    _check_refusals(findings, evidence, accepted, jobs, attempts)
    return findings


def _check_refusals(
    findings: Findings, evidence: Evidence, accepted: Sequence[RequestRecord], jobs: dict[UUID, Any], attempts: Sequence[Any]
) -> None:
    calls, windows, outcomes = evidence.calls, evidence.windows, _outcomes(attempts)
    lost = {row.job_id: row.n for row in query(_LOST, ids=list(jobs))}
    findings.report("held up by another", refusals.held_up(accepted, calls, windows))
    findings.report("refused too often", refusals.refused_too_often(jobs, outcomes, lost))
    findings.report("failed beside a good key", refusals.failed_beside_good_key(jobs, outcomes))
    findings.report("bad key called", refusals.bad_key_called(calls, windows))
    findings.report("unreadable again", refusals.unreadable_again(accepted, jobs, calls, lost))


def _outcomes(attempts: Sequence[Any]) -> dict[UUID, list[str]]:
    """The attempts' outcomes of each job, in order."""
    outcomes = defaultdict(list)
    for attempt in attempts:
        outcomes[attempt.job_id].append(attempt.outcome)
    return outcomes


def _content(row: Any) -> str:
    """The text of the stored completion."""
    return str(json.loads(bytes(row.response))["choices"][0]["message"]["content"])


def _job_id(record: RequestRecord) -> UUID:
    return wire.parse_id(str(record.job_id))


def _lost_or_stuck(accepted: Sequence[RequestRecord], jobs: dict[UUID, Any], attempts: Sequence[Any]) -> Iterable[str]:
    """Jobs that are missing, not terminal, failed without a reason, or ended differently from what the client saw."""
    outcomes = _outcomes(attempts)
    for attempt in attempts:
        if attempt.outcome == "running" and jobs[attempt.job_id].status in TERMINAL:
            yield f"an attempt of {attempt.job_id} never ended"
    for record in accepted:
        row = jobs.get(_job_id(record))
        if row is None:
            yield f"{record.job_id} was accepted and is not there"
        elif row.status not in TERMINAL:
            yield f"{record.job_id} is still {row.status}: {row.error or ''}"
        elif row.status == "failed" and not _has_reason(row, outcomes.get(row.id, [])):
            yield f"{record.job_id} failed for no reason: {row.error}"
        elif row.status in ("cancelled", "expired") and record.how in ("poll", "wait", "hook"):
            yield f"{record.job_id} was {row.status} without a request"
        elif record.status not in (None, row.status):
            yield f"{record.job_id} is {row.status} and its client saw {record.status}"
        elif record.status is None and record.how != "hook":
            yield f"{record.job_id} is {row.status} and its client ({record.how}) never saw its end"


def _has_reason(row: Any, outcomes: Sequence[str]) -> bool:
    """Whether the attempts explain why the job failed.

    A call that was reaped as lost may have succeeded since. A refusal has a rule of its own.
    """
    is_lost = bool(row.error) and row.error.get("code") == LOST["code"]
    return (is_lost and bool(outcomes)) or list(outcomes[-1:]) == ["refused"] or refusals.has_reason(row, outcomes)


def _unmarked_duplicates(jobs: dict[UUID, Any], attempts: Sequence[Any], calls: Sequence[Call]) -> Iterable[str]:
    """Jobs with two successful calls and no duplicate mark, and calls without an attempt recorded before them."""
    job_of = {str(attempt.dispatch_id): attempt.job_id for attempt in attempts}
    answered: Counter[UUID] = Counter()
    for call in calls:
        job_id = job_of.get(call.headers.get("x-client-request-id", ""))
        if job_id is None:
            known = query("SELECT 1 FROM attempt WHERE dispatch_id::text = :id", id=call.headers.get("x-client-request-id", ""))
            if not known:
                yield f"call {call.n} ({call.text!r}) has no recorded attempt"
        elif call.outcome == "200":
            answered[job_id] += 1
    for job_id, n in answered.items():
        if n > 1 + jobs[job_id].possible_duplicate_calls:
            yield f"{job_id} was answered {n} times and is marked with {jobs[job_id].possible_duplicate_calls} possible duplicates"


def _wrong_results(
    accepted: Sequence[RequestRecord], jobs: dict[UUID, Any], attempts: Sequence[Any], calls: Sequence[Call]
) -> Iterable[str]:
    """Jobs with another job's answer, with an answer that the upstream never sent, or with one that the client received differently."""
    given = {call.request_id: call for call in calls if call.outcome == "200"}
    source = {attempt.job_id: attempt.upstream_request_id for attempt in attempts if attempt.outcome == "succeeded"}
    for record in accepted:
        row = jobs.get(_job_id(record))
        if row is None or row.status != "succeeded":
            continue
        stored = _content(row)
        call = given.get(source.get(row.id, ""))
        is_own = stored == echo(record.text) or (call is not None and "garbage=" in call.behaviour and stored.endswith(record.text))
        if not is_own or (record.content is not None and record.content != stored):
            yield f"{record.job_id} was answered with {stored!r}, its client got {record.content!r}, and it had asked {record.text!r}"
        elif call is None or call.text != record.text:
            yield f"{record.job_id} has an answer that the upstream gave to {call.text if call else None!r}"


def _turns_out_of_order(
    accepted: Sequence[RequestRecord], jobs: dict[UUID, Any], attempts: Sequence[Any], calls: Sequence[Call]
) -> Iterable[str]:
    """Turns that began before the previous turn ended, and calls whose history is not all succeeded turns before them."""
    begun: dict[UUID, Any] = {}
    for attempt in attempts:
        begun.setdefault(attempt.job_id, attempt.started_at)
    calls_by_text = defaultdict(list)
    for call in calls:
        calls_by_text[call.text].append(call)
    conversations = defaultdict(list)
    for record in accepted:
        if record.conversation and _job_id(record) in jobs:
            conversations[record.conversation].append(record)
    for name, records in conversations.items():
        expected_history: list[list[str]] = []
        before = None
        for record in sorted(records, key=lambda each: each.turn):
            row = jobs[_job_id(record)]
            if before is not None and (row.turn <= before.turn or (row.id in begun and not begun[row.id] >= before.ended_at)):
                yield f"turn {record.turn} of {name} did not wait for the one before it"
            if any(call.before != expected_history for call in calls_by_text[record.text]):
                yield f"turn {record.turn} of {name} had a wrong history, not {expected_history}"
            if row.status == "succeeded":
                expected_history = [*expected_history, ["user", record.text], ["assistant", _content(row)]]
            before = row


def _ledger_mismatches(ids: Sequence[UUID]) -> Iterable[str]:
    """Attempts whose ledger entries do not match.

    Expected sum: the cost of the answer; the reservation when the outcome is unknown or cancelled; otherwise zero.
    """
    for row in itertools.chain.from_iterable(query(_LEDGER_SUMS, ids=ids[n : n + BATCH_SIZE]) for n in range(0, len(ids), BATCH_SIZE)):
        expected = -row.cost if row.cost is not None else -row.reserved if row.outcome in ("unknown", "cancelled") else 0
        if row.booked != expected:
            yield f"an attempt ({row.outcome}) of {row.job_id} is booked with {row.booked} and not {expected} micro-USD"
        if row.outcome == "succeeded" and row.cost is None:
            yield f"{row.job_id} succeeded and has no usage row"


def _count_arrivals(got: Sequence[Got]) -> Counter[tuple[str, str, str]]:
    """How often each event arrived, by path, event type and job id."""
    return Counter((one.path, one.event["type"], one.event["data"]["id"]) for one in got if one.status == 200)


def _missing_webhooks(accepted: Sequence[RequestRecord], jobs: dict[UUID, Any], arrived: Counter[tuple[str, str, str]]) -> Iterable[str]:
    for record in accepted:
        row = jobs.get(_job_id(record))
        if row is None or row.status not in TERMINAL:
            continue
        for path in ("/endpoint", *(["/own"] if record.how == "hook" else [])):
            if not arrived[path, f"job.{row.status}", str(record.job_id)]:
                yield f"{path} got no webhook: {record.job_id} {row.status}"


_LOST = """
    SELECT job_id, count(*) AS n FROM job_event WHERE job_id = ANY(:ids) AND detail->>'reason' = 'lost' GROUP BY job_id
"""
_LEDGER_SUMS = """
    SELECT attempt.job_id, attempt.outcome, usage.cost_microusd AS cost, coalesce(job.reserved_microusd, 0) AS reserved,
           (SELECT coalesce(sum(amount_microusd), 0)::bigint FROM ledger WHERE ledger.dispatch_id = attempt.dispatch_id) AS booked
    FROM attempt JOIN job ON job.id = attempt.job_id LEFT JOIN usage ON usage.dispatch_id = attempt.dispatch_id
    WHERE attempt.job_id = ANY(:ids)
"""
