"""The queue of notifications: it keeps their order, coalesces enqueued jobs, and goes on after a failure."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest

from api.waiting.notify_queue import NotifyQueue
from workers.channels import notify

FIRST, SECOND, THIRD = (uuid4() for _ in range(3))
Published = list[Any]


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Published:
    messages: Published = []
    monkeypatch.setattr(notify, "jobs_enqueued", lambda jobs: messages.append({lane: list(ids) for lane, ids in jobs.items()}))
    return messages


def publish(*notifications: tuple[int, UUID] | Callable[[], None]) -> None:
    """Puts all notifications while the queue still publishes an earlier one, and waits until it is empty."""
    queue, is_busy, may_go = NotifyQueue(), threading.Event(), threading.Event()
    queue.put(lambda: (is_busy.set(), may_go.wait(30)))
    assert is_busy.wait(30)
    for item in notifications:
        queue.put_enqueued(*item) if isinstance(item, tuple) else queue.put(item)
    may_go.set()
    queue.flush(within_s=30)


def test_consecutive_enqueued_jobs_share_one_message(published: Published) -> None:
    publish((1, FIRST), (2, SECOND), (1, THIRD))

    assert [{1: [FIRST, THIRD], 2: [SECOND]}] == published


def test_notifications_keep_their_order(published: Published) -> None:
    publish((1, FIRST), lambda: published.append("cancelled"), (1, SECOND))

    assert [{1: [FIRST]}, "cancelled", {1: [SECOND]}] == published


def test_a_failed_notification_does_not_stop_the_next(published: Published) -> None:
    publish(lambda: 1 / 0, (1, FIRST))

    assert [{1: [FIRST]}] == published
