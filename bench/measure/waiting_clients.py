"""Very many clients in one process, each with a connection of its own, who wait until they are answered.

crowd = Crowd(Wish(port, tokens, clients=2000)); crowd.wait_until_in(); …; crowd.wait_until_served() -> Served
A third of them are streams, a third calls without one, and a third long-polls a job that it has submitted.
"""

from __future__ import annotations

import json
import resource
import selectors
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.measure.load import CHAT, JOBS, OK, Line, request

ROOT = Path(__file__).parents[2]
KINDS = ("stream", "call", "poll")
AT_ONCE = 16
POLL_S = 50
ENDED = {"succeeded", "failed", "cancelled", "expired"}


@dataclass(frozen=True)
class Wish:
    """tokens: the keys they go round, so that no key has more than its share. patience_s: for one to come in, and for all to be served."""

    port: int
    tokens: list[str]
    clients: int
    model: str = "gpt-4o-mini"
    patience_s: float = 120


@dataclass(frozen=True)
class Served:
    """Clients by how it ended for them: served, or what went wrong."""

    ends: dict[str, int]

    @property
    def served(self) -> int:
        return self.ends.get("served", 0)


class Crowd:
    """The process, as the one that measures sees it."""

    def __init__(self, wish: Wish) -> None:
        command = [sys.executable, "-m", "bench.measure.waiting_clients", json.dumps(asdict(wish))]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def wait_until_in(self) -> int:
        """Every client's request is on its way; how many connections the server took."""
        return int(self._read_report()["in"])

    def wait_until_served(self) -> Served:
        """All have been answered, or their patience is over; they are gone then."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        served = Served(self._read_report()["ends"])
        self._process.wait()
        return served

    def _read_report(self) -> dict[str, dict[str, int]]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the crowd's process has ended")
        return json.loads(line)  # type: ignore[no-any-return]  # JSON border


class Client:
    """One of them: what it asks for, and what it has to hear before it goes."""

    def __init__(self, wish: Wish, n: int) -> None:
        self.kind = KINDS[n % len(KINDS)]
        self.line = Line(wish.port)
        self.line.socket.settimeout(wish.patience_s)
        self._token = wish.tokens[n % len(wish.tokens)]
        result = {"model": wish.model, "max_tokens": 100, "messages": [{"role": "user", "content": "Say hello."}]}
        if self.kind == "poll":
            self.line.ask(request("POST", JOBS, token=self._token, result={"endpoint": CHAT, "body": result}))
            self._path = f"{JOBS}/{_job(self.line)['id']}?wait={POLL_S}"
            self._look()
        else:
            streamed = {"stream": True} if self.kind == "stream" else {}
            self.line.send(request("POST", CHAT, token=self._token, result=result | streamed))

    def hear(self) -> str | None:
        """How it ended; None: it goes on waiting."""
        try:
            status = self.line.receive()
        except OSError as error:
            return type(error).__name__
        if status is None:
            return None
        if status != OK:
            return f"{self.kind}: HTTP {status}"
        if self.kind == "poll" and _job(self.line)["status"] not in ENDED:
            self._look()
            return None
        if self.kind == "stream" and b"[DONE]" not in self.line.body[-40:]:
            return "stream: cut"
        return "served" if self.kind != "poll" or _job(self.line)["status"] == "succeeded" else "poll: not succeeded"

    def _look(self) -> None:
        self.line.send(request("GET", self._path, token=self._token))


def _job(line: Line) -> dict[str, str]:
    return json.loads(line.body)  # type: ignore[no-any-return]  # JSON border


def _run(wish: Wish) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    ends: Counter[str] = Counter()
    with selectors.DefaultSelector() as selector:
        for n in range(wish.clients):
            try:
                client = Client(wish, n)
            except (OSError, RuntimeError) as error:
                ends[f"refused: {error}"] += 1
                continue
            selector.register(client.line.socket, selectors.EVENT_READ, client)
            if n % AT_ONCE == 0:
                _hear(selector, ends, patience_s=0)
        print(json.dumps({"in": len(selector.get_map())}), flush=True)
        leaving = selectors.DefaultSelector()
        leaving.register(sys.stdin, selectors.EVENT_READ)
        while not leaving.select(0):
            _hear(selector, ends, patience_s=0.2)
        until = time.monotonic() + wish.patience_s
        while selector.get_map() and time.monotonic() < until:
            _hear(selector, ends, patience_s=0.5)
        ends["not answered"] = len(selector.get_map())
    print(json.dumps({"ends": dict(ends)}), flush=True)


def _hear(selector: selectors.BaseSelector, ends: Counter[str], *, patience_s: float) -> None:
    for ready, _ in selector.select(patience_s):
        client = ready.data
        if end := client.hear():
            ends[end] += 1
            selector.unregister(client.line.socket)
            client.line.socket.close()


if __name__ == "__main__":
    _run(Wish(**json.loads(sys.argv[1])))
