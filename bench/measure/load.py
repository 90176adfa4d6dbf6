"""A light load generator in a process of its own: keep-alive connections, one request after another on each, one thread.

load.submit(Wanted(stack.port, caller.token, jobs=1000, connections=8)) -> Load
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

ROOT = Path(__file__).parents[2]
JOBS = "/v1/jobs"
CHAT = "/v1/chat/completions"
OK, ACCEPTED = 200, 202


@dataclass(frozen=True)
class Load:
    """took_s: each request, from its first byte out to its last byte in. began: when the first went out, in Unix seconds.

    refused: the error of the first refused request.
    """

    began: float
    seconds: float
    took_s: list[float]
    refused: int
    first_refusal: str = ""

    @property
    def per_s(self) -> float:
        return len(self.took_s) / self.seconds


@dataclass(frozen=True)
class Wanted:
    """What to send. users: jobs go round these many users in turn, named `prefix` and a number. prompt: {user} in it is the job's.

    path: JOBS to submit, CHAT to wait in line and be answered, as any client of OpenAI does.
    """

    port: int
    token: str
    jobs: int
    connections: int = 8
    model: str = "gpt-4o-mini"
    users: int = 1
    prefix: str = "user"
    max_tokens: int = 100
    prompt: str = "Say hello."
    path: str = JOBS
    stream: bool = False

    @property
    def expected(self) -> int:
        return ACCEPTED if self.path == JOBS else OK

    def requests(self) -> Iterator[bytes]:
        for n in range(self.jobs):
            user = f"{self.prefix}{n % self.users}"
            asked = {
                "model": self.model,
                "max_tokens": self.max_tokens,
                "messages": [{"role": "user", "content": self.prompt.format(user=user)}],
            }
            result = {"endpoint": CHAT, "user": user, "body": asked} if self.path == JOBS else {**asked, "user": user}
            yield request("POST", self.path, token=self.token, result=result | ({"stream": True} if self.stream else {}))


def request(method: str, path: str, *, token: str, result: object = None) -> bytes:
    """A whole request, as it goes over the wire."""
    body = b"" if result is None else json.dumps(result).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n"
    kind = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
    return f"{head}{kind}\r\n".encode() + body


def submit(wanted: Wanted) -> Load:
    """All of it has been accepted, or answered. Raises RuntimeError when any was refused."""
    done = start(wanted).communicate()[0]
    load = Load(**json.loads(done))
    if load.refused:
        raise RuntimeError(f"{load.refused} of {wanted.jobs} requests were refused, the first with {load.first_refusal}")
    return load


def start(wanted: Wanted) -> subprocess.Popen[str]:
    """The generator runs beside us; its output is a Load."""
    return subprocess.Popen(
        [sys.executable, "-m", "bench.measure.load", json.dumps(asdict(wanted))], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


class Line:
    """One connection to a server that stays open."""

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
            raise ConnectionError("the server closed a connection")
        self._got += part
        head, found, body = self._got.partition(b"\r\n\r\n")
        return int(head[9:12]) if found and _is_whole(head.lower(), body) else None

    @property
    def body(self) -> bytes:
        """What came of the answer's body so far; chunks with their sizes."""
        return bytes(self._got.partition(b"\r\n\r\n")[2])

    def ask(self, request: bytes, *, expected: int = ACCEPTED) -> None:
        """Sent and answered. Raises RuntimeError when it was refused."""
        self.send(request)
        while (status := self.receive()) is None:
            pass
        if status != expected:
            raise RuntimeError(f"the server answered {status}")


def _is_whole(head: bytes | bytearray, body: bytes | bytearray) -> bool:
    if b"transfer-encoding: chunked" in head:
        return body.endswith(b"\r\n0\r\n\r\n") or body == b"0\r\n\r\n"
    return len(body) >= int(head.split(b"content-length:")[1].split(b"\r\n")[0])


def _run(wanted: Wanted) -> Load:
    requests, took_s, refused, first = wanted.requests(), [], 0, ""
    with selectors.DefaultSelector() as selector:
        began, started = time.time(), time.perf_counter()
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
                if status != wanted.expected:
                    refused, first = refused + 1, first or f"{status} {line.body.decode(errors='replace')}"
                if following := next(requests, None):
                    line.send(following)
                else:
                    selector.unregister(line.socket)
                    line.socket.close()
    return Load(began, time.perf_counter() - started, took_s, refused, first)


if __name__ == "__main__":
    print(json.dumps(asdict(_run(Wanted(**json.loads(sys.argv[1]))))))
