"""What is left behind when nothing is to be done any more: leases, slots, connections, processes, parked credentials."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from uuid import UUID

import psutil
import redis

from models.database import db
from models.keys import keys
from models.keys.keys import Key
from tests.chaos.stack import MODEL, POOL, THREADS, Plant
from tests.support.programs import live_jobs
from tests.support.queue_tools import query
from tests.upstream.journal import fingerprint

QUIET_S = 25.0
PROBE_S = 30.0


def find(plant: Plant, *, sessions: set[int]) -> list[str]:
    """Each leak in words. sessions: of all parts that were ever started."""
    deadline = time.monotonic() + QUIET_S
    while (found := list(_left(plant, sessions))) and time.monotonic() < deadline:
        plant.keep()
        time.sleep(0.5)
    return [f"leak: {one}" for one in (*found, *_slots(plant), *_credentials(plant))]


def _left(plant: Plant, sessions: set[int]) -> Iterator[str]:
    with redis.Redis.from_url(plant.valkey.url) as client:
        seconds, micros = client.time()
        for name in client.scan_iter("ns:{*}:leases"):
            if held := client.zcount(name, seconds * 1_000_000 + micros, "+inf"):
                yield f"{held} leases in {name.decode()}"
    open_ = query("SELECT count(*) AS n, count(*) FILTER (WHERE state LIKE 'idle in%') AS idle FROM pg_stat_activity"
                  " WHERE application_name = 'nowserving' AND pid <> pg_backend_pid()")[0]  # fmt: skip
    if open_.idle:
        yield f"{open_.idle} transactions that nobody ends"
    most = (len(plant.parts) + 1) * POOL
    if open_.n > most:
        yield f"{open_.n} connections to Postgres of at most {most}"
    yield from _sockets(plant)
    alive = {part.pid for part in plant.parts.values()}
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) in sessions - alive and process.status() != psutil.STATUS_ZOMBIE:
                yield f"process {process.pid} ({' '.join(process.cmdline()[:4])}) of a part that is gone"


def _sockets(plant: Plant) -> Iterator[str]:
    """The API has let everybody go: each connection there is a greenlet."""
    ports = {port for _, port in plant.apis}
    with plant.on("api"):
        seen = psutil.net_connections("tcp")
    for one in seen:
        if one.laddr and one.laddr.port in ports and one.status in ("ESTABLISHED", "CLOSE_WAIT") and one.pid != os.getpid():
            yield f"a connection at the API's port {one.laddr.port} is {one.status}"


def _slots(plant: Plant) -> Iterator[str]:
    """Every slot of every worker takes a job at once."""
    slots = plant.workers * THREADS
    who = live_jobs.caller("sk-probe", model=MODEL, max_in_flight=slots)
    time.sleep(2.5)  # new limits hold within seconds
    jobs = [live_jobs.ask(who, f"[[fake:hold]] probe {n}", model=MODEL) for n in range(slots)]
    try:
        plant.wait(lambda: plant.upstream.waiting() >= slots, "every slot is taken", within_s=PROBE_S)
    except TimeoutError:
        reported = [tuple(row) for row in query("SELECT name, slots FROM worker ORDER BY name")]
        yield f"only {plant.upstream.waiting()} of {slots} slots take jobs; reported: {reported}"
    finally:
        plant.upstream.release()
    plant.wait(lambda: all(row.status == "succeeded" for row in live_jobs.rows(jobs)), "the probes have ended", within_s=PROBE_S)


def _credentials(plant: Plant) -> Iterator[str]:
    """Every upstream key of the pool serves again, whatever it was parked for."""
    who = _key_of(plant.pool_token)
    since, jobs = plant.upstream.stats()["all"]["calls"], list[UUID]()

    def missing() -> set[str]:
        served = {call.key for call in plant.upstream.calls(since=since, outcome="200")}
        return {name for name in plant.pool_keys if fingerprint(name) not in served}

    def ask_once_more() -> bool:
        # One at a time: each goes to the key with most room.
        if not jobs or all(row.status == "succeeded" for row in live_jobs.rows(jobs)):
            jobs.append(live_jobs.ask(who, f"[[fake:delay=0]] serve {len(jobs)}", model=MODEL))
        return not missing()

    try:
        plant.wait(ask_once_more, "every key of the pool serves", within_s=PROBE_S)
    except TimeoutError:
        yield f"upstream keys that never served again: {sorted(missing())}; {query('SELECT * FROM parked_model')}"
    with suppress(TimeoutError):
        # Or the last call would be counted among those of the next course.
        plant.wait(lambda: all(row.status == "succeeded" for row in live_jobs.rows(jobs)), "the last job has ended", within_s=PROBE_S)


def _key_of(token: str) -> Key:
    with db.begin() as session:
        return keys.authenticate(session, token)
