"""The last to leave: ends the process groups of a supervisor that was killed and could not do it itself.

It reads from the supervisor's pipe which groups exist ("+123 15": group 123, to be asked with signal 15; "-123": it has
ended). The end of the pipe means that the supervisor is gone. PDEATHSIG reaches a supervisor's children; this reaches
their children too, insists when they do not listen, and works on every Unix. Standard library only: it must stay small.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

PATIENCE_S = 5


def main() -> None:
    """Returns when the supervisor is gone and so are its groups."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    groups: dict[int, int] = {}
    for line in sys.stdin:
        group, _, how = line[1:].partition(" ")
        if line[0] == "+":
            groups[int(group)] = int(how)
        else:
            groups.pop(int(group), None)
    _end(groups)


def _end(groups: dict[int, int]) -> None:
    for group, how in groups.items():
        _signal(group, how)
    deadline = time.monotonic() + PATIENCE_S
    while any(_lives(group) for group in groups) and time.monotonic() < deadline:
        time.sleep(0.05)
    for group in groups:
        _signal(group, signal.SIGKILL)


def _signal(group: int, how: int) -> bool:
    """Whether the group still exists."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, how)
        return True
    return False


def _lives(group: int) -> bool:
    """Whether anything in it still runs. In many containers nobody collects the dead: a group of zombies has ended."""
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
