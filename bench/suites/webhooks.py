"""Webhooks: how soon after its job's end one arrives, how many a second, and what others feel of a receiver that hangs."""

from __future__ import annotations

import time

from bench.measure import cpu, load
from bench.measure.figure import Figure, at_least, at_most, quantile, reported
from bench.measure.load import Wanted
from bench.measure.receiver import Receiver
from bench.measure.stack import Caller, Stack
from models.database import db
from models.keys.keys import Limits
from models.platform import ids
from models.webhooks import endpoints
from models.webhooks.delivery_log import PREFIX

TITLE = "Webhooks"
IDLE_P95_MS = 100
LEAST_PER_S = 200
SLOWER_MOST = 2.0
PAUSE_S = 0.12
ENDPOINTS = 20
HANGING = 1_000


def run(stack: Stack, *, short: bool) -> list[Figure]:
    """Single jobs into an idle stack; deliveries that are all due at once; single jobs again beside a receiver that hangs."""
    stack.serve()
    with Receiver(stack.webhook_port) as receiver:
        jobs = 30 if short else 100
        quiet = _latencies_ms(stack, receiver, "sk-hooks-idle", jobs=jobs)
        found = _burst(stack, receiver, deliveries=1_000 if short else 5_000)
        _hang(stack, receiver)
        beside = _latencies_ms(stack, receiver, "sk-hooks-beside", jobs=jobs)
        stack.do("DELETE FROM delivery")
    before, after = quantile(quiet, 0.95), quantile(beside, 0.95)
    return [
        reported("end of job → arrival, idle, p50", f"{quantile(quiet, 0.5):.1f} ms", note=f"{jobs} jobs, one after another"),
        at_most("end of job → arrival, idle, p95", before, IDLE_P95_MS, unit="ms"),
        *found,
        reported(
            "end of job → arrival beside a hanging receiver, p95", f"{after:.1f} ms", note=f"{HANGING:,} deliveries wait for it, 15 s each"
        ),
        at_most("the same, relative to idle", after / before, SLOWER_MOST, unit="times"),
    ]


def _latencies_ms(stack: Stack, receiver: Receiver, token: str, *, jobs: int) -> list[float]:
    caller = stack.caller(token, Limits(max_in_flight=8))
    _endpoint(caller, receiver.url("/quick"))
    opened = load.Line(stack.port)
    for request in Wanted(stack.port, caller.token, jobs=jobs + 5).requests():
        opened.ask(request)
        time.sleep(PAUSE_S)
    stack.wait_until_ended(caller, jobs + 5, within_s=20)
    _wait_delivered(stack, caller, jobs + 5)
    ended = stack.rows(
        "SELECT delivery.id, job.ended_at FROM delivery JOIN job ON job.id = delivery.job_id WHERE job.key_id = :id ORDER BY delivery.id",
        id=caller.key.id,
    )
    arrived = receiver.arrivals()
    return [(arrived[ids.format_id(PREFIX, row.id)] - row.ended_at.timestamp()) * 1000 for row in ended][5:]


def _burst(stack: Stack, receiver: Receiver, *, deliveries: int) -> list[Figure]:
    caller = stack.caller("sk-hooks-burst", Limits())
    for n in range(ENDPOINTS):
        _endpoint(caller, receiver.url(f"/burst/{n}"))
    before, began = cpu.spent_s(stack.pids()), time.monotonic()
    _fill(stack, caller, deliveries // ENDPOINTS)
    _wait_delivered(stack, caller, deliveries)
    seconds = time.monotonic() - began
    used = cpu.used_s(before, cpu.spent_s(stack.pids()))
    how = f"{deliveries:,} due at once, {ENDPOINTS} endpoints"
    return [
        at_least("deliveries per second", deliveries / seconds, LEAST_PER_S, note=how),
        reported("CPU per delivery, all parts", f"{sum(used.values()) / deliveries * 1000:.2f} ms", note="without the receiver"),
        *(reported(f"CPU per delivery, {name}", f"{used[name] / deliveries * 1000:.2f} ms") for name in ("pacer", "worker", "Postgres")),
    ]


def _hang(stack: Stack, receiver: Receiver) -> None:
    caller = stack.caller("sk-hooks-hang", Limits())
    _endpoint(caller, receiver.url("/hangs"))
    _fill(stack, caller, HANGING)
    stack.wait_until(lambda: stack.ask("SELECT count(*) FROM delivery WHERE status = 'sending'") > 0, "it hangs", 20)


def _endpoint(caller: Caller, url: str) -> None:
    with db.begin() as session:
        endpoints.create(session, caller.key.id, name="bench", url=url, event_types=["job.succeeded"])


def _fill(stack: Stack, caller: Caller, each: int) -> None:
    """So many deliveries are due for each of the caller's endpoints."""
    stack.do(
        "INSERT INTO delivery (key_id, endpoint_id, receiver, host, event_id, event_type, payload, retries_left) "
        "SELECT key_id, id, 'whe_' || replace(id::text, '-', ''), host, gen_random_uuid(), 'job.succeeded', "
        "convert_to('{\"object\":\"event\",\"type\":\"job.succeeded\"}', 'UTF8'), 9 "
        "FROM webhook_endpoint, generate_series(1, :each) WHERE key_id = :id",
        id=caller.key.id, each=each,
    )  # fmt: skip


def _wait_delivered(stack: Stack, caller: Caller, many: int) -> None:
    query = "SELECT count(*) FROM delivery WHERE key_id = :id AND status = 'delivered'"
    stack.wait_until(lambda: stack.ask(query, id=caller.key.id) >= many, f"{many} deliveries have arrived", 120)
