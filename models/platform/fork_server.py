"""A prefork server: imports libraries once, then forks programs of ours, each of which starts in a fraction of the time.

    forker = Forker.spawn(("celery.app", "openai"), env=env)      # a new interpreter
    process = forker.start(["workers.pacer"], env=env, log=Path("pacer.log"))
    process.poll()

The server is a single-threaded process of its own, because a fork copies only one thread of a process. It is the parent of the programs
and keeps a program that has ended as a zombie until it is collected, so that nobody else gets its pid. It ends with its client.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
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
from typing import IO, Any, NoReturn, Self

import setproctitle

from models.config.settings import use_environment
from models.platform.parent_death import die_with_parent

LOOK_S = 0.005
ANSWER_S = 120.0
READY = b"r"
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class ForkerGone(OSError):
    """The prefork server has ended."""


@dataclass
class Forked:
    """A program that was forked: the part of subprocess.Popen's interface that its callers need."""

    pid: int
    _forker: Forker
    returncode: int | None = field(default=None, init=False)

    def has_ended(self) -> bool:
        """Whether it has ended, collected or not."""
        return self.returncode is not None or _state(self.pid) in ("", "Z", "X")

    def poll(self) -> int | None:
        """Its exit status (negative: a signal) once it has ended; it is collected then. SIGKILL if the server is gone: nobody knows."""
        if self.returncode is None and self.has_ended():
            try:
                self.returncode = self._forker.collect(self.pid)
            except ForkerGone:
                self.returncode = -signal.SIGKILL
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status. Raises subprocess.TimeoutExpired."""
        until = time.monotonic() + (float("inf") if timeout is None else timeout)
        while (status := self.poll()) is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired([str(self.pid)], timeout or 0.0)
            time.sleep(LOOK_S)
        return status

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Forker:
    """The client's end. Safe to use from any thread."""

    def __init__(self, connection: socket.socket, *, process: subprocess.Popen[bytes] | None = None) -> None:
        connection.settimeout(ANSWER_S)
        self._connection, self.process = connection, process
        self._answers = connection.makefile("rb")
        self._lock = Lock()
        self._is_ready = False

    @classmethod
    def spawn(cls, libraries: Sequence[str], *, env: Mapping[str, str], cwd: Path | None = None, log: IO[bytes] | None = None) -> Self:
        """A server in a new interpreter and a session of its own; it dies with the calling thread."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", __name__, *libraries], env=dict(env), cwd=cwd, stdin=theirs.fileno(), stdout=log, stderr=log,
                start_new_session=True, preexec_fn=lambda: die_with_parent(signal.SIGKILL),
            )  # fmt: skip
        return cls(ours, process=process)

    @classmethod
    def fork(cls, libraries: Sequence[str]) -> Self:
        """A server forked from this process, which must have a single thread; it stays in the process group."""
        ours, theirs = socket.socketpair()
        if os.fork() == 0:
            ours.close()
            _end_after(lambda: _serve(theirs, libraries))
        theirs.close()
        return cls(ours)

    def is_ready(self) -> bool:
        """Whether the libraries are imported; until then `start` waits for them."""
        if not self._is_ready and select.select([self._connection], [], [], 0)[0]:
            with self._lock:
                self._take_ready()
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

        log: gets its output, appended; None: where the server's goes. is_apart: in a session of its own. dies: gets this signal when the
        server has ended.
        """
        wanted = {"argv": list(argv), "env": dict(env), "log": log and str(log), "is_apart": is_apart, "dies": dies}
        return Forked(int(self._ask(wanted)), self)

    def collect(self, pid: int) -> int:
        """The exit status of a program that has ended, negative for a signal. Raises ForkerGone."""
        return int(self._ask({"collect": pid}))

    def close(self) -> None:
        """The server ends; its programs run on."""
        self._answers.close()
        self._connection.close()
        if self.process:
            self.process.wait()

    def _ask(self, wanted: Mapping[str, object]) -> int:
        with self._lock:
            try:
                self._take_ready()
                self._connection.sendall(json.dumps(wanted).encode() + b"\n")
                return int(self._answers.readline())
            except (OSError, ValueError) as error:
                raise ForkerGone("the prefork server has ended: its log says why") from error

    def _take_ready(self) -> None:
        if not self._is_ready:
            if self._answers.read(1) != READY:
                raise ForkerGone("the prefork server has ended before it was ready: its log says why")
            self._is_ready = True


def preload(libraries: Sequence[str]) -> None:
    """These modules are imported. One that cannot be is left to the program that needs it, which says why."""
    gc.disable()  # nothing of it is garbage, and looking for some takes a third of the time
    for name in libraries:
        with suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()
    gc.enable()


def _serve(connection: socket.socket, libraries: Sequence[str]) -> None:
    """Answers requests one after another until the client is gone."""
    for number in IGNORED:  # a signal to the whole process group is for the programs; the server ends with its client
        signal.signal(number, signal.SIG_IGN)
    setproctitle.setproctitle("nowserving: forker")
    preload(libraries)
    connection.sendall(READY)
    requests, server = connection.makefile("r"), os.getpid()
    for line in requests:
        wanted = json.loads(line)
        if "collect" in wanted:
            answer = os.waitstatus_to_exitcode(os.waitpid(wanted["collect"], 0)[1])
        elif (answer := os.fork()) == 0:
            connection.close()
            requests.close()
            _end_after(lambda wanted=wanted: _become(wanted, server=server))
        connection.sendall(f"{answer}\n".encode())


def _become(wanted: Mapping[str, Any], *, server: int) -> None:
    """This process goes on as the program. server: the pid of its parent."""
    if wanted["is_apart"]:
        os.setsid()
    if wanted["dies"]:
        die_with_parent(wanted["dies"])
        if os.getppid() != server:  # it ended before that
            return
    for number in IGNORED:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if wanted["log"]:
        output = os.open(wanted["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
    use_environment(wanted["env"])
    sys.argv = [*wanted["argv"]]
    setproctitle.setproctitle(" ".join(["python", "-m", *sys.argv]))
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def _end_after(work: Any) -> NoReturn:
    """Does this in a forked process and ends it: what the process that forked has to do at its end is not this one's."""
    status = 1
    try:
        work()
        status = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)


def _state(pid: int) -> str:
    """The process's state in one letter; empty when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def main() -> None:
    """Serves the socket that is this process's standard input; its programs read nothing there."""
    connection, nothing = socket.socket(fileno=os.dup(0)), os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    _serve(connection, sys.argv[1:])


if __name__ == "__main__":
    main()
