"""Orphan reaper: ends the process groups of a supervisor that was killed.

It reads the existing groups from the supervisor's pipe ("+123 15": group 123, stopped by signal 15; "-123": the group
ended). End of file means that the supervisor is dead. PDEATHSIG reaches a supervisor's children; the reaper also reaches
their children, kills those that ignore the signal, and works on every Unix. Standard library only: it must stay small.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

GRACE_S = 5


def main() -> None:
    """Returns when the supervisor and its groups have ended."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    groups: dict[int, int] = {}
    for line in sys.stdin:
        group, _, stop_signal = line[1:].partition(" ")
        if line[0] == "+":
            groups[int(group)] = int(stop_signal)
        else:
            groups.pop(int(group), None)
    _end(groups)


def _end(groups: dict[int, int]) -> None:
    for group, stop_signal in groups.items():
        _signal(group, stop_signal)
    deadline = time.monotonic() + GRACE_S
    while any(_is_running(group) for group in groups) and time.monotonic() < deadline:
        time.sleep(0.05)
    for group in groups:
        _signal(group, signal.SIGKILL)


def _signal(group: int, number: int) -> bool:
    """Sends the signal; returns whether the group still exists."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
        return True
    return False


def _is_running(group: int) -> bool:
    """Returns whether the group has a running process. Many containers have no init that reaps: a group of zombies has ended."""
    processes = list(Path("/proc").glob("[0-9]*/stat"))
    return any(_is_in(group, stat) for stat in processes) if processes else _signal(group, 0)


def _is_in(group: int, stat: Path) -> bool:
    try:
        state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
    except (OSError, ValueError):
        return False
    return int(its_group) == group and state not in "ZX"


if __name__ == "__main__":
    main()
