"""A webhook receiver: a real process with its own port, which records each request before it responds.

The URL sets the response: `?status=410`, `?fail=0.3` (a share of 500s), `?hang=0.05` (a share without a response), `?after=600`
(Retry-After), `?slow=0.1` (seconds). Requests are on disk as JSON lines, so that the process can be killed and restarted.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlencode, urlsplit

from deploy.local.server_process import die_with_parent, free_port
from tests.support.programs.process import until


@dataclass(frozen=True)
class Got:
    """One request. status 0: it gets no answer."""

    path: str
    headers: dict[str, str]
    body: str
    status: int
    at: float

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def event(self) -> Any:
        return json.loads(self.body)


@dataclass
class Receiver:
    """The receiver process. `got` returns the recorded requests in order."""

    folder: Path
    port: int = field(default_factory=free_port)
    host: str = "127.0.0.1"
    _process: subprocess.Popen[bytes] | None = None

    def url(self, path: str = "/hook", **how: object) -> str:
        return f"http://{self.host}:{self.port}{path}" + (f"?{urlencode(how)}" if how else "")

    def settings(self) -> dict[str, object]:
        """The settings that allow webhooks to this receiver."""
        return {"webhook_allow_http": True, "webhook_allow_ports": self.port, "webhook_allow_networks": "127.0.0.0/8"}

    def got(self, path: str | None = None) -> list[Got]:
        if not self._notes.exists():
            return []
        lines = self._notes.read_text().split("\n")[:-1]  # the last may be half written
        found = [Got(**json.loads(line)) for line in lines]
        return [one for one in found if path is None or one.path == path]

    def wait_got(self, count: int, path: str | None = None) -> list[Got]:
        """Waits for this number of requests; returns all. Raises TimeoutError."""
        until(lambda: len(self.got(path)) >= count, what=f"{count} deliveries arrived, only {len(self.got(path))}")
        return self.got(path)

    def start(self) -> None:
        argv = [sys.executable, "-m", "tests.support.servers.webhook_receiver", self.host, str(self.port), str(self._notes)]
        self._process = subprocess.Popen(argv, preexec_fn=die_with_parent, start_new_session=True)
        until(self._answers, what="the receiver listens")

    def kill(self) -> None:
        assert self._process
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(20)

    @property
    def _notes(self) -> Path:
        return self.folder / "received.jsonl"

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection((self.host, self.port), timeout=1):
            return True
        return False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill()


class Handler(BaseHTTPRequestHandler):
    notes: int
    lock = threading.Lock()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        split = urlsplit(self.path)
        how = {name: float(values[0]) for name, values in parse_qs(split.query).items()}
        status = self._choose(how)
        headers = {name.lower(): value for name, value in self.headers.items()}
        note = {"path": split.path, "headers": headers, "body": body, "status": status, "at": time.time()}
        with self.lock:
            os.write(self.notes, json.dumps(note).encode() + b"\n")
        time.sleep(how.get("slow", 0))
        if not status:
            self.connection.recv(1)  # until the other side gives up
            self.close_connection = True
            return
        self.send_response(status)
        if "after" in how:
            self.send_header("Retry-After", str(int(how["after"])))
        self.send_header("Location", "http://127.0.0.1:1/")
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"done")

    def _choose(self, how: dict[str, float]) -> int:
        if random.random() < how.get("hang", 0):
            return 0
        return 500 if random.random() < how.get("fail", 0) else int(how.get("status", 200))

    def log_message(self, format: str, *args: object) -> None:
        return


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512
    allow_reuse_address = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignores clients that disconnect."""


def main(host: str, port: str, notes: str) -> None:
    Handler.notes = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    Server((host, int(port)), Handler).serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
