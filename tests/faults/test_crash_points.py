"""A process exits, freezes past its lease or raises at each crash point with one job in flight; then all processes recover.

All cases run once, side by side in one stack. Each job has its own lane, which is open only during its case. The
tests compare the end state of each case.
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

MODES = ("exit", "freeze", "raise")
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
REAP = "sweep.mid_reap"


@dataclass(frozen=True)
class EndState:
    """The end state of a case.

    at_crash: the job's status after the crash. calls: the number that the upstream received.
    """

    at_crash: str
    attempts: list[str]
    possible_duplicate_calls: int = 0
    failures: int = 0
    calls: int = 1
    status: str = "succeeded"


CLEAN = ["succeeded"]
LOST = ["unknown", "succeeded"]
EXPECTED: dict[str, dict[str, EndState]] = {
    "pacer.after_claim_lanes": dict.fromkeys(MODES, EndState("queued", CLEAN)),
    "rebuild.before_init": dict.fromkeys(MODES, EndState("queued", CLEAN)),
    "pacer.after_reserve": dict.fromkeys(MODES, EndState("queued", CLEAN)),
    "pacer.after_admit": dict.fromkeys(MODES, EndState("admitted", CLEAN)),
    # The broker message was published, so the job may have progressed already.
    "pacer.mid_publish": dict.fromkeys(MODES, EndState("", CLEAN)),
    REAP: dict.fromkeys(MODES, EndState("queued", LOST, possible_duplicate_calls=1, failures=1)),
    "worker.before_claim": dict.fromkeys(MODES, EndState("admitted", CLEAN)),
    # Recorded as sent, but never sent: flagged anyway, unless the worker itself returns and corrects it.
    **{
        point: {
            "exit": EndState("running", LOST, possible_duplicate_calls=1, failures=1),
            "raise": EndState("running", LOST, possible_duplicate_calls=1, failures=1),
            "freeze": EndState("running", ["not_sent", "succeeded"], possible_duplicate_calls=1, failures=1),
        }
        for point in ("worker.after_claim", "worker.before_send")
    },
    # Answered and paid for, but not stored: called again and flagged, unless the worker returns with the answer first.
    **{
        point: {
            "exit": EndState("running", LOST, possible_duplicate_calls=1, failures=1, calls=2),
            "raise": EndState("running", LOST, possible_duplicate_calls=1, failures=1, calls=2),
            "freeze": EndState("running", CLEAN, failures=1),
        }
        for point in ("worker.after_answer", "worker.before_finish")
    },
    "worker.after_finish": dict.fromkeys(MODES, EndState("succeeded", CLEAN)),
}


class Case:
    """One job, one lane, one process that crashes."""

    def __init__(self, point: str, how: str) -> None:
        self.point, self.how = point, how
        self.key: Key = caller(f"sk-{point}-{how}")
        self.at_crash = ""
        self.process: Process | None = None
        lanes.id_of(self.key.pool_id, "m")
        self.close()
        self.prompt = f"{point} {how}"
        self.job_id: UUID = ask(self.key, self.prompt)

    def close(self) -> None:
        self._set_lane("paused_at = now()")

    def open(self) -> None:
        self._set_lane("paused_at = NULL, wake_at = now(), idle_since = NULL")
        wake_lane(self.key)

    def crash(self, process: Process) -> None:
        """Wait until the process has reached its crash point with this job."""
        self.process = process
        self.open()
        until(lambda: _has_crashed(process, self.how), what=f"crashed at {self.point}:\n{process.log_text()[-3000:]}")
        self.close()
        self.at_crash = row(self.job_id).status

    def _set_lane(self, values: str) -> None:
        def is_set() -> bool:
            with suppress(Unavailable), db.begin() as session:
                session.execute(text(f"UPDATE lane SET {values} WHERE pool_id = :id"), {"id": self.key.pool_id})
                return True
            return False

        # A frozen process may hold the lane's lock until Postgres ends its transaction.
        until(is_set, what="lane set")


class Run:
    """All cases from crash to end, in three stages: pacers, reapers, workers."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.cases: dict[tuple[str, str], Case] = {}
        self.failed: dict[tuple[str, str], Exception] = {}

    def run(self) -> None:
        worker = self.stack.worker(threads=4)
        self._each(PACER, lambda case: case.crash(self.stack.pacer(crash=f"{case.point}:{case.how}:{PACER[case.point]}")))
        reapers = {how: self.stack.pacer(crash=f"{REAP}:{how}") for how in MODES}
        self._recover(PACER)
        self._reap(reapers)
        self._resume_frozen_pacers(PACER)
        worker.stop()
        self.stack.pacer()
        self._each(WORKER, self._crash_worker)
        until(lambda: self._are(WORKER, {"queued", *TERMINAL}), what="every lost job reaped")
        self._wait_for_late_workers()
        self.stack.worker(threads=4)
        self._recover((*WORKER, REAP))

    def end_state(self, point: str, how: str) -> EndState:
        if (point, how) in self.failed:
            raise self.failed[point, how]
        case = self.cases[point, how]
        ended = row(case.job_id)
        calls = [call for call in self.stack.upstream.calls() if call.text == case.prompt]
        assert [] == violations([case.job_id], calls)
        at_crash = case.at_crash if EXPECTED[point][how].at_crash else ""
        return EndState(at_crash, attempts(case.job_id), ended.possible_duplicate_calls, ended.failures, len(calls), ended.status)

    def _each(self, points: Collection[str], crash: Callable[[Case], None]) -> None:
        for point, how in itertools.product(points, MODES):
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

    def _reap(self, reapers: dict[str, Process]) -> None:
        """Each pacer's reaper finds one lost call; which reaper finds it does not matter."""
        lost = [_lost_call(Case(REAP, f"{n}")) for n in range(len(MODES))]
        for case in lost:
            _expire_lease(case)
            how = until(
                lambda: next((how for how in reapers if _has_crashed(reapers[how], how)), None), what="a crashed reaper", within_s=20
            )
            case.how, case.process = how, reapers.pop(how)
            case.at_crash = row(case.job_id).status
            self.cases[REAP, how] = case

    def _recover(self, points: Collection[str]) -> None:
        cases = [case for (point, _), case in self.cases.items() if point in points]
        for case in cases:
            case.open()
        wait_ended([case.job_id for case in cases], stack=self.stack)

    def _resume_frozen_pacers(self, points: Collection[str]) -> None:
        frozen = [case.process for (point, how), case in self.cases.items() if point in points and how == "freeze"]
        for process in frozen:
            assert process
            process.go_on()
        # A lane of its own: when its job has ended, the interrupted steps have ended too.
        for n in range(len(frozen)):
            wait_ended([ask(caller("sk-proof"), f"proof {n}")], stack=self.stack)
        for process in self.stack.processes:
            if process.name == "pacer":
                process.kill()

    def _wait_for_late_workers(self) -> None:
        frozen = [case for (point, how), case in self.cases.items() if point in WORKER and how == "freeze"]
        for case in frozen:
            assert case.process
            case.process.go_on()
        late = [case for case in frozen if case.at_crash == "running"]
        until(lambda: all("unknown" not in attempts(case.job_id) for case in late), what="every late worker reported")
        for case in frozen:
            assert case.process
            case.process.kill()

    def _are(self, points: Collection[str], statuses: set[str]) -> bool:
        jobs = [case.job_id for (point, _), case in self.cases.items() if point in points]
        return {row.status for row in rows(jobs)} <= statuses


@pytest.fixture(scope="module")
def run(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("stack")
    with processes.running(folder, lease_s=3, heartbeat_s=0.8, unclaimed_after_s=1.5, retry_base_s=0.05) as stack:
        run = Run(stack)
        run.run()
        yield run


@pytest.mark.parametrize(("point", "how"), [(point, how) for point in EXPECTED for how in MODES])
def test_job_survives_each_crash_point(run: Run, point: str, how: str) -> None:
    assert EXPECTED[point][how] == run.end_state(point, how)


def test_crash_points_lose_no_job_and_flag_every_second_call(run: Run) -> None:
    jobs = [case.job_id for case in run.cases.values()]

    assert len(EXPECTED) * len(MODES) == len(jobs)
    assert [] == violations(jobs, run.stack.upstream.calls())


def _lost_call(case: Case) -> Case:
    """Leave the job running, with a worker that does not exist."""
    dispatch_id = uuid4()
    with db.begin() as session:
        credential_id = session.execute(text("SELECT id FROM credential WHERE pool_id = :id"), {"id": case.key.pool_id}).scalar_one()
        # Admit while paused, so that no pacer sees the lane open.
        session.execute(text("UPDATE lane SET paused_at = NULL WHERE pool_id = :id"), {"id": case.key.pool_id})
        assert admission.admit(session, [admission.Admission(case.job_id, dispatch_id, credential_id)])
        session.execute(text("UPDATE lane SET paused_at = now() WHERE pool_id = :id"), {"id": case.key.pool_id})
        assert claims.claim(session, case.job_id, dispatch_id, lease_s=3600)
    return case


def _expire_lease(case: Case) -> None:
    with db.begin() as session:
        session.execute(text("UPDATE job SET lease_until = clock_timestamp() - interval '1 s' WHERE id = :id"), {"id": case.job_id})


def _has_crashed(process: Process, how: str) -> bool:
    if how == "freeze":
        return process.is_frozen()
    return "Crashed" in process.log_text() if how == "raise" else not process.is_alive()
