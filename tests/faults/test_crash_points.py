"""A process dies, freezes past its lease or raises at each named place, with one job under way; then everything is healthy again.

All cases run once, side by side in one stack, each job in a line of its own that is open only while its case is on. The tests
compare what came of each.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from models.database import db
from models.jobs import claims
from models.jobs.states import TERMINAL
from models.keys.keys import Key
from models.platform.errors import Unavailable
from models.queue import admission, lanes
from tests.support.programs import processes
from tests.support.programs.live_jobs import ask, attempts, caller, row, rows, violations, wait_ended, wake_lane
from tests.support.programs.process import Process, until
from tests.support.programs.processes import Stack

HOWS = ("exit", "freeze", "raise")
# The first step only finds that the limiter has no state yet.
PACER = {"pacer.after_claim_lanes": 1, "pacer.after_reserve": 2, "pacer.after_admit": 2, "pacer.mid_publish": 1, "rebuild.before_init": 1}
WORKER = (
    "worker.before_claim",
    "worker.after_claim",
    "worker.before_send",
    "worker.after_answer",
    "worker.before_finish",
    "worker.after_finish",
)
SWEEP = "sweep.mid_reap"


@dataclass(frozen=True)
class Left:
    """What came of a case. at_crash: the job's status when the process was gone; calls: how many the upstream saw."""

    at_crash: str
    attempts: list[str]
    possible_duplicate_calls: int = 0
    failures: int = 0
    calls: int = 1
    status: str = "succeeded"


CLEAN = ["succeeded"]
LOST = ["unknown", "succeeded"]
EXPECTED: dict[str, dict[str, Left]] = {
    "pacer.after_claim_lanes": dict.fromkeys(HOWS, Left("queued", CLEAN)),
    "rebuild.before_init": dict.fromkeys(HOWS, Left("queued", CLEAN)),
    "pacer.after_reserve": dict.fromkeys(HOWS, Left("queued", CLEAN)),
    "pacer.after_admit": dict.fromkeys(HOWS, Left("admitted", CLEAN)),
    # The doorbell has been rung, so the job is on its way already.
    "pacer.mid_publish": dict.fromkeys(HOWS, Left("", CLEAN)),
    SWEEP: dict.fromkeys(HOWS, Left("queued", LOST, possible_duplicate_calls=1, failures=1)),
    "worker.before_claim": dict.fromkeys(HOWS, Left("admitted", CLEAN)),
    # On record as sent, but never sent: flagged all the same, unless the worker itself comes back to say so.
    **{
        point: {
            "exit": Left("running", LOST, possible_duplicate_calls=1, failures=1),
            "raise": Left("running", LOST, possible_duplicate_calls=1, failures=1),
            "freeze": Left("running", ["not_sent", "succeeded"], possible_duplicate_calls=1, failures=1),
        }
        for point in ("worker.after_claim", "worker.before_send")
    },
    # Answered and paid for, and not stored: called again and flagged, unless the worker comes back with the answer first.
    **{
        point: {
            "exit": Left("running", LOST, possible_duplicate_calls=1, failures=1, calls=2),
            "raise": Left("running", LOST, possible_duplicate_calls=1, failures=1, calls=2),
            "freeze": Left("running", CLEAN, failures=1),
        }
        for point in ("worker.after_answer", "worker.before_finish")
    },
    "worker.after_finish": dict.fromkeys(HOWS, Left("succeeded", CLEAN)),
}


class Case:
    """One job, one line, one process that crashes."""

    def __init__(self, point: str, how: str) -> None:
        self.point, self.how = point, how
        self.who: Key = caller(f"sk-{point}-{how}")
        self.at_crash = ""
        self.process: Process | None = None
        lanes.id_of(self.who.pool_id, "m")
        self.close()
        self.said = f"{point} {how}"
        self.job_id: UUID = ask(self.who, self.said)

    def close(self) -> None:
        self._set_lane("paused_at = now()")

    def open(self) -> None:
        self._set_lane("paused_at = NULL, wake_at = now(), idle_since = NULL")
        wake_lane(self.who)

    def crash(self, process: Process) -> None:
        """The process got as far as its point with this job."""
        self.process = process
        self.open()
        until(lambda: _has_crashed(process, self.how), what=f"crashed at {self.point}:\n{process.said()[-3000:]}")
        self.close()
        self.at_crash = row(self.job_id).status

    def _set_lane(self, values: str) -> None:
        def is_set() -> bool:
            with suppress(Unavailable), db.begin() as session:
                session.execute(text(f"UPDATE lane SET {values} WHERE pool_id = :id"), {"id": self.who.pool_id})
                return True
            return False

        # A frozen process may hold the lane's lock, until Postgres ends its transaction.
        until(is_set, what="lane set")


class Course:
    """All cases from their crash to their end, in three acts: pacers, sweeps, workers."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.cases: dict[tuple[str, str], Case] = {}
        self.failed: dict[tuple[str, str], Exception] = {}

    def run(self) -> None:
        worker = self.stack.worker(threads=4)
        self._each(PACER, lambda case: case.crash(self.stack.pacer(crash=f"{case.point}:{case.how}:{PACER[case.point]}")))
        sweepers = {how: self.stack.pacer(crash=f"{SWEEP}:{how}") for how in HOWS}
        self._recover(PACER)
        self._sweep(sweepers)
        self._expect_frozen_to_do_no_harm(PACER)
        worker.stop()
        self.stack.pacer()
        self._each(WORKER, self._crash_worker)
        until(lambda: self._are(WORKER, {"queued", *TERMINAL}), what="every lost job found")
        self._let_late_workers_speak()
        self.stack.worker(threads=4)
        self._recover((*WORKER, SWEEP))

    def left(self, point: str, how: str) -> Left:
        if (point, how) in self.failed:
            raise self.failed[point, how]
        case = self.cases[point, how]
        ended = row(case.job_id)
        calls = [call for call in self.stack.upstream.calls() if call.text == case.said]
        assert [] == violations([case.job_id], calls)
        at_crash = case.at_crash if EXPECTED[point][how].at_crash else ""
        return Left(at_crash, attempts(case.job_id), ended.possible_duplicate_calls, ended.failures, len(calls), ended.status)

    def _each(self, points: Collection[str], crash: Callable[[Case], None]) -> None:
        for point, how in itertools.product(points, HOWS):
            case = self.cases[point, how] = Case(point, how)
            try:
                crash(case)
            except (TimeoutError, AssertionError) as error:
                self.failed[point, how] = error
                case.close()

    def _crash_worker(self, case: Case) -> None:
        process = self.stack.worker(threads=1, crash=f"{case.point}:{case.how}")
        case.crash(process)
        if case.how == "raise":
            assert process.is_alive(), "one job's failure ended the worker"
            process.stop()

    def _sweep(self, sweepers: dict[str, Process]) -> None:
        """Each sweeper finds one lost call, whichever of them is first."""
        lost = [_lost_call(Case(SWEEP, f"{n}")) for n in range(len(HOWS))]
        for case in lost:
            _expire_lease(case)
            how = until(
                lambda: next((how for how in sweepers if _has_crashed(sweepers[how], how)), None), what="a sweep that crashed", within_s=20
            )
            case.how, case.process = how, sweepers.pop(how)
            case.at_crash = row(case.job_id).status
            self.cases[SWEEP, how] = case

    def _recover(self, points: Collection[str]) -> None:
        cases = [case for (point, _), case in self.cases.items() if point in points]
        for case in cases:
            case.open()
        wait_ended([case.job_id for case in cases], stack=self.stack)

    def _expect_frozen_to_do_no_harm(self, points: Collection[str]) -> None:
        frozen = [case.process for (point, how), case in self.cases.items() if point in points and how == "freeze"]
        for process in frozen:
            assert process
            process.go_on()
        # A line of its own, served by whoever is there: when it is through, so are their interrupted steps.
        for n in range(len(frozen)):
            wait_ended([ask(caller("sk-proof"), f"proof {n}")], stack=self.stack)
        for process in self.stack.processes:
            if process.name == "pacer":
                process.kill()

    def _let_late_workers_speak(self) -> None:
        frozen = [case for (point, how), case in self.cases.items() if point in WORKER and how == "freeze"]
        for case in frozen:
            assert case.process
            case.process.go_on()
        heard = [case for case in frozen if case.at_crash == "running"]
        until(lambda: all("unknown" not in attempts(case.job_id) for case in heard), what="every late worker heard")
        for case in frozen:
            assert case.process
            case.process.kill()

    def _are(self, points: Collection[str], statuses: set[str]) -> bool:
        jobs = [case.job_id for (point, _), case in self.cases.items() if point in points]
        return {one.status for one in rows(jobs)} <= statuses


@pytest.fixture(scope="module")
def course(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Course]:
    folder = tmp_path_factory.mktemp("stack")
    with processes.running(folder, lease_s=3, heartbeat_s=0.8, unclaimed_after_s=1.5, retry_base_s=0.05) as stack:
        made = Course(stack)
        made.run()
        yield made


@pytest.mark.parametrize(("point", "how"), [(point, how) for point in EXPECTED for how in HOWS])
def test_a_job_survives(course: Course, point: str, how: str) -> None:
    assert EXPECTED[point][how] == course.left(point, how)


def test_nothing_was_lost_and_nothing_paid_twice_in_silence(course: Course) -> None:
    jobs = [case.job_id for case in course.cases.values()]

    assert len(EXPECTED) * len(HOWS) == len(jobs)
    assert [] == violations(jobs, course.stack.upstream.calls())


def _lost_call(case: Case) -> Case:
    """Its job is running, in the hands of a worker that does not exist."""
    dispatch_id = uuid4()
    with db.begin() as session:
        credential_id = session.execute(text("SELECT id FROM credential WHERE pool_id = :id"), {"id": case.who.pool_id}).scalar_one()
        # Nobody is admitted where it is paused. No pacer sees it open.
        session.execute(text("UPDATE lane SET paused_at = NULL WHERE pool_id = :id"), {"id": case.who.pool_id})
        assert admission.admit(session, [admission.Admission(case.job_id, dispatch_id, credential_id)])
        session.execute(text("UPDATE lane SET paused_at = now() WHERE pool_id = :id"), {"id": case.who.pool_id})
        assert claims.claim(session, case.job_id, dispatch_id, lease_s=3600)
    return case


def _expire_lease(case: Case) -> None:
    with db.begin() as session:
        session.execute(text("UPDATE job SET lease_until = clock_timestamp() - interval '1 s' WHERE id = :id"), {"id": case.job_id})


def _has_crashed(process: Process, how: str) -> bool:
    if how == "freeze":
        return process.is_frozen()
    return "Crashed" in process.said() if how == "raise" else not process.is_alive()
