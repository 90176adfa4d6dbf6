"""Wake-ups on their way out: in order, at once what belongs together, and none holds the next."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest

from api.waiting.notify_queue import Doorbell
from workers.channels import notify

FIRST, SECOND, THIRD = (uuid4() for _ in range(3))
Told = list[Any]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    said: Told = []
    monkeypatch.setattr(notify, "joined", lambda jobs: said.append({lane: list(ids) for lane, ids in jobs.items()}))
    return said


def ring_all(*rung: tuple[int, UUID] | Callable[[], None]) -> None:
    """All of these while the doorbell is still busy with an earlier one."""
    bell, is_begun, may_go = Doorbell(), threading.Event(), threading.Event()
    bell.ring(lambda: (is_begun.set(), may_go.wait(30)))
    assert is_begun.wait(30)
    for one in rung:
        bell.joined(*one) if isinstance(one, tuple) else bell.ring(one)
    may_go.set()
    bell.flush(within_s=30)


def test_jobs_that_joined_meanwhile_are_said_at_once(told: Told) -> None:
    ring_all((1, FIRST), (2, SECOND), (1, THIRD))

    assert [{1: [FIRST, THIRD], 2: [SECOND]}] == told


def test_what_came_in_between_is_said_in_between(told: Told) -> None:
    ring_all((1, FIRST), lambda: told.append("cancelled"), (1, SECOND))

    assert [{1: [FIRST]}, "cancelled", {1: [SECOND]}] == told


def test_one_that_fails_does_not_keep_the_next(told: Told) -> None:
    ring_all(lambda: 1 / 0, (1, FIRST))

    assert [{1: [FIRST]}] == told
