"""A light load generator in a process of its own: keep-alive connections, one submit after another on each, one thread.

load.submit(stack.port, caller.token, jobs=1000, connections=8) -> Load
"""

from __future__ import annotations

import json
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
ACCEPTED = 202


@dataclass(frozen=True)
class Load:
    """took_s: each submit, from its first byte out to its last byte in. began: when the first went out, in Unix seconds."""

    began: float
    seconds: float
    took_s: list[float]
    refused: int

    @property
    def per_s(self) -> float:
        return len(self.took_s) / self.seconds


@dataclass(frozen=True)
class Wanted:
    """What to submit. users: jobs go round these many users in turn, named `prefix` and a number."""

    port: int
    token: str
    jobs: int
    connections: int = 8
    model: str = "gpt-4o-mini"
    users: int = 1
    prefix: str = "user"
    max_tokens: int = 100
    prompt: str = "Say hello."

    def requests(self) -> Iterator[bytes]:
        for n in range(self.jobs):
            inside = {"model": self.model, "max_tokens": self.max_tokens, "messages": [{"role": "user", "content": self.prompt}]}
            whole = {"endpoint": "/v1/chat/completions", "user": f"{self.prefix}{n % self.users}", "body": inside}
            body = json.dumps(whole).encode()
            head = f"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {self.token}\r\nContent-Type: application/json\r\n"
            yield head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body


def submit(wanted: Wanted) -> Load:
    """All of it has been submitted. Raises RuntimeError when the API refused any."""
    done = start(wanted).communicate()[0]
    load = Load(**json.loads(done))
    if load.refused:
        raise RuntimeError(f"the API refused {load.refused} of {wanted.jobs} submits")
    return load


def start(wanted: Wanted) -> subprocess.Popen[str]:
    """The generator runs beside us; its output is a Load."""
    return subprocess.Popen([sys.executable, "-m", "bench.load", json.dumps(asdict(wanted))], cwd=ROOT, stdout=subprocess.PIPE, text=True)


class Line:
    """One connection to the API that stays open."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent_at = 0.0
        self._got = bytearray()

    def send(self, request: bytes) -> None:
        self._got.clear()
        self.sent_at = time.perf_counter()
        self.socket.sendall(request)

    def receive(self) -> int | None:
        """The status once the whole answer is here. Raises ConnectionError when the server hung up."""
        if not (part := self.socket.recv(65536)):
            raise ConnectionError("the API closed a connection")
        self._got += part
        head, found, body = self._got.partition(b"\r\n\r\n")
        if not found:
            return None
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        return int(head[9:12]) if len(body) >= length else None

    def ask(self, request: bytes) -> None:
        """Sent and accepted. Raises RuntimeError when it was refused."""
        self.send(request)
        while (status := self.receive()) is None:
            pass
        if status != ACCEPTED:
            raise RuntimeError(f"the API answered {status}")


def _run(wanted: Wanted) -> Load:
    requests, took_s, refused = wanted.requests(), [], 0
    with selectors.DefaultSelector() as selector:
        began, first = time.time(), time.perf_counter()
        for _ in range(min(wanted.connections, wanted.jobs)):
            line = Line(wanted.port)
            selector.register(line.socket, selectors.EVENT_READ, line)
            line.send(next(requests))
        while selector.get_map():
            for ready, _ in selector.select():
                line = ready.data
                if (status := line.receive()) is None:
                    continue
                took_s.append(time.perf_counter() - line.sent_at)
                refused += status != ACCEPTED
                if request := next(requests, None):
                    line.send(request)
                else:
                    selector.unregister(line.socket)
                    line.socket.close()
    return Load(began, time.perf_counter() - first, took_s, refused)


if __name__ == "__main__":
    print(json.dumps(asdict(_run(Wanted(**json.loads(sys.argv[1]))))))
