"""Schedules of faults: created from a seed, printed as JSON lines, and read again for a replay."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from tests.chaos import process_faults, server_faults, upstream_faults, waiting_client_faults
from tests.chaos.fault import Fault

Faults = Mapping[str, type[Fault]]
FAULTS: Faults = {
    "worker killed": process_faults.KillWorker,
    "worker killed with 10 calls in flight": process_faults.KillBusyWorker,
    "all workers killed": process_faults.KillWorkers,
    "API killed": process_faults.KillApi,
    "API dies before commit": process_faults.CrashBeforeCommit,
    "API dies after commit": process_faults.CrashAfterCommit,
    "API dies after publish": process_faults.CrashAfterPublish,
    "pacer killed": process_faults.KillPacer,
    "webhook sender killed": process_faults.KillSender,
    "Valkey restarted empty": server_faults.ValkeyEmptied,
    "Valkey restarted with its data": server_faults.ValkeyRestarted,
    "FLUSHALL": server_faults.FlushAll,
    "Valkey frozen 10 s": server_faults.ValkeyFrozen,
    "Valkey out of memory": server_faults.ValkeyFull,
    "Postgres restarted (fast)": server_faults.PostgresRestarted,
    "Postgres restarted (immediate)": server_faults.PostgresCrashed,
    "Postgres connections cut": server_faults.PostgresCut,
    "Postgres frozen 10 s": server_faults.PostgresFrozen,
    "Postgres disk full": server_faults.DiskFull,
    "429 storm": upstream_faults.Storm,
    "429 storm without Retry-After": upstream_faults.SilentStorm,
    "upstream 500s": upstream_faults.Errors,
    "upstream hangs": upstream_faults.Hangs,
    "upstream resets": upstream_faults.Resets,
    "upstream garbage": upstream_faults.Garbage,
    "upstream packs answers": upstream_faults.Packed,
    "upstream slow bytes": upstream_faults.SlowBytes,
    "upstream wrong content type": upstream_faults.WrongType,
    "poisoned requests": upstream_faults.PoisonedRequests,
    "failing credential": upstream_faults.FailingCredential,
    "clock of a worker ±1 h": process_faults.ClockOfWorker,
    "clock of the API ±1 h": process_faults.ClockOfApi,
    "worker cut from Redis": server_faults.CutFromRedis,
    "worker cut from Postgres": server_faults.CutFromPostgres,
    "rolling restart": process_faults.RollingRestart,
    "API down 60 s, clients waiting": waiting_client_faults.ApisDown,
    "every broker message twice": server_faults.DuplicatedMessages,
    "every tenth broker message lost": server_faults.LostMessages,
}
WARM_UP_S = 4.0
PAUSE_S = (5.0, 9.0)
# Time for a service to recover before the same resource is hit again.
RECOVERY_S = 6.0


@dataclass(frozen=True)
class Event:
    """at_s: since the start of the run. seed: for the random choices of the fault."""

    at_s: float
    fault: str
    seed: int


def alone(name: str, *, seed: int, times: int, faults: Faults = FAULTS) -> list[Event]:
    """The same fault several times, with a pause in between."""
    rng = random.Random(f"{seed} {name}")
    lasts_s = faults[name].lasts_s
    at_s, events = WARM_UP_S, []
    for _ in range(times):
        events.append(Event(round(at_s, 1), name, rng.randrange(2**32)))
        at_s += lasts_s + rng.uniform(*PAUSE_S)
    return events


def mixed(names: Iterable[str], *, seed: int, for_s: float, faults: Faults = FAULTS) -> list[Event]:
    """Random faults, one every few seconds, never two on the same resource at once."""
    rng, choice = random.Random(seed), sorted(names)
    free_at: dict[str, float] = {}
    at_s, events = WARM_UP_S, []
    while at_s < for_s:
        free = [name for name in choice if all(free_at.get(thing, 0) <= at_s for thing in faults[name].on)]
        if free:
            name = rng.choice(free)
            events.append(Event(round(at_s, 1), name, rng.randrange(2**32)))
            free_at |= dict.fromkeys(faults[name].on, at_s + faults[name].lasts_s + RECOVERY_S)
        at_s += rng.uniform(*PAUSE_S)
    return events


def write(events: Iterable[Event]) -> str:
    """Serialize events as JSON lines."""
    return "".join(json.dumps(asdict(event), ensure_ascii=False) + "\n" for event in events)


def read(lines: str) -> list[Event]:
    return [Event(**json.loads(line)) for line in lines.splitlines() if line.strip()]
