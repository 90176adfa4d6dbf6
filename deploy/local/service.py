"""What a part of the stack is, as data: how it starts, when it counts as ready, how it is asked to stop."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from models.platform.fork_server import Forked, Forker
from models.platform.parent_death import die_with_parent

Spawn = Callable[[IO[bytes]], "subprocess.Popen[bytes] | Forked"]


class PartFailed(Exception):
    """A part could not be started. The message names it, says how it ended and shows the end of its log."""


@dataclass(frozen=True)
class Part:
    """One part. `spawn` gets the log it is to write to.

    needs: the parts that must be ready before it starts; names of parts that there are not do not count. ready_after: parts without which
    it cannot be ready, so that it is not asked before they are. is_once: it has done its work when it exits with 0. is_slow_to_spawn:
    `spawn` itself takes a while, so it comes after the others that can start. is_late: the stack counts as ready without it.
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


def program(argv: Sequence[str], *, env: Mapping[str, str], cwd: Path | None = None) -> Spawn:
    """Starts this command in a process group of its own, so that a terminal's Ctrl-C reaches only the supervisor."""

    def spawn(output: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            argv, env=dict(env), cwd=cwd, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True, preexec_fn=die_with_parent,
        )  # fmt: skip

    return spawn


@dataclass
class Preloaded:
    """The prefork server as a part, and programs that are forked from it."""

    libraries: Sequence[str]
    env: Mapping[str, str]
    cwd: Path
    _forker: Forker | None = None

    def spawn(self, output: IO[bytes]) -> subprocess.Popen[bytes]:
        """Starts the prefork server. It dies with the calling thread, and its programs with it."""
        self._forker = Forker.spawn(self.libraries, env=self.env, cwd=self.cwd, log=output)
        assert self._forker.process
        return self._forker.process

    def is_ready(self) -> bool:
        try:
            return self._forker is not None and self._forker.is_ready()
        except OSError:
            return False

    def program(self, argv: Sequence[str], **env: str) -> Spawn:
        """Starts `python -m argv` in a process group of its own. env: on top of the server's."""

        def spawn(output: IO[bytes]) -> Forked:
            if self._forker is None:
                raise OSError("the prefork server does not run")
            return self._forker.start(argv, env={**self.env, **env}, log=Path(output.name), dies=signal.SIGTERM)

        return spawn
