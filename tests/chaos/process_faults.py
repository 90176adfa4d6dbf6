"""Faults of our processes: SIGKILL, crash points, rolling restarts and clock jumps."""

from __future__ import annotations

import random
import signal
import time
from contextlib import suppress

from models.platform.errors import ServingError
from tests.chaos import timeouts
from tests.chaos.clock import Clock
from tests.chaos.fault import Fault, running_jobs
from tests.chaos.stack import THREADS, Service, Stack
from tests.support.queue_tools import query

# Calls in flight, of 12 threads. The calls last longer than a lease.
BUSY_CALLS, BUSY_DELAY_S = 10, (9.5, 11)
HOUR_S = 3600
CLOCK_STEP_S = 3.0  # how long a clock stays wrong


class _Kill(Fault):
    """SIGKILL one process of this kind."""

    kind = ""

    def begin(self) -> None:
        self.rng.choice(self.stack.services_of(self.kind)).kill()


class KillWorker(Fault):
    """Kill a worker during its calls."""

    on = frozenset({"workers"})

    def begin(self) -> None:
        victim = self.rng.choice(self.stack.services_of("worker"))
        # Count while the worker is stopped: the calls in flight now are those that can be lost.
        victim.signal(signal.SIGSTOP, group=True)
        self.lost = running_jobs(limit=THREADS)
        victim.kill()


class KillBusyWorker(Fault):
    """Kill a worker with at least BUSY_CALLS calls in flight: the upstream stays slow until a worker has that many."""

    on = frozenset({"workers", "upstream"})
    lasts_s = 25.0

    def begin(self) -> None:
        self.stack.misbehave(1.0, delay=BUSY_DELAY_S)
        self.ends_at = time.monotonic() + self.lasts_s
        self.calls = 0

    def step(self) -> None:
        job_counts = _jobs_by_worker()
        busiest = max(self.stack.services_of("worker"), key=lambda service: job_counts.get(service.name, 0))
        if self.is_over() or job_counts.get(busiest.name, 0) < BUSY_CALLS:
            return
        busiest.signal(signal.SIGSTOP, group=True)
        self.calls, self.lost = job_counts[busiest.name], running_jobs(limit=THREADS)
        busiest.kill()
        self.stack.misbehave()

    def end(self) -> None:
        self.stack.misbehave()

    def is_over(self) -> bool:
        return self.calls > 0 or time.monotonic() > self.ends_at


class KillWorkers(Fault):
    """Kill all workers at once."""

    on = frozenset({"workers"})

    def begin(self) -> None:
        victims = self.stack.services_of("worker")
        for victim in victims:
            victim.signal(signal.SIGSTOP, group=True)
        self.lost = running_jobs(limit=THREADS * len(victims))
        for victim in victims:
            victim.kill()


def _jobs_by_worker() -> dict[str, int]:
    """Number of jobs per worker, from its last heartbeat; empty while Postgres is down."""
    with suppress(ServingError, TimeoutError):
        rows = timeouts.call_with_timeout(
            lambda: query("SELECT name, cardinality(jobs) AS jobs FROM worker WHERE seen_at > now() - interval '4 s'"), timeout_s=2
        )
        return {row.name.split("-")[0]: row.jobs or 0 for row in rows}
    return {}


class KillPacer(_Kill):
    on, kind = frozenset({"pacers"}), "pacer"


class KillApi(_Kill):
    on, kind = frozenset({"apis"}), "api"


class KillSender(_Kill):
    on, kind = frozenset({"senders"}), "sender"


class _RestartWithEnvironment(Fault):
    """Restart one service with more environment variables, and at the end without them."""

    def service(self) -> Service:
        raise NotImplementedError

    def env(self) -> dict[str, str]:
        raise NotImplementedError

    def begin(self) -> None:
        self.target = self.service()
        self.previous_env = dict(self.target.env)
        self.target.env |= self.env()
        self.target.ask_to_stop()

    def step(self) -> None:
        self.target.exit_expected = True  # any exit while the fault is active is expected

    def end(self) -> None:
        self.target.env = self.previous_env
        self.target.ask_to_stop()


class ApiCrash(_RestartWithEnvironment):
    """An API process crashes at a crash point in every third to ninth submit; gunicorn starts it again."""

    on = frozenset({"apis"})
    lasts_s = 15
    point = ""

    def service(self) -> Service:
        return self.rng.choice(self.stack.services_of("api"))

    def env(self) -> dict[str, str]:
        return {"NOWSERVING_CRASH": f"{self.point}:exit:{self.rng.randint(3, 9)}"}


class CrashBeforeCommit(ApiCrash):
    point = "api.before_commit"


class CrashAfterCommit(ApiCrash):
    point = "api.after_commit"


class CrashAfterPublish(ApiCrash):
    point = "api.before_reply"


class RollingRestart(Fault):
    """Terminate all our services one after another; each is ready again before the next stops."""

    on = frozenset({"workers", "pacers", "apis", "senders"})

    def begin(self) -> None:
        self.remaining = [service for kind in ("api", "worker", "pacer", "sender") for service in self.stack.services_of(kind)]
        self.current: Service | None = None

    def step(self) -> None:
        if self.current is not None and (self.current.exit_expected or not self.stack.is_ready()):
            return
        self.current = self.remaining.pop(0) if self.remaining else None
        if self.current is not None:
            self.current.ask_to_stop()

    def is_over(self) -> bool:
        return not self.remaining and self.current is None


class ClockSteps(_RestartWithEnvironment):
    """Move the clock of a running service by an hour forwards or back, and then back again."""

    lasts_s = 20
    kind = ""

    def __init__(self, stack: Stack, rng: random.Random) -> None:
        super().__init__(stack, rng)
        self._clock = Clock(stack.folder, self.kind)

    def service(self) -> Service:
        return self.stack.services_of(self.kind)[0]

    def env(self) -> dict[str, str]:
        return self._clock.env

    def begin(self) -> None:
        super().begin()
        first = self.rng.choice((1, -1)) * HOUR_S
        self._offsets_s = [first, -first, 0]
        self._next = time.monotonic() + CLOCK_STEP_S

    def step(self) -> None:
        super().step()
        if self._offsets_s and time.monotonic() >= self._next and self.stack.is_ready():
            self._clock.set(self._offsets_s.pop(0))
            self._next = time.monotonic() + CLOCK_STEP_S

    def is_over(self) -> bool:
        return not self._offsets_s


class ClockOfWorker(ClockSteps):
    on, kind = frozenset({"workers"}), "worker"


class ClockOfApi(ClockSteps):
    on, kind = frozenset({"apis"}), "api"
