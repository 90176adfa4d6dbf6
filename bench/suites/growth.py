"""Growth suite: figures of nowserving by the number of waiting jobs, keys, held clients and worker processes."""

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
    """Varies one size at a time and keeps the others constant."""
    upto = 2 if short else None
    workers = {n: _workers(stack, n, jobs=400 if short else 3_000) for n in WORKERS[:upto]}
    clients = {n: held_clients.hold(stack, n) for n in CLIENTS[: 1 if short else None]}
    stack.halt()
    waiting = {n: queue_length.one_lane(stack, n) for n in WAITING[:upto]}
    keys = {n: queue_length.many_lanes(stack, n, jobs=1_000 if short else SPREAD) for n in KEYS[:upto]}
    queue_length.empty(stack)
    plots.growth(_panels(waiting, keys, clients, workers), to=stack.pictures / PICTURE)
    return [*_waiting_figures(waiting), *_key_figures(keys), *_client_figures(clients), *_worker_figures(workers)]


def _workers(stack: Stack, n: int, *, jobs: int) -> Done:
    stack.serve(workers=n)
    return throughput.measure(stack, f"sk-workers-{n}", jobs=jobs, warm=100)


def _waiting_figures(results: Mapping[int, Taken]) -> list[Figure]:
    return [
        reported(f"{n:,} waiting: admission step / submit / position",
             f"{result.step:.1f} / {result.submit:.1f} / {result.position:.1f} ms",
             note=f"{queue_length.SLOTS} jobs a step; in process, p50")
        for n, result in results.items()
    ]  # fmt: skip


def _key_figures(results: Mapping[int, Taken]) -> list[Figure]:
    how = f"{queue_length.SLOTS} jobs a step, p50"
    return [
        reported(f"{n:,} key{'s' if n > 1 else ''} with jobs waiting: admission step", f"{result.step:.1f} ms", note=how)
        for n, result in results.items()
    ]


def _client_figures(results: Mapping[int, Held]) -> list[Figure]:
    return [
        reported(f"{n:,} clients held: memory of each / submit beside them, p50", f"{_kib(result):.0f} KiB / {_submit_ms(result):.1f} ms",
             note=result.ends)
        for n, result in results.items()
    ]  # fmt: skip


def _worker_figures(results: Mapping[int, Done]) -> list[Figure]:
    return [
        reported(f"{n} worker process{'es' if n > 1 else ''}: jobs per second / CPU per job",
             f"{result.per_s:.0f} / {result.cpu_ms:.2f} ms", note=f"{result.jobs:,} jobs, the upstream answers at once")
        for n, result in results.items()
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
