"""A service as a supervised child process: its wanted and its actual state, restarts with backoff, and its log."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock
from typing import NoReturn

from deploy.local import service_log
from deploy.local.server_process import ServerFailed, last_lines
from deploy.local.service import Service, ServiceFailed
from models.platform.fork_client import Forked

BACKOFF_S = (0.2, 0.4, 0.8, 1.6, 3.2, 5.0)
BACKOFF_RESET_S = 10
EXIT_POLL_S = 0.002

log = logging.getLogger("nowserving.up")


@dataclass
class ChildProcess:
    """A supervised service. Only the supervisor calls `step`; other methods are safe in any thread."""

    service: Service
    log_file: Path
    report: Callable[[str], None] = lambda _: None  # reports started and ended process groups to the orphan reaper
    is_wanted: bool = field(default=False, init=False)
    process: subprocess.Popen[bytes] | Forked | None = field(default=None, init=False)
    exit_code: int | None = field(default=None, init=False)
    starts: int = field(default=0, init=False)
    started_at: float = field(default=0.0, init=False)
    log_from: int = field(default=0, init=False)
    _failures: int = field(default=0, init=False)
    _start_at: float = field(default=0.0, init=False)
    _kill_at: float | None = field(default=None, init=False)
    _lock: RLock = field(default_factory=RLock, init=False)

    @property
    def pid(self) -> int | None:
        """The process id; None while it does not run."""
        process = self.process
        return process.pid if process else None

    def is_running(self) -> bool:
        """Returns whether the process runs; False from its exit on, reaped or not."""
        process = self.process
        return process is not None and not _has_exited(process)

    def is_ready(self) -> bool:
        """Returns whether it runs and its probe succeeds."""
        return self.is_running() and self.service.is_ready()

    def wait_ready(self, within_s: float = 60) -> None:
        """Waits until it is ready. Raises TimeoutError."""
        self._wait(self.is_ready, within_s, "ready")

    def start(self) -> None:
        """Has the supervisor start it again within 0.1 s."""
        self._start_at, self.is_wanted = 0.0, True

    def stop(self, within_s: float = 60) -> None:
        """Has it stopped and waits for the exit; it is not restarted. Raises TimeoutError."""
        self.is_wanted = False
        self._wait(lambda: self.pid is None, within_s, "stopped")

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Sends the signal to its process group; the supervisor restarts it. With SIGKILL it waits for the exit."""
        with self._lock:
            if self.process:
                with suppress(ProcessLookupError):
                    os.killpg(self.process.pid, number)
                if number == signal.SIGKILL:
                    _wait_for_exit(self.process)

    def log_tail(self) -> str:
        """Returns the last lines of the log of its current run."""
        return last_lines(self.log_file, since=self.log_from)

    def start_first(self) -> None:
        """Starts it for the first time. `check_alive` reports a failure."""
        with self._lock:
            self.is_wanted = True
            self._spawn()

    def check_alive(self) -> None:
        """Raises ServiceFailed when it exited before it was done: start-up does not restart services."""
        self.reap()
        if not self.is_running() and not (self.service.is_once and self.exit_code == 0):
            self._fail("could not be started" if self.exit_code is None else f"died during start-up ({_exit_reason(self.exit_code)})")

    def check_ready_deadline(self) -> None:
        """Raises ServiceFailed when it was not ready in time."""
        if time.monotonic() > self.started_at + self.service.ready_within_s:
            self._fail(f"was not ready after {self.service.ready_within_s:.0f} s")

    def is_settled(self) -> bool:
        """Returns whether it is ready; for a service that runs once, whether it is done."""
        return self.exit_code == 0 if self.service.is_once else self.is_ready()

    def step(self) -> None:
        """Takes one step to the wanted state: reaps, starts, terminates or kills the process."""
        with self._lock:
            self._rotate_log()
            if self.reap() and self.is_wanted:
                self._back_off(f"died ({_exit_reason(self.exit_code or 0)})")
            if self.process and not self.is_wanted:
                self._terminate()
            elif not self.process and self.is_wanted and time.monotonic() >= self._start_at and not self._spawn():
                self._back_off("could not be started")

    def reap(self) -> bool:
        """Reaps an exited process and kills the rest of its group; returns whether it had exited."""
        with self._lock:
            # Checked before it is reaped: until then no other process can get its pid, and its group can be killed safely.
            if not self.process or not _has_exited(self.process):
                return False
            self.kill()
            self.exit_code = self.process.wait()
            self.report(f"-{self.process.pid}")
            self.process = None
            self.is_wanted = self.is_wanted and not self.service.is_once
            return True

    def _rotate_log(self) -> None:
        if service_log.rotate(self.log_file):
            self.log_from = 0

    def _spawn(self) -> bool:
        self.started_at, self.starts, self._kill_at = time.monotonic(), self.starts + 1, None
        with service_log.open_append(self.log_file) as output:
            self.log_from, self.exit_code = output.tell(), None
            try:
                self.process = self.service.spawn(output)
            except (OSError, subprocess.SubprocessError, ServerFailed) as error:
                output.write(f"{error}\n".encode())
                return False
        self.report(f"+{self.process.pid} {self.service.stop_signal.value}")
        return True

    def _back_off(self, event: str) -> None:
        if time.monotonic() - self.started_at >= BACKOFF_RESET_S:
            self._failures = 0
        wait_s = BACKOFF_S[min(self._failures, len(BACKOFF_S) - 1)]
        self._failures, self._start_at = self._failures + 1, time.monotonic() + wait_s
        log.warning("%s %s; it restarts in %.1f s. Its log: %s", self.service.name, event, wait_s, self.log_file)

    def _terminate(self) -> None:
        assert self.process
        now = time.monotonic()
        if self._kill_at is None:
            self._kill_at = now + self.service.grace_s
            os.kill(self.process.pid, self.service.stop_signal)
        elif now >= self._kill_at:
            log.warning("%s did not stop within %.0f s and is killed", self.service.name, self.service.grace_s)
            self.kill()
            self._kill_at = now + 1

    def _fail(self, event: str) -> NoReturn:
        raise ServiceFailed(f"{self.service.name} {event}. The end of its log, {self.log_file}:\n{self.log_tail()}")

    def _wait(self, condition: Callable[[], bool], within_s: float, state: str) -> None:
        deadline = time.monotonic() + within_s
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{self.service.name} is not {state} after {within_s:.0f} s; its log: {self.log_file}\n{self.log_tail()}"
                )
            time.sleep(0.02)


def _has_exited(process: subprocess.Popen[bytes] | Forked) -> bool:
    """Returns whether the process exited, without reaping it."""
    if isinstance(process, Forked):
        return process.has_ended()
    try:
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
    except ChildProcessError:  # already reaped, so it exited
        return True


def _wait_for_exit(process: subprocess.Popen[bytes] | Forked) -> None:
    while not _has_exited(process):
        time.sleep(EXIT_POLL_S)


def _exit_reason(exit_code: int) -> str:
    return f"signal {signal.Signals(-exit_code).name}" if exit_code < 0 else f"exit status {exit_code}"
