"""A chat call that waits for its answer, through the line with everything durable, beside a proxy that stores nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass

from bench.measure import cpu, load
from bench.measure.figure import Figure, at_least, quantile, reported
from bench.measure.load import CHAT, Load, Wanted
from bench.measure.stack import MODEL, Stack
from bench.peers import litellm
from bench.peers.litellm import Litellm
from models.keys.keys import Limits

TITLE = "Calls that wait for their answer, compared with litellm"
CLIENTS = (16, 64)
WARM = 200
TIMES_LEAST = 3.0


@dataclass(frozen=True)
class Measured:
    """used_s: CPU seconds by part, load generator and upstream not counted."""

    load: Load
    used_s: dict[str, float]

    @property
    def cpu_ms(self) -> float:
        return sum(self.used_s.values()) / len(self.load.took_s) * 1000


def run(stack: Stack, *, short: bool) -> list[Figure]:
    """First ours, then litellm, on the same machine against the same upstream, which answers at once; one rests while the other works."""
    calls = 600 if short else 3_000
    stack.serve()
    caller = stack.caller("sk-surface", Limits(max_in_flight=1_000))
    ours = _measure(stack.pids(), port=stack.port, token=caller.token, calls=calls)
    stack.halt()
    with Litellm(stack.folder, base_url=stack.upstream.base_url, model=MODEL) as peer:
        theirs = _measure({"litellm": peer.pid}, port=peer.port, token=peer.token, calls=calls)
        name = f"litellm {litellm.version()}"
    return [figure for n in CLIENTS for figure in _figures(n, ours[n], theirs[n], name)]


def _measure(parts: dict[str, int], *, port: int, token: str, calls: int) -> dict[int, Measured]:
    ours = {name: pid for name, pid in parts.items() if name != "upstream"}
    load.submit(Wanted(port, token, jobs=WARM, connections=16, users=10, path=CHAT))
    return {n: _one(ours, Wanted(port, token, jobs=calls, connections=n, users=50, path=CHAT)) for n in CLIENTS}


def _one(parts: dict[str, int], wanted: Wanted) -> Measured:
    before = cpu.spent_s(parts)
    done = load.submit(wanted)
    time.sleep(0.5)  # what an answer leaves to be done afterwards belongs to it
    return Measured(done, cpu.used_s(before, cpu.spent_s(parts)))


def _figures(clients: int, ours: Measured, theirs: Measured, name: str) -> list[Figure]:
    how = f"{clients} clients, {len(ours.load.took_s):,} calls"
    return [
        reported("answers per second, ours", f"{ours.load.per_s:.0f}", note=how),
        reported(f"answers per second, {name}", f"{theirs.load.per_s:.0f}", note=how),
        reported("p50 / p99, ours", _latency(ours), note=how),
        reported(f"p50 / p99, {name}", _latency(theirs), note=how),
        reported("CPU per answer, ours", f"{ours.cpu_ms:.2f} ms", note=_parts(ours)),
        reported(f"CPU per answer, {name}", f"{theirs.cpu_ms:.2f} ms", note="one process, nothing stored"),
        at_least("answers per core, relative to litellm", theirs.cpu_ms / ours.cpu_ms, TIMES_LEAST, unit="times", note=how),
    ]


def _latency(one: Measured) -> str:
    return " / ".join(f"{quantile(one.load.took_s, share) * 1000:.0f}" for share in (0.5, 0.99)) + " ms"


def _parts(one: Measured) -> str:
    return ", ".join(f"{part} {spent / len(one.load.took_s) * 1000:.2f}" for part, spent in one.used_s.items())
