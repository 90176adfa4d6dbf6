"""The short form of `make chaos`: real processes, a mix of faults by seed, every promise checked; and the check itself, told lies."""

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
from tests.chaos.check import Evidence, Found, check
from tests.chaos.journal import Journal, Note
from tests.chaos.run import Outcome
from tests.chaos.schedule import Event
from tests.chaos.stack import Plant
from tests.support.queue_tools import query
from tests.upstream.journal import Call

# Those that last come first.
MIX = (
    "every tenth doorbell lost",
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
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    """What came of the mix, with its database still there."""
    before = dict(os.environ)
    try:
        with Plant(tmp_path_factory.mktemp("chaos")) as plant:
            events = [Event(1.0 + 1.2 * n, name, seed=n) for n, name in enumerate(MIX)]
            yield run.run(plant, "short", events, seed=7, rate=6, say=print)
    finally:
        os.environ.clear()
        os.environ.update(before)
        conftest.forget()


def test_all_promises_hold_under_successive_faults(outcome: Outcome) -> None:
    assert [] == outcome.broken
    assert outcome.found.statuses["succeeded"] > 20
    assert {"poll", "wait", "hook", "stream", "held"} == {note.how for note in outcome.evidence.journal}


def _told_otherwise(evidence: Evidence) -> Evidence:
    return _with_note(evidence, said="something else")


def _told_twice(evidence: Evidence) -> Evidence:
    return _with_note(evidence, status="failed")


def _never_stored(evidence: Evidence) -> Evidence:
    return _with_note(evidence, job_id="job_" + "0" * 32)


def _with_note(evidence: Evidence, **changes: str) -> Evidence:
    journal = copy.copy(evidence.journal)
    notes = journal.since(0)
    first = next(n for n, note in enumerate(notes) if note.status == "succeeded" and note.how == "poll")
    journal._notes = [*notes[:first], replace(notes[first], **changes), *notes[first + 1 :]]  # type: ignore[arg-type]
    return replace(evidence, journal=journal)


def _called_again(evidence: Evidence) -> Evidence:
    return replace(evidence, calls=[*evidence.calls, *_good_calls(evidence)])


def _called_ahead(evidence: Evidence) -> Evidence:
    return replace(evidence, calls=[*evidence.calls, replace(_good_calls(evidence)[0], headers={})])


def _refused(evidence: Evidence) -> Evidence:
    return replace(evidence, calls=[replace(call, is_refused=True) for call in evidence.calls])


def _forgetful(evidence: Evidence) -> Evidence:
    return replace(evidence, calls=[replace(call, before=[]) for call in evidence.calls])


def _good_calls(evidence: Evidence) -> list[Call]:
    return [call for call in evidence.calls if call.outcome == "200"]


def _unheard(evidence: Evidence) -> Evidence:
    return replace(evidence, got=evidence.got[1:] if len(evidence.got) < 2 else [one for one in evidence.got if one.path != "/own"])


@pytest.mark.parametrize(
    ("rule", "lie"),
    [
        ("wrong result", _told_otherwise),
        ("lost or stuck", _told_twice),
        ("lost or stuck", _never_stored),
        ("answered twice, unmarked", _called_again),
        ("answered twice, unmarked", _called_ahead),
        ("over a limit", _refused),
        ("turn out of order", _forgetful),
        ("webhook missing", _unheard),
    ],
)
def test_a_broken_promise_is_found_in_the_journals(outcome: Outcome, rule: str, lie: Callable[[Evidence], Evidence]) -> None:
    assert 0 < check(lie(outcome.evidence)).counts[rule]


@pytest.mark.parametrize(
    ("rule", "harm"),
    [
        ("lost or stuck", "UPDATE job SET status = 'running' WHERE id IN (SELECT job_id FROM usage LIMIT 1)"),
        ("ledger off", "UPDATE usage SET cost_microusd = cost_microusd + 1"),
        ("ledger off", "DELETE FROM usage"),
        ("turn out of order", "UPDATE job SET ended_at = now() + interval '1 h' WHERE conversation_id IS NOT NULL"),
        ("unknown without cause", "UPDATE attempt SET outcome = 'unknown'"),
        ("wrong result", "UPDATE attempt SET upstream_request_id = 'req_other'"),
    ],
)
def test_a_broken_promise_is_found_in_the_database(outcome: Outcome, rule: str, harm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < _after(harm, outcome, monkeypatch).counts[rule]


@pytest.mark.parametrize(("code", "is_one"), [("upstream_outcome_unknown", True), ("anything_else", False)])
def test_that_a_call_was_given_up_for_lost_is_a_reason_though_it_answered_later(
    outcome: Outcome, code: str, is_one: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    harm = f"""UPDATE job SET status = 'failed', error = '{{"code": "{code}"}}' WHERE id IN (SELECT job_id FROM usage LIMIT 1)"""
    found = _after(harm, outcome, monkeypatch)

    assert is_one == (not any("for no reason" in one for one in found.broken))


def _after(harm: str, outcome: Outcome, monkeypatch: pytest.MonkeyPatch) -> Found:
    """What is found after this was done to the database, where it is undone."""

    class Undone(Exception):
        pass

    with suppress(Undone), db.begin() as session:
        session.execute(text(harm))
        monkeypatch.setattr("tests.chaos.check.query", lambda said, **values: session.execute(text(said), values).all())
        found = check(outcome.evidence)
        raise Undone

    assert query("SELECT 1 FROM usage LIMIT 1")
    return found


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
    said = b"".join(broker_faults.encoded([b"LPUSH", b"jobs", b"job \r\n %d" % n]) + broker_faults.encoded([b"PING"]) for n in range(20))
    pieces = [said[start : start + size] for start in range(0, len(said), size)]
    twice, lossy, once = (broker_faults.Postman(how) for how in ("twice", "lossy", "once"))
    out = {post.how: b"".join(map(broker_faults.Rewriter(post).feed, pieces)) for post in (twice, lossy, once)}

    assert said == out["once"]
    assert (20, out["twice"].count(b"job ")) == (twice.doubled, 40)
    assert (2, 18) == (lossy.lost, out["lossy"].count(b"job "))
    assert {20} == {text.count(b"PING") for text in out.values()}


def test_client_reports_a_second_end_of_a_job(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "client.jsonl")
    note: Note = journal.begin("sk-a", "hello", how="poll")
    journal.accept(note, "job_1")
    journal.accept(note, "job_2")
    journal.end(note, "succeeded", said="echo")
    journal.end(note, "failed")

    assert 2 == len(journal.odd)


@pytest.mark.skipif(clock.COMPILER is None, reason="needs a C compiler")
def test_a_process_sees_its_clock_set_and_its_sleeps_go_on(tmp_path: Path) -> None:
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
