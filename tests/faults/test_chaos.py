"""Short form of `make chaos`: real processes and a mix of seeded faults. Also tests the checks with manipulated evidence."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import text

from models.database import db
from tests import conftest
from tests.chaos import broker_faults, clock, run, schedule
from tests.chaos.check import Evidence, Findings, check
from tests.chaos.journal import Journal, RequestRecord
from tests.chaos.run import RunResult
from tests.chaos.schedule import Event
from tests.chaos.stack import Stack
from tests.support.queue_tools import query
from tests.upstream.journal import Call

# The longest faults first.
MIX = (
    "every tenth broker message lost",
    "upstream resets",
    "poisoned requests",
    "failing credential",
    "worker killed",
    "FLUSHALL",
    "pacer killed",
    "Postgres connections cut",
    "API killed",
)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunResult]:
    """The result of the mix, with its database still in place."""
    before = dict(os.environ)
    try:
        with Stack(tmp_path_factory.mktemp("chaos")) as stack:
            events = [Event(1.0 + 1.2 * n, name, seed=n) for n, name in enumerate(MIX)]
            yield run.run(stack, "short", events, seed=7, rate=6, print_line=print)
    finally:
        os.environ.clear()
        os.environ.update(before)
        conftest.clear_caches()


def test_all_promises_hold_under_successive_faults(result: RunResult) -> None:
    assert [] == result.broken
    assert result.findings.statuses["succeeded"] > 20
    assert {"poll", "wait", "hook", "stream", "held"} == {record.how for record in result.evidence.journal}


def _result_differs_at_client(evidence: Evidence) -> Evidence:
    return _with_record(evidence, content="something else")


def _status_differs_at_client(evidence: Evidence) -> Evidence:
    return _with_record(evidence, status="failed")


def _job_missing(evidence: Evidence) -> Evidence:
    return _with_record(evidence, job_id="job_" + "0" * 32)


def _with_record(evidence: Evidence, **changes: str) -> Evidence:
    journal = copy.copy(evidence.journal)
    records = journal.since(0)
    first = next(n for n, record in enumerate(records) if record.status == "succeeded" and record.how == "poll")
    journal._records = [*records[:first], replace(records[first], **changes), *records[first + 1 :]]  # type: ignore[arg-type]
    return replace(evidence, journal=journal)


def _calls_repeated(evidence: Evidence) -> Evidence:
    return replace(evidence, calls=[*evidence.calls, *_good_calls(evidence)])


def _call_without_attempt(evidence: Evidence) -> Evidence:
    return replace(evidence, calls=[*evidence.calls, replace(_good_calls(evidence)[0], headers={})])


def _all_refused(evidence: Evidence) -> Evidence:
    return replace(evidence, calls=[replace(call, is_refused=True) for call in evidence.calls])


def _history_missing(evidence: Evidence) -> Evidence:
    return replace(evidence, calls=[replace(call, before=[]) for call in evidence.calls])


def _good_calls(evidence: Evidence) -> list[Call]:
    return [call for call in evidence.calls if call.outcome == "200"]


def _webhooks_missing(evidence: Evidence) -> Evidence:
    return replace(
        evidence,
        deliveries=evidence.deliveries[1:]
        if len(evidence.deliveries) < 2
        else [delivery for delivery in evidence.deliveries if delivery.path != "/own"],
    )


@pytest.mark.parametrize(
    ("rule", "tamper"),
    [
        ("wrong result", _result_differs_at_client),
        ("lost or stuck", _status_differs_at_client),
        ("lost or stuck", _job_missing),
        ("answered twice, unmarked", _calls_repeated),
        ("answered twice, unmarked", _call_without_attempt),
        ("over a limit", _all_refused),
        ("turn out of order", _history_missing),
        ("webhook missing", _webhooks_missing),
    ],
)
def test_checks_find_a_broken_promise_in_the_journals(result: RunResult, rule: str, tamper: Callable[[Evidence], Evidence]) -> None:
    assert 0 < check(tamper(result.evidence)).counts[rule]


@pytest.mark.parametrize(
    ("rule", "damage"),
    [
        ("lost or stuck", "UPDATE job SET status = 'running' WHERE id IN (SELECT job_id FROM usage LIMIT 1)"),
        ("ledger off", "UPDATE usage SET cost_microusd = cost_microusd + 1"),
        ("ledger off", "DELETE FROM usage"),
        ("turn out of order", "UPDATE job SET ended_at = now() + interval '1 h' WHERE conversation_id IS NOT NULL"),
        ("unknown without cause", "UPDATE attempt SET outcome = 'unknown'"),
        ("wrong result", "UPDATE attempt SET upstream_request_id = 'req_other'"),
    ],
)
def test_checks_find_a_broken_promise_in_the_database(result: RunResult, rule: str, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < _findings_after(damage, result, monkeypatch).counts[rule]


@pytest.mark.parametrize(("code", "is_reason"), [("upstream_outcome_unknown", True), ("anything_else", False)])
def test_reaped_call_explains_a_failed_job_though_it_was_answered_later(
    result: RunResult, code: str, is_reason: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage = f"""UPDATE job SET status = 'failed', error = '{{"code": "{code}"}}' WHERE id IN (SELECT job_id FROM usage LIMIT 1)"""
    findings = _findings_after(damage, result, monkeypatch)

    assert is_reason == (not any("for no reason" in violation for violation in findings.broken))


def _findings_after(damage: str, result: RunResult, monkeypatch: pytest.MonkeyPatch) -> Findings:
    """Findings after damage to the database, which is rolled back."""

    class Undone(Exception):
        pass

    with suppress(Undone), db.begin() as session:
        session.execute(text(damage))
        monkeypatch.setattr("tests.chaos.check.query", lambda statement, **params: session.execute(text(statement), params).all())
        findings = check(result.evidence)
        raise Undone

    assert query("SELECT 1 FROM usage LIMIT 1")
    return findings


def test_schedule_is_reproduced_from_its_seed_and_from_its_printed_form() -> None:
    once, again, other = (schedule.mixed(schedule.FAULTS, seed=seed, for_s=600) for seed in (1, 1, 2))

    assert once == again != other
    assert once == schedule.read(schedule.write(once))


def test_two_faults_on_the_same_thing_never_overlap() -> None:
    busy: dict[str, float] = {}
    for event in schedule.mixed(schedule.FAULTS, seed=3, for_s=3600):
        kind = schedule.FAULTS[event.fault]

        assert all(busy.get(thing, 0) <= event.at_s for thing in kind.on)
        busy |= dict.fromkeys(kind.on, event.at_s + kind.lasts_s)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_broker_messages_are_duplicated_and_dropped_in_any_chunking(size: int) -> None:
    commands = b"".join(
        broker_faults.encode_command([b"LPUSH", b"jobs", b"job \r\n %d" % n]) + broker_faults.encode_command([b"PING"]) for n in range(20)
    )
    chunks = [commands[start : start + size] for start in range(0, len(commands), size)]
    twice, lossy, once = (broker_faults.MessageFaults(mode) for mode in ("twice", "lossy", "once"))
    out = {faults.mode: b"".join(map(broker_faults.CommandRewriter(faults).feed, chunks)) for faults in (twice, lossy, once)}

    assert commands == out["once"]
    assert (20, out["twice"].count(b"job ")) == (twice.doubled, 40)
    assert (2, 18) == (lossy.lost, out["lossy"].count(b"job "))
    assert {20} == {text.count(b"PING") for text in out.values()}


def test_client_reports_a_second_end_of_a_job(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "client.jsonl")
    record: RequestRecord = journal.begin("sk-a", "hello", how="poll")
    journal.accept(record, "job_1")
    journal.accept(record, "job_2")
    journal.end(record, "succeeded", content="echo")
    journal.end(record, "failed")

    assert 2 == len(journal.unexpected)


@pytest.mark.skipif(clock.COMPILER is None, reason="needs a C compiler")
def test_clock_offset_changes_wall_clock_and_not_sleeps(tmp_path: Path) -> None:
    own = clock.Clock(tmp_path, "own")
    program = "import sys, time\nfor _ in sys.stdin:\n    time.sleep(0.01)\n    print(time.time(), flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", program], env={**os.environ, **own.env}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin and process.stdout
        seen = []
        for offset_s in (0, 3600, -3600):
            own.set(offset_s)
            process.stdin.write("\n")
            process.stdin.flush()
            seen.append(float(process.stdout.readline()) - time.time() - offset_s)
        process.stdin.close()

    assert all(abs(off_s) < 60 for off_s in seen)
