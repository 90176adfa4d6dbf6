"""CPU seconds by part of the stack, children included, also those that have ended."""

from __future__ import annotations

from collections.abc import Mapping

import psutil


def spent_s(parts: Mapping[str, int]) -> dict[str, float]:
    """parts: name → process id of the part's first process."""
    return {name: _of_tree(psutil.Process(pid)) for name, pid in parts.items()}


def used_s(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """What each part used in between."""
    return {name: after[name] - before[name] for name in after}


def _of_tree(first: psutil.Process) -> float:
    total = 0.0
    for process in (first, *first.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue  # it has just ended, and its parent's figure has it
        # children_*: of those that have ended; the living ones are in the tree.
        total += times.user + times.system + getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
    return total
