"""Our own programs killed, started with a place to die at, asked to leave one after another, or with a clock that jumps."""

from __future__ import annotations

import random
import signal
import time
from contextlib import suppress

from models.platform.errors import ServingError
from tests.chaos import requests as chaos_requests
from tests.chaos.clock import Clock
from tests.chaos.fault import Fault, in_flight
from tests.chaos.stack import THREADS, Part, Plant
from tests.support.queue_tools import query

# Of 12 threads. The calls take longer than a lease.
BUSY, BUSY_DELAY_S = 10, (9.5, 11)
HOUR_S = 3600
STAY_S = 3.0  # how long a clock stays wrong


class _Kill(Fault):
    """One of this kind, as by kill -9."""

    kind = ""

    def begin(self) -> None:
        self.chance.choice(self.plant.named(self.kind)).kill()


class KillWorker(Fault):
    """A worker dies in the middle of its calls."""

    on = frozenset({"workers"})

    def begin(self) -> None:
        victim = self.chance.choice(self.plant.named("worker"))
        # Counted while it stands still: what it has in flight now is what can be lost.
        victim.signal(signal.SIGSTOP, group=True)
        self.lost = in_flight(most=THREADS)
        victim.kill()


class KillBusyWorker(Fault):
    """A worker dies with at least BUSY calls in flight: the upstream takes its time until one has so many."""

    on = frozenset({"workers", "upstream"})
    lasts_s = 25.0

    def begin(self) -> None:
        self.plant.upstream_does(1.0, delay=BUSY_DELAY_S)
        self.ends_at = time.monotonic() + self.lasts_s
        self.calls = 0

    def step(self) -> None:
        held = _held()
        busiest = max(self.plant.named("worker"), key=lambda part: held.get(part.name, 0))
        if self.is_over() or held.get(busiest.name, 0) < BUSY:
            return
        busiest.signal(signal.SIGSTOP, group=True)
        self.calls, self.lost = held[busiest.name], in_flight(most=THREADS)
        busiest.kill()
        self.plant.upstream_does()

    def end(self) -> None:
        self.plant.upstream_does()

    def is_over(self) -> bool:
        return self.calls > 0 or time.monotonic() > self.ends_at


class KillWorkers(Fault):
    """All workers die at once."""

    on = frozenset({"workers"})

    def begin(self) -> None:
        victims = self.plant.named("worker")
        for victim in victims:
            victim.signal(signal.SIGSTOP, group=True)
        self.lost = in_flight(most=THREADS * len(victims))
        for victim in victims:
            victim.kill()


def _held() -> dict[str, int]:
    """How many jobs each worker has, by its last report; nothing while Postgres is away."""
    with suppress(ServingError, TimeoutError):
        rows = chaos_requests.within(
            lambda: query("SELECT name, cardinality(jobs) AS jobs FROM worker WHERE seen_at > now() - interval '4 s'"), s=2
        )
        return {row.name.split("-")[0]: row.jobs or 0 for row in rows}
    return {}


class KillPacer(_Kill):
    on, kind = frozenset({"pacers"}), "pacer"


class KillApi(_Kill):
    on, kind = frozenset({"apis"}), "api"


class KillSender(_Kill):
    on, kind = frozenset({"senders"}), "sender"


class _WithEnvironment(Fault):
    """One part is started again with something in its environment, and in the end without."""

    def part(self) -> Part:
        raise NotImplementedError

    def env(self) -> dict[str, str]:
        raise NotImplementedError

    def begin(self) -> None:
        self.mine = self.part()
        self.before = dict(self.mine.env)
        self.mine.env |= self.env()
        self.mine.ask_to_stop()

    def step(self) -> None:
        self.mine.dies = True  # whenever it ends while this is on, that is why

    def end(self) -> None:
        self.mine.env = self.before
        self.mine.ask_to_stop()


class ApiCrash(_WithEnvironment):
    """An API process dies at this place in every seventh submit or so, and is started again by its parent."""

    on = frozenset({"apis"})
    lasts_s = 15
    point = ""

    def part(self) -> Part:
        return self.chance.choice(self.plant.named("api"))

    def env(self) -> dict[str, str]:
        return {"NOWSERVING_CRASH": f"{self.point}:exit:{self.chance.randint(3, 9)}"}


class CrashBeforeCommit(ApiCrash):
    point = "api.before_commit"


class CrashAfterCommit(ApiCrash):
    point = "api.after_commit"


class CrashAfterPublish(ApiCrash):
    point = "api.before_reply"


class RollingRestart(Fault):
    """Everything of ours is asked to leave, one part after another, each started again before the next."""

    on = frozenset({"workers", "pacers", "apis", "senders"})

    def begin(self) -> None:
        self.left = [part for kind in ("api", "worker", "pacer", "sender") for part in self.plant.named(kind)]
        self.now: Part | None = None

    def step(self) -> None:
        if self.now is not None and (self.now.dies or not self.plant.is_ready()):
            return
        self.now = self.left.pop(0) if self.left else None
        if self.now is not None:
            self.now.ask_to_stop()

    def is_over(self) -> bool:
        return not self.left and self.now is None


class ClockSteps(_WithEnvironment):
    """A part's clock jumps by an hour, forwards or back, while it works, and back again."""

    lasts_s = 20
    kind = ""

    def __init__(self, plant: Plant, chance: random.Random) -> None:
        super().__init__(plant, chance)
        self._clock = Clock(plant.folder, self.kind)

    def part(self) -> Part:
        return self.plant.named(self.kind)[0]

    def env(self) -> dict[str, str]:
        return self._clock.env

    def begin(self) -> None:
        super().begin()
        first = self.chance.choice((1, -1)) * HOUR_S
        self._offsets_s = [first, -first, 0]
        self._next = time.monotonic() + STAY_S

    def step(self) -> None:
        super().step()
        if self._offsets_s and time.monotonic() >= self._next and self.plant.is_ready():
            self._clock.set(self._offsets_s.pop(0))
            self._next = time.monotonic() + STAY_S

    def is_over(self) -> bool:
        return not self._offsets_s


class ClockOfWorker(ClockSteps):
    on, kind = frozenset({"workers"}), "worker"


class ClockOfApi(ClockSteps):
    on, kind = frozenset({"apis"}), "api"
