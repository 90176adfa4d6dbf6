"""Deficit round robin over lanes, by cost: many or large jobs of one lane do not crowd out the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class DeficitRoundRobin:
    """Keeps each lane's deficit, and the lane where the round stopped, from one step of the pacer to the next."""

    def __init__(self) -> None:
        self._deficit: dict[int, float] = {}
        self._last_lane: int = -1
        self._is_cut_short = False

    def pick(self, queues: Mapping[int, Sequence[Any]], *, slots: int) -> dict[int, int]:
        """Returns how many jobs from the head of each lane get a slot. queues: lane → its first jobs in order, each with a cost.

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
        self._deficit = {lane: deficit for lane, deficit in self._deficit.items() if lane in queues}
        return taken

    def _serve(self, lane: int, queue: Sequence[Any], taken: dict[int, int], *, quantum: float, slots: int) -> int:
        """Takes jobs of one lane up to its deficit; returns the slots left."""
        if not (self._is_cut_short and lane == self._last_lane):
            self._deficit[lane] = self._deficit.get(lane, 0.0) + quantum
        self._last_lane, self._is_cut_short = lane, False
        while taken[lane] < len(queue) and queue[taken[lane]].cost <= self._deficit.get(lane, 0.0):
            if slots == 0:
                self._is_cut_short = True
                break
            self._deficit[lane] -= queue[taken[lane]].cost
            taken[lane] += 1
            slots -= 1
        return slots

    def _in_turn(self, queues: Mapping[int, Sequence[Any]]) -> list[int]:
        """The lane ids in round order. A turn that ran out of slots continues; otherwise the next lane begins."""
        first = self._last_lane if self._is_cut_short else self._last_lane + 1
        return sorted(lane for lane in queues if lane >= first) + sorted(lane for lane in queues if lane < first)
