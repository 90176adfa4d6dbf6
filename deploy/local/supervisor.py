"""Supervisor: starts services as child processes in parallel, restarts them when they exit, stops them in reverse order."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import Self

from deploy.local import orphan_reaper
from deploy.local.child_process import ChildProcess
from deploy.local.service import Service, ServiceFailed

TICK_S = 0.05
STOP_NOTICE_S = 2

__all__ = ["ChildProcess", "Service", "ServiceFailed", "Supervisor"]

log = logging.getLogger("nowserving.up")


class _Stopped(Exception):
    """A stop was requested during start-up."""


class Supervisor:
    """One thread starts, reaps and stops all processes and outlives them: PDEATHSIG follows the thread that forks."""

    def __init__(
        self, services: Sequence[Service], *, logs: Path, echo: Callable[[str], None] | None = None, held: Sequence[int] = ()
    ) -> None:
        """echo: gets every log line with the service's name. held: descriptors that stay open until the last child exits."""
        logs.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.children = [ChildProcess(service, logs / f"{service.name}.log", self._report) for service in services]
        self._echo, self._held = echo, tuple(held)
        self._echoed: dict[str, int] = {}
        self._reaper: subprocess.Popen[str] | None = None
        self._failure: Exception | None = None
        self._stopping, self._at_once, self._settled, self._done = Event(), Event(), Event(), Event()
        self._thread = Thread(target=self._run, name="supervisor", daemon=True)

    def start(self) -> bool:
        """Starts all services and waits until all but the late ones (is_late) are ready; False if stopped before. Raises ServiceFailed."""
        self._thread.start()
        try:
            self._settled.wait()
        except BaseException:
            self.stop()
            raise
        if self._failure:
            self._thread.join()
            raise self._failure
        return not self._stopping.is_set()

    def child(self, name: str) -> ChildProcess:
        """Returns the process of this service."""
        return next(child for child in self.children if child.service.name == name)

    def request_stop(self) -> None:
        """Requests a stop and returns at once; `wait` waits for it. Safe in a signal handler."""
        self._stopping.set()

    def kill(self) -> None:
        """Requests a stop without grace periods."""
        self._at_once.set()
        self._stopping.set()

    def wait(self) -> None:
        """Waits until a requested stop is complete. Raises ServiceFailed when the supervisor failed."""
        self._end()
        if self._failure:
            raise ServiceFailed(f"the supervisor itself failed: {self._failure}") from self._failure

    def stop(self) -> None:
        """Stops all services, the last started first."""
        self.request_stop()
        if self._thread.ident is not None:
            self._end()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _end(self) -> None:
        self._done.wait()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._start_reaper()
            self._start_all()
            self._settled.set()
            while not self._stopping.is_set():
                self._step()
                self._stopping.wait(TICK_S)
        except _Stopped:
            pass
        except Exception as error:  # the thread's border: start() raises it
            self._failure, self._echo = error, None
            log.debug("the supervisor stops", exc_info=True)
        finally:
            try:
                self._stop_all()
            finally:
                self._settled.set()
                self._done.set()

    def _start_reaper(self) -> None:
        command = [sys.executable, "-I", "-S", orphan_reaper.__file__]
        self._reaper = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True, pass_fds=self._held
        )

    def _report(self, line: str) -> None:
        if self._reaper and self._reaper.stdin:
            with suppress(BrokenPipeError):
                self._reaper.stdin.write(line + "\n")
                self._reaper.stdin.flush()

    def _start_all(self) -> None:
        """Starts each service once the services it needs are settled. A service that exits during start-up is not restarted."""
        waiting = list(self.children)
        started: list[ChildProcess] = []
        names, settled = {child.service.name for child in self.children}, set[str]()
        while any(not child.service.is_late for child in waiting):
            settled |= {child.service.name for child in started if child.service.ready_after & names <= settled and child.is_settled()}
            waiting = [child for child in self.children if child.service.name not in settled]
            startable = [
                child for child in waiting if child not in started and not child.service.is_late and child.service.needs & names <= settled
            ]
            for child in sorted(startable, key=lambda child: child.service.is_slow_to_spawn):
                self._check_stop()
                child.start_first()
                started.append(child)
            self._check_stop()
            self._echo_logs()
            for child in started:
                child.check_alive()
                if child in waiting:
                    child.check_ready_deadline()
            time.sleep(TICK_S / 2 if waiting else 0)
        for child in self.children:
            child.is_wanted = child.is_wanted or child not in started  # the late ones

    def _check_stop(self) -> None:
        if self._stopping.is_set():
            raise _Stopped

    def _step(self) -> None:
        for child in self.children:
            child.step()
        self._echo_logs()

    def _stop_all(self) -> None:
        for child in reversed(self.children):
            child.is_wanted = False
            notice_at = time.monotonic() + STOP_NOTICE_S
            self._step()  # steps all children: services that this one needs are kept running
            while child.pid is not None:
                if self._at_once.is_set():
                    child.kill()
                if notice_at and time.monotonic() > notice_at:
                    notice_at = 0
                    log.info(
                        "waiting up to %.0f s for %s to finish; Ctrl-C once more stops at once", child.service.grace_s, child.service.name
                    )
                time.sleep(TICK_S / 5)
                self._step()
        if self._reaper:
            self._reaper.communicate()

    def _echo_logs(self) -> None:
        if not self._echo:
            return
        for child in self.children:
            self._echoed[child.service.name] = _echo(child, self._echoed.get(child.service.name), self._echo)


def _echo(child: ChildProcess, position: int | None, echo: Callable[[str], None]) -> int:
    """Echoes the whole lines written since `position`; returns the new position."""
    if not child.log_file.exists():
        return 0
    with child.log_file.open("rb") as source:
        size = source.seek(0, 2)
        start = child.log_from if position is None or position > size else position
        source.seek(start)
        text = source.read()
    whole = text[: text.rfind(b"\n") + 1]
    for line in whole.decode(errors="replace").splitlines():
        echo(f"{child.service.name:>9} | {line}")
    return start + len(whole)
