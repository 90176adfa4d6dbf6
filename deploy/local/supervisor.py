"""Runs named parts as child processes: started side by side, started again when they die, stopped in reverse order."""

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
from deploy.local.child_process import Child
from deploy.local.service import Part, PartFailed

TICK_S = 0.05
PATIENCE_S = 2

__all__ = ["Child", "Part", "PartFailed", "Supervisor"]

log = logging.getLogger("nowserving.up")


class _Stopped(Exception):
    """Asked to stop while still starting."""


class Supervisor:
    """All processes are started, noticed and ended by one thread, which outlives them: PDEATHSIG follows the thread that forks."""

    def __init__(self, parts: Sequence[Part], *, logs: Path, echo: Callable[[str], None] | None = None, held: Sequence[int] = ()) -> None:
        """echo: gets every line of every log, with the part's name. held: descriptors kept open until the last child is gone."""
        logs.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.children = [Child(part, logs / f"{part.name}.log", self._tell) for part in parts]
        self._echo, self._held = echo, tuple(held)
        self._echoed: dict[str, int] = {}
        self._guardian: subprocess.Popen[str] | None = None
        self._failure: Exception | None = None
        self._stopping, self._at_once, self._settled, self._done = Event(), Event(), Event(), Event()
        self._thread = Thread(target=self._run, name="supervisor", daemon=True)

    def start(self) -> bool:
        """Every part but the late ones is ready; False when asked to stop before that. Raises PartFailed, and nothing runs any more."""
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

    def part(self, name: str) -> Child:
        """The part of this name."""
        return next(child for child in self.children if child.part.name == name)

    def ask_to_stop(self) -> None:
        """Returns at once; `wait` tells when it is done. Fit for a signal handler."""
        self._stopping.set()

    def kill(self) -> None:
        """As ask_to_stop, with no grace for anybody."""
        self._at_once.set()
        self._stopping.set()

    def wait(self) -> None:
        """Every part has ended, because somebody asked. Raises PartFailed when it was not that."""
        self._end()
        if self._failure:
            raise PartFailed(f"the supervisor itself failed: {self._failure}") from self._failure

    def stop(self) -> None:
        """Every part has ended, the last started first."""
        self.ask_to_stop()
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
            self._guard()
            self._start_all()
            self._settled.set()
            while not self._stopping.is_set():
                self._turn()
                self._stopping.wait(TICK_S)
        except _Stopped:
            pass
        except Exception as error:  # the thread's border: whatever it was, the caller of start() hears of it
            self._failure, self._echo = error, None
            log.debug("the supervisor stops", exc_info=True)
        finally:
            try:
                self._stop_all()
            finally:
                self._settled.set()
                self._done.set()

    def _guard(self) -> None:
        command = [sys.executable, "-I", "-S", orphan_reaper.__file__]
        self._guardian = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True, pass_fds=self._held
        )

    def _tell(self, line: str) -> None:
        if self._guardian and self._guardian.stdin:
            with suppress(BrokenPipeError):
                self._guardian.stdin.write(line + "\n")
                self._guardian.stdin.flush()

    def _start_all(self) -> None:
        """Each part begins as soon as all that it needs is settled. A death is final here: a part that never ran well is not retried."""
        waiting = list(self.children)
        begun: list[Child] = []
        there, settled = {child.part.name for child in self.children}, set[str]()
        while any(not child.part.is_late for child in waiting):
            settled |= {child.part.name for child in begun if child.part.ready_after & there <= settled and child.is_settled()}
            waiting = [child for child in self.children if child.part.name not in settled]
            startable = [
                child for child in waiting if child not in begun and not child.part.is_late and child.part.needs & there <= settled
            ]
            for child in sorted(startable, key=lambda child: child.part.is_slow_to_spawn):
                self._refuse_stop()
                child.begin()
                begun.append(child)
            self._refuse_stop()
            self._echo_logs()
            for child in begun:
                child.refuse_death()
                if child in waiting:
                    child.refuse_delay()
            time.sleep(TICK_S / 2 if waiting else 0)
        for child in self.children:
            child.is_wanted = child.is_wanted or child not in begun  # the late ones

    def _refuse_stop(self) -> None:
        if self._stopping.is_set():
            raise _Stopped

    def _turn(self) -> None:
        for child in self.children:
            child.step()
        self._echo_logs()

    def _stop_all(self) -> None:
        for child in reversed(self.children):
            child.is_wanted = False
            patience = time.monotonic() + PATIENCE_S
            self._turn()  # all of them: those that this one still needs are kept alive meanwhile
            while child.pid is not None:
                if self._at_once.is_set():
                    child.kill()
                if patience and time.monotonic() > patience:
                    patience = 0
                    log.info("waiting up to %.0f s for %s to finish; Ctrl-C once more stops at once", child.part.grace_s, child.part.name)
                time.sleep(TICK_S / 5)
                self._turn()
        if self._guardian:
            self._guardian.communicate()

    def _echo_logs(self) -> None:
        if not self._echo:
            return
        for child in self.children:
            self._echoed[child.part.name] = _echo(child, self._echoed.get(child.part.name), self._echo)


def _echo(child: Child, position: int | None, echo: Callable[[str], None]) -> int:
    """The whole lines written since `position` have been shown; returns the new position."""
    if not child.log_file.exists():
        return 0
    with child.log_file.open("rb") as source:
        size = source.seek(0, 2)
        start = child.log_from if position is None or position > size else position
        source.seek(start)
        text = source.read()
    whole = text[: text.rfind(b"\n") + 1]
    for line in whole.decode(errors="replace").splitlines():
        echo(f"{child.part.name:>9} | {line}")
    return start + len(whole)
