"""Start-time suite: wall time and CPU time of `nowserving up`, service by service, from the command line to the first answered job."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from bench.measure.figure import Figure, at_most, quantile, reported
from bench.measure.load import CHAT
from bench.measure.stack import MODEL, ROOT, Stack
from deploy.local.server_process import die_with_parent, free_port

TITLE = "Start"
FIRST_S, AGAIN_S = 8, 5
POLL_S = 0.02
PATIENCE_S = 180
STOP_S = 60
# What tells the processes of each part: the first that a command line contains.
PARTS = {
    "API": "gunicorn", "pacer": "workers.pacer", "webhooks": "webhooks1", "worker": "celeryd", "Flower": "workers.flower",
    "preloading": "forker", "PostgreSQL": "postgres", "Valkey": "valkey", "up, initdb": "cli.main up",
}  # fmt: skip


@dataclass(frozen=True)
class Start:
    """One start. reached: seconds from the command to each milestone. cpu_s: user and system time of each part until the answer."""

    reached: Mapping[str, float]
    cpu_s: Mapping[str, float]
    load: float


@dataclass
class Up:
    """`nowserving up` as a process on a data folder, with the fake upstream."""

    folder: Path
    upstream: str
    root: Path = ROOT
    port: int = field(default_factory=free_port)

    def start(self) -> Start:
        """Starts it, asks for one answer as soon as it says that it is ready, and stops it. Raises TimeoutError."""
        load, began = os.getloadavg()[0], time.monotonic()
        process = self._run()
        try:
            reached = self._milestones(process, began)
            self._ask()
            reached["first answered job"] = time.monotonic() - began
            return Start(reached, _cpu_s(process.pid), load)
        finally:
            process.terminate()
            process.wait(STOP_S)

    def _run(self) -> subprocess.Popen[bytes]:
        shutil.rmtree(self.folder / "logs", ignore_errors=True)
        plain = {name: value for name, value in os.environ.items() if not name.startswith("NOWSERVING_")}
        ours = {"OPENAI_BASE_URL": self.upstream, "NOWSERVING_PORT": str(self.port), "NOWSERVING_FLOWER_PORT": "0"}
        with (self.folder.parent / "up.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "cli.main", "up"], cwd=self.root, stdout=log, stderr=log, preexec_fn=die_with_parent,
                env={**plain, **ours, "NOWSERVING_DATA_DIR": str(self.folder)},
            )  # fmt: skip

    def _milestones(self, process: subprocess.Popen[bytes], began: float) -> dict[str, float]:
        left: dict[str, Callable[[], bool]] = {
            "PostgreSQL": lambda: self._says("postgres", "ready to accept connections"),
            "Valkey": lambda: self._says("valkey", "Ready to accept connections"),
            "schema": lambda: self._says("migrate", "the tables are"),
            "API answers": lambda: self._get("/healthz") == http.client.OK,
            "pacer": lambda: self._says("pacer", "pacing"),
            "worker": lambda: self._says("worker", " ready."),
            "readyz": lambda: self._get("/readyz") == http.client.OK,
        }
        reached: dict[str, float] = {}
        while left:
            for name in [name for name, is_so in left.items() if is_so()]:
                reached[name] = time.monotonic() - began
                del left[name]
            if process.poll() is not None or time.monotonic() > began + PATIENCE_S:
                raise TimeoutError(f"without {', '.join(left)} after {time.monotonic() - began:.0f} s: {self.folder.parent / 'up.log'}")
            time.sleep(POLL_S)
        return reached

    def _says(self, part: str, words: str) -> bool:
        log = self.folder / "logs" / f"{part}.log"
        return log.exists() and words in log.read_text(errors="replace")

    def _get(self, path: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=0.25)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            connection.close()

    def _ask(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Say hello."}]})
        connection.request("POST", CHAT, body, {"Authorization": "Bearer sk-start", "Content-Type": "application/json"})
        answer = connection.getresponse()
        result = answer.read()
        connection.close()
        if answer.status != http.client.OK:
            raise RuntimeError(f"HTTP {answer.status}: {result[:200]!r}")


def run(stack: Stack, *, short: bool) -> list[Figure]:
    """First starts, each on a new data folder, and a second start on each."""
    stack.halt()
    first, again = [], []
    for n in range(1 if short else 5):
        up = Up(stack.folder / f"start-{n}" / "data", stack.upstream.base_url)
        up.folder.mkdir(parents=True)
        first.append(up.start())
        again.append(up.start())
        shutil.rmtree(up.folder)
    return [*_figures("first start", first, FIRST_S), *_figures("again on the same folder", again, AGAIN_S)]


def _figures(what: str, starts: list[Start], most_s: float) -> list[Figure]:
    how = f"median of {len(starts)}; load {min(one.load for one in starts):.1f} to {max(one.load for one in starts):.1f}"
    *parts, last = starts[0].reached
    values = {name: quantile([one.reached[name] for one in starts], 0.5) for name in (*parts, last)}
    order = sorted(parts, key=lambda name: values[name])
    cpu_s = {part: quantile([one.cpu_s.get(part, 0.0) for one in starts], 0.5) for part in (*PARTS, "other")}
    return [
        *(reported(f"{what}: {name}", f"{values[name]:.2f} s", note=how) for name in order),
        at_most(f"{what}: {last}", values[last], most_s, unit="s", note=how),
        reported(
            f"{what}: CPU until then",
            f"{sum(cpu_s.values()):.2f} s",
            note=", ".join(f"{part} {spent:.2f}" for part, spent in cpu_s.items()),
        ),
    ]


def _cpu_s(pid: int) -> dict[str, float]:
    """User and system time of each part of this `up`, with that of processes which have ended and were waited for."""
    spent: dict[str, float] = defaultdict(float)
    root = psutil.Process(pid)
    for process in (root, *root.children(recursive=True)):
        words = " ".join(process.cmdline())
        part = next((part for part, word in PARTS.items() if word in words), "other")
        spent[part] += sum(process.cpu_times()[:4])
    return spent
