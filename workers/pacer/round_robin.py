"""Turns across lanes: deficit round robin by cost, so that one lane's many or large jobs do not crowd out the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class DeficitRoundRobin:
    """Remembers each lane's deficit, and where the round stopped, from one step of the pacer to the next."""

    def __init__(self) -> None:
        self._deficit: dict[int, float] = {}
        self._last: int = -1
        self._is_cut_short = False

    def pick(self, queues: Mapping[int, Sequence[Any]], *, slots: int) -> dict[int, int]:
        """How many jobs from the head of each lane get a slot now. queues: lane → its first jobs in order, each with a cost.

        The quantum is the largest cost at any head, so every lane with work gets at least one job a round.
        """
        taken = dict.fromkeys(queues, 0)
        waiting = [lane for lane in self._in_turn(queues) if queues[lane]]
        quantum = max((float(job.cost) for lane in waiting for job in queues[lane][:1]), default=1.0)
        while waiting and slots > 0:
            for lane in list(waiting):
                slots = self._serve(lane, queues[lane], taken, quantum=quantum, slots=slots)
                if taken[lane] == len(queues[lane]):
                    waiting.remove(lane)
                    self._deficit.pop(lane, None)
                if slots == 0:
                    break
        self._deficit = {lane: left for lane, left in self._deficit.items() if lane in queues}
        return taken

    def _serve(self, lane: int, queue: Sequence[Any], taken: dict[int, int], *, quantum: float, slots: int) -> int:
        if not (self._is_cut_short and lane == self._last):
            self._deficit[lane] = self._deficit.get(lane, 0.0) + quantum
        self._last, self._is_cut_short = lane, False
        while taken[lane] < len(queue) and queue[taken[lane]].cost <= self._deficit.get(lane, 0.0):
            if slots == 0:
                self._is_cut_short = True
                break
            self._deficit[lane] -= queue[taken[lane]].cost
            taken[lane] += 1
            slots -= 1
        return slots

    def _in_turn(self, queues: Mapping[int, Sequence[Any]]) -> list[int]:
        """The lane whose turn the slots cut short goes on with it; otherwise the next one is first."""
        first = self._last if self._is_cut_short else self._last + 1
        return sorted(lane for lane in queues if lane >= first) + sorted(lane for lane in queues if lane < first)
