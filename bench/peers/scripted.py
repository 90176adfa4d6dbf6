"""The bare script as a peer of its own, and as the client of a proxy whose every call holds a connection."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from bench.peers.peer import Peer, Terms, Work
from bench.peers.process import ROOT, STOP_S
from bench.peers.script import Batch, Chore
from deploy.local.server_process import die_with_parent

START_S = 300


class Scripted:
    """The script as a process, from its first word to its last."""

    def __init__(self, chore: Chore) -> None:
        command = [sys.executable, "-m", "bench.peers.script", json.dumps(asdict(chore))]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, preexec_fn=die_with_parent
        )
        self._open = 0
        self._hear(within_s=START_S)

    @property
    def pid(self) -> int:
        return self._process.pid

    def give(self, work: Work) -> None:
        """It works on this as well."""
        assert self._process.stdin is not None
        print(json.dumps(asdict(Batch(work.names(), work.max_tokens))), file=self._process.stdin, flush=True)
        self._open += 1

    def wait_done(self, *, within_s: float) -> list[float]:
        """All it was given is answered: the seconds each call took, retries included. Raises TimeoutError."""
        took_s: list[float] = []
        until = time.monotonic() + within_s
        while self._open:
            took_s += self._hear(within_s=until - time.monotonic())["took_s"]
            self._open -= 1
        return took_s

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _hear(self, *, within_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], max(0.0, within_s))[0]:
            raise TimeoutError(f"the script printed nothing for {within_s:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the script has ended")
        return json.loads(line)  # type: ignore[no-any-return]  # JSON border


class BareScript(Peer):
    """One process that has everybody's work, and makes the calls itself."""

    name = "bare script"
    settings = "1 process, a semaphore, unlimited retries; nothing stored"
    upstream_key = "sk-script"

    def __init__(self, *, base_url: str) -> None:
        self._base_url = base_url
        self._script: Scripted | None = None

    @property
    def title(self) -> str:
        return f"{self.name} (openai {version('openai')}, asyncio)"

    def serve(self, terms: Terms) -> None:
        self.halt()
        self._script = Scripted(Chore(self._base_url, self.upstream_key, terms.at_once))

    def hand_in(self, work: Work) -> None:
        self._running.give(work)

    def wait_done(self, *, within_s: float) -> None:
        self._running.wait_done(within_s=within_s)

    def ask(self) -> float:
        self._running.give(Work(1))
        return self._running.wait_done(within_s=START_S)[0]

    def pids(self) -> dict[str, int]:
        return {"script": self._running.pid}

    def halt(self) -> None:
        if self._script is not None:
            self._script.stop()
            self._script = None

    @property
    def _running(self) -> Scripted:
        assert self._script is not None
        return self._script
