"""Reads the stored copies of the upstream's model lists, and has stale copies refreshed by a worker."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from api.http import offload
from api.waiting import notify_queue
from models.database import db
from models.keys import model_lists
from models.keys.keys import Key

# How long a request waits for a refresh.
MAX_WAIT_S = 2.0
# Minimum time between a failed refresh and the next one.
RETRY_S = 10.0
# A waiting request reads the row at a growing interval, and publishes again because wake-ups may be lost.
POLL_S, MAX_POLL_S, PUBLISH_AGAIN_S = 0.02, 0.2, 0.5


@dataclass(frozen=True)
class Copies:
    """The copies of one pool and account. rows: those of model_lists.states_of."""

    rows: Sequence[Any]
    account: str

    @property
    def with_body(self) -> list[Any]:
        """The rows that hold a list."""
        return [row for row in self.rows if row.has_body]

    @property
    def age_s(self) -> float:
        """Age of the oldest copy; 0 without any."""
        return max((row.age_s for row in self.with_body), default=0.0)

    def due(self, age_s: float) -> list[int]:
        """Returns the credentials whose copy is older than this or missing, and whose last refresh did not fail just now."""
        return [
            row.credential_id for row in self.rows
            if not row.is_paused and (row.age_s is None or row.age_s > age_s)
            and not (row.refusal and row.tried_s is not None and row.tried_s < RETRY_S)
        ]  # fmt: skip

    def is_pending(self, credential_ids: Sequence[int]) -> bool:
        """Whether the refresh of one of these credentials has not ended."""
        return any(row.is_wanted for row in self.rows if row.credential_id in credential_ids)

    def bodies(self) -> list[bytes]:
        """Reads the lists."""
        with db.autocommit() as session:
            return model_lists.bodies_of(session, [row.credential_id for row in self.with_body], account=self.account)

    def find_model(self, name: str) -> bytes | None:
        """Returns the upstream's JSON of this model; None when no list has it."""
        for body in self.bodies():
            if (model := offload.run(len(body), partial(_find_in, body, name))) is not None:
                return model
        return None


def read(caller: Key, account: str) -> Copies:
    """Reads the state of the copies without their bodies."""
    with db.autocommit() as session:
        return Copies(model_lists.states_of(session, caller.pool_id, account=account), account)


def refreshed(caller: Key, account: str, age_s: float, *, waits: Callable[[Copies], bool]) -> Copies:
    """Returns the copies after requesting a refresh of those older than age_s. waits: whether this request waits for it."""
    copies = read(caller, account)
    if not (due := copies.due(age_s)):
        return copies
    with db.begin() as session:
        model_lists.request_refresh(session, due, account=account)
    notify_queue.refresh_model_lists()
    if not waits(copies):
        return copies
    now = time.monotonic()
    until, publish_at, pause_s = now + MAX_WAIT_S, now + PUBLISH_AGAIN_S, POLL_S
    while (now := time.monotonic()) < until:
        time.sleep(min(pause_s, until - now))
        copies, pause_s = read(caller, account), min(pause_s * 1.5, MAX_POLL_S)
        if not copies.is_pending(due):
            break
        if now >= publish_at:
            notify_queue.refresh_model_lists()
            publish_at = now + PUBLISH_AGAIN_S
    return copies


def union(bodies: Sequence[bytes]) -> bytes:
    """Merges lists of models; the first of those with the same id wins."""
    models: dict[str, bytes] = {}
    for body in bodies:
        for name, raw in model_lists.parse_entries(body):
            models.setdefault(name, raw)
    return b'{"object":"list","data":[' + b",".join(models.values()) + b"]}"


def _find_in(body: bytes, name: str) -> bytes | None:
    return next((raw for entry, raw in model_lists.parse_entries(body) if entry == name), None)
