"""A part as a child process: what is wanted of it, and what has become of it."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock
from typing import NoReturn

from deploy.local.server_process import ServerFailed, last_lines
from deploy.local.service import Part, PartFailed
from models.platform.fork_server import Forked

BACKOFF_S = (0.2, 0.4, 0.8, 1.6, 3.2, 5.0)
FORGIVEN_AFTER_S = 10
LOG_BYTES = 10 * 1024 * 1024
DYING_LOOK_S = 0.002

log = logging.getLogger("nowserving.up")


@dataclass
class Child:
    """A part under supervision. `step` is the supervisor's; the rest may be used from any thread."""

    part: Part
    log_file: Path
    tell: Callable[[str], None] = lambda _: None  # the guardian hears of every process group that begins or ends
    is_wanted: bool = field(default=False, init=False)
    process: subprocess.Popen[bytes] | Forked | None = field(default=None, init=False)
    exit_code: int | None = field(default=None, init=False)
    starts: int = field(default=0, init=False)
    started_at: float = field(default=0.0, init=False)
    log_from: int = field(default=0, init=False)
    _deaths: int = field(default=0, init=False)
    _start_at: float = field(default=0.0, init=False)
    _insist_at: float | None = field(default=None, init=False)
    _lock: RLock = field(default_factory=RLock, init=False)

    @property
    def pid(self) -> int | None:
        process = self.process
        return process.pid if process else None

    def is_running(self) -> bool:
        """Whether it lives; false from the moment of its death, noticed or not."""
        process = self.process
        return process is not None and not _has_ended(process)

    def is_ready(self) -> bool:
        return self.is_running() and self.part.is_ready()

    def wait_ready(self, within_s: float = 60) -> None:
        """It runs and answers. Raises TimeoutError."""
        self._wait(self.is_ready, within_s, "ready")

    def start(self) -> None:
        """Wanted again after `stop`; the supervisor starts it within a tenth of a second."""
        self._start_at, self.is_wanted = 0.0, True

    def stop(self, within_s: float = 60) -> None:
        """Asked to stop, gone, and not started again. Raises TimeoutError."""
        self.is_wanted = False
        self._wait(lambda: self.pid is None, within_s, "stopped")

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        """The signal has been sent to the part and to its children; a part that dies of it is started again. After SIGKILL it is dead."""
        with self._lock:
            if self.process:
                with suppress(ProcessLookupError):
                    os.killpg(self.process.pid, how)
                if how == signal.SIGKILL:
                    _await_end(self.process)

    def said(self) -> str:
        """The last lines that its present run has written."""
        return last_lines(self.log_file, since=self.log_from)

    def begin(self) -> None:
        """Started for the first time, or not: `refuse_death` tells."""
        with self._lock:
            self.is_wanted = True
            self._spawn()

    def refuse_death(self) -> None:
        """Raises PartFailed when it has ended before its work was done: start-up does not try twice."""
        self.notice()
        if not self.is_running() and not (self.part.is_once and self.exit_code == 0):
            self._fail("could not be started" if self.exit_code is None else f"died during start-up ({_how(self.exit_code)})")

    def refuse_delay(self) -> None:
        """Raises PartFailed when its time to become ready is over."""
        if time.monotonic() > self.started_at + self.part.ready_within_s:
            self._fail(f"was not ready after {self.part.ready_within_s:.0f} s")

    def is_settled(self) -> bool:
        """Ready; or, of a part that runs once, done."""
        return self.exit_code == 0 if self.part.is_once else self.is_ready()

    def step(self) -> None:
        """One step towards what is wanted: noticed dead, started when its time has come, asked to stop, or killed."""
        with self._lock:
            self._cut_log()
            if self.notice() and self.is_wanted:
                self._back_off(f"died ({_how(self.exit_code or 0)})")
            if self.process and not self.is_wanted:
                self._ask()
            elif not self.process and self.is_wanted and time.monotonic() >= self._start_at and not self._spawn():
                self._back_off("could not be started")

    def notice(self) -> bool:
        """Whether it has ended since the last look; then what was left of its process group is gone too."""
        with self._lock:
            # Looked at before it is reaped: until then nobody else can get its number, and its group can be killed safely.
            if not self.process or not _has_ended(self.process):
                return False
            self.kill()
            self.exit_code = self.process.wait()
            self.tell(f"-{self.process.pid}")
            self.process = None
            self.is_wanted = self.is_wanted and not self.part.is_once
            return True

    def _cut_log(self) -> None:
        """What is longer than LOG_BYTES is moved aside, under the feet of whoever writes; a line of that very moment may be lost."""
        with suppress(OSError):
            if self.log_file.stat().st_size > LOG_BYTES:
                shutil.copyfile(self.log_file, _aside(self.log_file))
                # They append, so that they go on at the beginning.
                os.truncate(self.log_file, 0)
                self.log_from = 0

    def _spawn(self) -> bool:
        self.started_at, self.starts, self._insist_at = time.monotonic(), self.starts + 1, None
        with open(self.log_file, "ab", opener=_for_us) as output:
            self.log_from, self.exit_code = output.tell(), None
            try:
                self.process = self.part.spawn(output)
            except (OSError, subprocess.SubprocessError, ServerFailed) as error:
                output.write(f"{error}\n".encode())
                return False
        self.tell(f"+{self.process.pid} {self.part.stop_signal.value}")
        return True

    def _back_off(self, what: str) -> None:
        if time.monotonic() - self.started_at >= FORGIVEN_AFTER_S:
            self._deaths = 0
        wait_s = BACKOFF_S[min(self._deaths, len(BACKOFF_S) - 1)]
        self._deaths, self._start_at = self._deaths + 1, time.monotonic() + wait_s
        log.warning("%s %s; it is started again in %.1f s. Its log: %s", self.part.name, what, wait_s, self.log_file)

    def _ask(self) -> None:
        assert self.process
        now = time.monotonic()
        if self._insist_at is None:
            self._insist_at = now + self.part.grace_s
            os.kill(self.process.pid, self.part.stop_signal)
        elif now >= self._insist_at:
            log.warning("%s did not stop within %.0f s and is killed", self.part.name, self.part.grace_s)
            self.kill()
            self._insist_at = now + 1

    def _fail(self, how: str) -> NoReturn:
        raise PartFailed(f"{self.part.name} {how}. The end of its log, {self.log_file}:\n{self.said()}")

    def _wait(self, is_so: Callable[[], bool], within_s: float, what: str) -> None:
        deadline = time.monotonic() + within_s
        while not is_so():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.part.name} is not {what} after {within_s:.0f} s; its log: {self.log_file}\n{self.said()}")
            time.sleep(0.02)


def _has_ended(process: subprocess.Popen[bytes] | Forked) -> bool:
    """Whether it is dead, without collecting it."""
    if isinstance(process, Forked):
        return process.has_ended()
    try:
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
    except ChildProcessError:  # collected by somebody else: dead all the same
        return True


def _await_end(process: subprocess.Popen[bytes] | Forked) -> None:
    while not _has_ended(process):
        time.sleep(DYING_LOOK_S)


def _for_us(path: str, flags: int) -> int:
    return os.open(path, flags, mode=0o600)


def _aside(log_file: Path) -> Path:
    kept = log_file.with_suffix(".log.1")
    kept.touch(mode=0o600)
    return kept


def _how(exit_code: int) -> str:
    return f"signal {signal.Signals(-exit_code).name}" if exit_code < 0 else f"exit status {exit_code}"
