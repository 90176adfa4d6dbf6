"""Finds leaks after the load: leases, worker slots, connections, processes and parked credentials."""

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
from tests.chaos.stack import MODEL, POOL, THREADS, Stack
from tests.support.programs import live_jobs
from tests.support.queue_tools import query
from tests.upstream.journal import fingerprint

QUIET_S = 25.0
PROBE_S = 30.0


def find_leaks(stack: Stack, *, sessions: set[int]) -> list[str]:
    """Describe each leak. sessions: the session ids of all services that were ever started."""
    deadline = time.monotonic() + QUIET_S
    while (leaks := list(_leftovers(stack, sessions))) and time.monotonic() < deadline:
        stack.restart_exited()
        time.sleep(0.5)
    return [f"leak: {leak}" for leak in (*leaks, *_slots(stack), *_credentials(stack))]


def _leftovers(stack: Stack, sessions: set[int]) -> Iterator[str]:
    with redis.Redis.from_url(stack.valkey.url) as client:
        seconds, micros = client.time()
        for name in client.scan_iter("ns:{*}:leases"):
            if held := client.zcount(name, seconds * 1_000_000 + micros, "+inf"):
                yield f"{held} leases in {name.decode()}"
    connections = query("SELECT count(*) AS n, count(*) FILTER (WHERE state LIKE 'idle in%') AS idle FROM pg_stat_activity"
                  " WHERE application_name = 'nowserving' AND pid <> pg_backend_pid()")[0]  # fmt: skip
    if connections.idle:
        yield f"{connections.idle} transactions that never end"
    limit = (len(stack.services) + 1) * POOL
    if connections.n > limit:
        yield f"{connections.n} connections to Postgres of at most {limit}"
    yield from _sockets(stack)
    alive = {service.pid for service in stack.services.values()}
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) in sessions - alive and process.status() != psutil.STATUS_ZOMBIE:
                yield f"process {process.pid} ({' '.join(process.cmdline()[:4])}) of a service that is gone"


def _sockets(stack: Stack) -> Iterator[str]:
    """Open connections at the API's port: each one holds a greenlet."""
    ports = {port for _, port in stack.apis}
    with stack.on("api"):
        sockets = psutil.net_connections("tcp")
    for sock in sockets:
        if sock.laddr and sock.laddr.port in ports and sock.status in ("ESTABLISHED", "CLOSE_WAIT") and sock.pid != os.getpid():
            yield f"a connection at the API's port {sock.laddr.port} is {sock.status}"


def _slots(stack: Stack) -> Iterator[str]:
    """Workers with slots that take no job."""
    slots = stack.worker_count * THREADS
    key = live_jobs.caller("sk-probe", model=MODEL, max_in_flight=slots)
    time.sleep(2.5)  # new limits apply within seconds
    jobs = [live_jobs.ask(key, f"[[fake:hold]] probe {n}", model=MODEL) for n in range(slots)]
    try:
        stack.wait(lambda: stack.upstream.waiting() >= slots, "every slot is taken", within_s=PROBE_S)
    except TimeoutError:
        reported = [tuple(row) for row in query("SELECT name, slots FROM worker ORDER BY name")]
        yield f"only {stack.upstream.waiting()} of {slots} slots take jobs; reported: {reported}"
    finally:
        stack.upstream.release()
    stack.wait(lambda: all(row.status == "succeeded" for row in live_jobs.rows(jobs)), "the probes have ended", within_s=PROBE_S)


def _credentials(stack: Stack) -> Iterator[str]:
    """Upstream keys of the pool that do not serve again after they were parked."""
    key = _key_by_token(stack.pool_token)
    since, jobs = stack.upstream.stats()["all"]["calls"], list[UUID]()

    def missing() -> set[str]:
        served = {call.key for call in stack.upstream.calls(since=since, outcome="200")}
        return {name for name in stack.pool_keys if fingerprint(name) not in served}

    def all_keys_serve() -> bool:
        # One job at a time: each goes to the key with the most headroom.
        if not jobs or all(row.status == "succeeded" for row in live_jobs.rows(jobs)):
            jobs.append(live_jobs.ask(key, f"[[fake:delay=0]] serve {len(jobs)}", model=MODEL))
        return not missing()

    try:
        stack.wait(all_keys_serve, "every key of the pool serves", within_s=PROBE_S)
    except TimeoutError:
        yield f"upstream keys that never served again: {sorted(missing())}; {query('SELECT * FROM parked_model')}"
    with suppress(TimeoutError):
        # Otherwise the next run would count the last call.
        stack.wait(lambda: all(row.status == "succeeded" for row in live_jobs.rows(jobs)), "the last job has ended", within_s=PROBE_S)


def _key_by_token(token: str) -> Key:
    with db.begin() as session:
        return keys.authenticate(session, token)
