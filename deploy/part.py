"""What a part of the stack is, as data: how it starts, when it counts as ready, how it is asked to stop."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from deploy.server import die_with_parent

Spawn = Callable[[IO[bytes]], "subprocess.Popen[bytes]"]


class PartFailed(Exception):
    """A part could not be started. The message names it, says how it ended and shows the end of its log."""


@dataclass(frozen=True)
class Part:
    """One part. `spawn` gets the log it is to write to.

    is_first: those after it need it, so they start when it is ready. is_once: it has done its work when it exits with 0.
    """

    name: str
    spawn: Spawn
    is_ready: Callable[[], bool] = lambda: True
    is_first: bool = False
    is_once: bool = False
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
