"""A program of a peer as a child process: its log kept, asked to end, killed when it does not."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from deploy.local.server_process import die_with_parent, last_lines

ROOT = Path(__file__).parents[2]
STOP_S = 10


def start(command: Sequence[str | Path], *, log: Path, environment: Mapping[str, str], folder: Path = ROOT) -> subprocess.Popen[bytes]:
    """Running; what it says goes to the end of `log`."""
    with log.open("ab") as shown:
        return subprocess.Popen(
            [str(word) for word in command], cwd=folder, env=dict(environment), stdout=shown, stderr=shown, preexec_fn=die_with_parent
        )


def wait_until(is_so: Callable[[], bool], process: subprocess.Popen[bytes], *, log: Path, within_s: float) -> None:
    """It is so. Raises RuntimeError with the end of the log when the process has ended before, or it is not in time."""
    until = time.monotonic() + within_s
    while not is_so():
        if process.poll() is not None or time.monotonic() > until:
            stop(process)
            raise RuntimeError(f"{log.stem} did not start. The end of its log:\n{last_lines(log)}")
        time.sleep(0.1)


def stop(process: subprocess.Popen[bytes] | None) -> None:
    """It has ended."""
    if process is None:
        return
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
