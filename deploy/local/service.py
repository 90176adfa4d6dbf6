"""The description of a service of the stack: how it starts, when it is ready, how it stops."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from models.platform.fork_client import Forked, Forker
from models.platform.parent_death import die_with_parent

Spawn = Callable[[IO[bytes]], "subprocess.Popen[bytes] | Forked"]


class ServiceFailed(Exception):
    """A service could not be started. The message names it and its exit, and shows the end of its log."""


@dataclass(frozen=True)
class Service:
    """One service. spawn: gets the log file to write to.

    needs: services that must be ready before it starts; unknown names are ignored. ready_after: services without which it cannot be
    ready, so that it is not probed before. is_once: it is done when it exits with 0. is_slow_to_spawn: `spawn` itself takes long, so it
    runs after the other services that can start. is_late: the stack counts as ready without it.
    """

    name: str
    spawn: Spawn
    is_ready: Callable[[], bool] = lambda: True
    needs: frozenset[str] = frozenset()
    ready_after: frozenset[str] = frozenset()
    is_once: bool = False
    is_slow_to_spawn: bool = False
    is_late: bool = False
    stop_signal: signal.Signals = signal.SIGTERM
    grace_s: float = 10
    ready_within_s: float = 120


def spawn_program(argv: Sequence[str], *, env: Mapping[str, str], cwd: Path | None = None) -> Spawn:
    """Returns a function that starts this command in its own process group, so that Ctrl-C reaches only the supervisor."""

    def spawn(output: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            argv, env=dict(env), cwd=cwd, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True, preexec_fn=die_with_parent,
        )  # fmt: skip

    return spawn


@dataclass
class PreforkServer:
    """The prefork server as a service, and the programs that are forked from it."""

    libraries: Sequence[str]
    env: Mapping[str, str]
    cwd: Path
    _forker: Forker | None = None

    def spawn(self, output: IO[bytes]) -> subprocess.Popen[bytes]:
        """Starts the prefork server. It dies with the calling thread, and its programs die with it."""
        self._forker = Forker.spawn(self.libraries, env=self.env, cwd=self.cwd, log=output)
        assert self._forker.process
        return self._forker.process

    def is_ready(self) -> bool:
        """Returns whether programs can be forked."""
        try:
            return self._forker is not None and self._forker.is_ready()
        except OSError:
            return False

    def program(self, argv: Sequence[str], **env: str) -> Spawn:
        """Returns a function that starts `python -m argv` in its own process group. env: added to the server's."""

        def spawn(output: IO[bytes]) -> Forked:
            if self._forker is None:
                raise OSError("the prefork server is not running")
            return self._forker.start(argv, env={**self.env, **env}, log=Path(output.name), dies=signal.SIGTERM)

        return spawn
