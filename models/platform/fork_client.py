"""The client of a prefork server: starts the server and the programs that it forks, and follows their ends.

forker = Forker.spawn(("celery.app", "openai"), env=env)      # a new interpreter
process = forker.start(["workers.pacer"], env=env, log=Path("pacer.log"))
process.poll()
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import IO, Self

from models.platform import fork_server
from models.platform.parent_death import die_with_parent

POLL_S = 0.005
REPLY_TIMEOUT_S = 120.0


class ForkerGone(OSError):
    """The prefork server has ended."""


@dataclass
class Forked:
    """A forked program, with the part of subprocess.Popen's interface that its callers need."""

    pid: int
    _forker: Forker
    returncode: int | None = field(default=None, init=False)

    def has_ended(self) -> bool:
        """Whether the program has ended, collected or not."""
        return self.returncode is not None or _state(self.pid) in ("", "Z", "X")

    def poll(self) -> int | None:
        """Collects an ended program and returns its exit status (negative: a signal). -SIGKILL if the server is gone."""
        if self.returncode is None and self.has_ended():
            try:
                self.returncode = self._forker.collect(self.pid)
            except ForkerGone:
                self.returncode = -signal.SIGKILL
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the end of the program; returns its exit status. Raises subprocess.TimeoutExpired."""
        until = time.monotonic() + (float("inf") if timeout is None else timeout)
        while (status := self.poll()) is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired([str(self.pid)], timeout or 0.0)
            time.sleep(POLL_S)
        return status

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Forker:
    """The client of a prefork server. Safe to use from any thread."""

    def __init__(self, connection: socket.socket, *, process: subprocess.Popen[bytes] | None = None) -> None:
        connection.settimeout(REPLY_TIMEOUT_S)
        self._connection, self.process = connection, process
        self._replies = connection.makefile("rb")
        self._lock = Lock()
        self._is_ready = False

    @classmethod
    def spawn(cls, libraries: Sequence[str], *, env: Mapping[str, str], cwd: Path | None = None, log: IO[bytes] | None = None) -> Self:
        """Starts a server in a new interpreter and a session of its own; it ends with the calling thread."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", fork_server.__name__, *libraries], env=dict(env), cwd=cwd, stdin=theirs.fileno(),
                stdout=log, stderr=log, start_new_session=True, preexec_fn=lambda: die_with_parent(signal.SIGKILL),
            )  # fmt: skip
        return cls(ours, process=process)

    @classmethod
    def fork(cls, libraries: Sequence[str]) -> Self:
        """Forks a server from this process, which must have a single thread; it stays in the process group."""
        ours, theirs = socket.socketpair()
        if os.fork() == 0:
            ours.close()
            fork_server.end_after(lambda: fork_server.serve(theirs, libraries))
        theirs.close()
        return cls(ours)

    def is_ready(self) -> bool:
        """Whether the libraries are imported; until then `start` waits for them."""
        if not self._is_ready and select.select([self._connection], [], [], 0)[0]:
            with self._lock:
                self._read_ready()
        return self._is_ready

    def start(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        log: Path | None = None,
        is_apart: bool = True,
        dies: signal.Signals | None = None,
    ) -> Forked:
        """Runs `python -m argv` with exactly this environment. Raises ForkerGone.

        log: the file for its output, appended; None: the server's output. is_apart: in a session of its own. dies: the signal that the
        program gets when the server has ended.
        """
        request = {"argv": list(argv), "env": dict(env), "log": log and str(log), "is_apart": is_apart, "dies": dies}
        return Forked(int(self._request(request)), self)

    def collect(self, pid: int) -> int:
        """The exit status of a program that has ended, negative for a signal. Raises ForkerGone."""
        return int(self._request({"collect": pid}))

    def close(self) -> None:
        """Ends the server; its programs run on."""
        self._replies.close()
        self._connection.close()
        if self.process:
            self.process.wait()

    def _request(self, request: Mapping[str, object]) -> int:
        with self._lock:
            try:
                self._read_ready()
                self._connection.sendall(json.dumps(request).encode() + b"\n")
                return int(self._replies.readline())
            except (OSError, ValueError) as error:
                raise ForkerGone("the prefork server has ended: its log says why") from error

    def _read_ready(self) -> None:
        if not self._is_ready:
            if self._replies.read(1) != fork_server.READY:
                raise ForkerGone("the prefork server has ended before it was ready: its log says why")
            self._is_ready = True


def _state(pid: int) -> str:
    """The state letter of the process; empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""
