"""How nowserving's figures change as it grows: jobs that wait, keys, clients held, worker processes."""

from __future__ import annotations

from collections.abc import Mapping

from bench.measure import plots
from bench.measure.figure import Figure, quantile, reported
from bench.measure.plots import Line, Panel
from bench.measure.stack import Stack
from bench.suites import held_clients, queue_length, throughput
from bench.suites.held_clients import Held
from bench.suites.queue_length import Taken
from bench.suites.throughput import Done

TITLE = "Growth"
PICTURE = "growth.svg"
WAITING = (1_000, 10_000, 100_000, 1_000_000)
KEYS = (1, 100, 10_000)
CLIENTS = (100, 1_000, 5_000, 10_000)
WORKERS = (1, 2, 4)
SPREAD = 20_000  # jobs over all keys: at one key as at ten thousand


def run(stack: Stack, *, short: bool) -> list[Figure]:
    """One thing grows at a time; everything else stays as it is."""
    upto = 2 if short else None
    workers = {n: _workers(stack, n, jobs=400 if short else 3_000) for n in WORKERS[:upto]}
    clients = {n: held_clients.hold(stack, n) for n in CLIENTS[: 1 if short else None]}
    stack.halt()
    waiting = {n: queue_length.one_lane(stack, n) for n in WAITING[:upto]}
    keys = {n: queue_length.many_lanes(stack, n, jobs=1_000 if short else SPREAD) for n in KEYS[:upto]}
    queue_length.empty(stack)
    plots.growth(_panels(waiting, keys, clients, workers), to=stack.pictures / PICTURE)
    return [*_told_waiting(waiting), *_told_keys(keys), *_told_clients(clients), *_told_workers(workers)]


def _workers(stack: Stack, n: int, *, jobs: int) -> Done:
    stack.serve(workers=n)
    return throughput.measure(stack, f"sk-workers-{n}", jobs=jobs, warm=100)


def _told_waiting(found: Mapping[int, Taken]) -> list[Figure]:
    return [
        reported(f"{n:,} waiting: admission step / submit / position", f"{one.step:.1f} / {one.submit:.1f} / {one.position:.1f} ms",
             note=f"{queue_length.SLOTS} jobs a step; in process, p50")
        for n, one in found.items()
    ]  # fmt: skip


def _told_keys(found: Mapping[int, Taken]) -> list[Figure]:
    how = f"{queue_length.SLOTS} jobs a step, p50"
    return [
        reported(f"{n:,} key{'s' if n > 1 else ''} with jobs waiting: admission step", f"{one.step:.1f} ms", note=how)
        for n, one in found.items()
    ]


def _told_clients(found: Mapping[int, Held]) -> list[Figure]:
    return [
        reported(f"{n:,} clients held: memory of each / submit beside them, p50", f"{_kib(one):.0f} KiB / {_submit_ms(one):.1f} ms",
             note=one.ends)
        for n, one in found.items()
    ]  # fmt: skip


def _told_workers(found: Mapping[int, Done]) -> list[Figure]:
    return [
        reported(f"{n} worker process{'es' if n > 1 else ''}: jobs per second / CPU per job", f"{one.per_s:.0f} / {one.cpu_ms:.2f} ms",
             note=f"{one.jobs:,} jobs, the upstream answers at once")
        for n, one in found.items()
    ]  # fmt: skip


def _panels(
    waiting: Mapping[int, Taken], keys: Mapping[int, Taken], clients: Mapping[int, Held], workers: Mapping[int, Done]
) -> list[Panel]:
    return [
        Panel("Jobs waiting in one line", "waiting", "ms", [
            Line(f"admission step of {queue_length.SLOTS}", list(waiting), [one.step for one in waiting.values()]),
            Line("submit", list(waiting), [one.submit for one in waiting.values()]),
        ]),
        Panel("Keys with jobs waiting", "keys", "ms", [Line("admission step", list(keys), [one.step for one in keys.values()])]),
        Panel("Clients held by one API process", "clients", "KiB or ms", [
            Line("memory of each, KiB", list(clients), [_kib(one) for one in clients.values()]),
            Line("submit beside them, ms", list(clients), [_submit_ms(one) for one in clients.values()]),
        ]),
        Panel("Worker processes", "processes", "jobs/s", [
            Line("jobs/s", list(workers), [one.per_s for one in workers.values()]),
        ], is_log=False),
    ]  # fmt: skip


def _kib(one: Held) -> float:
    return max(0, one.rss) / one.clients / 1024


def _submit_ms(one: Held) -> float:
    return quantile(one.submits.took_s, 0.5) * 1000
