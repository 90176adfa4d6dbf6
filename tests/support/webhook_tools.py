"""Short ways to make webhook endpoints, to let things happen to jobs, and to move deliveries on, for tests of the sending half."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from models.database import db
from models.jobs import webhook_payload
from models.keys.keys import Key
from models.webhooks import deliveries as delivery
from models.webhooks import dispatch, endpoints
from models.webhooks.deliveries import AttemptResult, ClaimedDelivery, FinishedAttempt
from tests.support.queue_tools import query

ENDED = ["job.succeeded", "job.failed", "job.cancelled", "job.expired"]
ARRIVED = AttemptResult(has_arrived=True, duration_ms=12, http_status=200, answer=b"ok")
REFUSED = AttemptResult(has_arrived=False, duration_ms=12, http_status=500, answer=b"no", error="HTTP 500")


def endpoint(caller: Key, url: str = "https://example.com/hook", *, kinds: Sequence[str] = ENDED, **more: Any) -> Any:
    """A new endpoint's row."""
    return endpoint_and_secret(caller, url, kinds=kinds, **more)[0]


def endpoint_and_secret(
    caller: Key, url: str = "https://example.com/hook", *, kinds: Sequence[str] = ENDED, **more: Any
) -> tuple[Any, str]:
    """A new endpoint's row, and its secret."""
    with db.begin() as session:
        return endpoints.create(session, caller.id, name="mine", url=url, event_types=kinds, **more)


def deliveries() -> Sequence[Any]:
    """All there are, oldest first."""
    return query("SELECT * FROM delivery ORDER BY id")


def payloads() -> list[Any]:
    """What they will say."""
    return [json.loads(bytes(row.payload)) for row in deliveries()]


def pick(receivers: Sequence[str] | None = None, *, per_receiver: int = 4, per_host: int = 16, most: int = 100) -> list[Any]:
    """What is rung for now."""
    with db.begin() as session:
        return list(dispatch.take_due(session, receivers=receivers, per_receiver=per_receiver, per_host=per_host, most=most))


def claim(picked: Any, *, lease_s: float = 30) -> ClaimedDelivery | None:
    """What the sender gets for this doorbell."""
    with db.begin() as session:
        return delivery.claim(session, picked.id, picked.ticket, lease_s=lease_s, render=webhook_payload.render)


def claim_one() -> ClaimedDelivery:
    """The one delivery that is due, on its way."""
    (picked,) = pick()
    claimed = claim(picked)
    assert claimed is not None
    return claimed


def settle(one: ClaimedDelivery, attempt: AttemptResult = ARRIVED, **how: Any) -> FinishedAttempt | None:
    """What came of the attempt is on record."""
    with db.begin() as session:
        return delivery.finish(session, one.id, one.ticket, attempt, **how)


def put_right() -> int:
    """How many deliveries were put right."""
    with db.begin() as session:
        return dispatch.recover(session)


def make_due(delivery_id: UUID | None = None) -> None:
    """This one's time has come; None: everyone's."""
    query("UPDATE delivery SET next_at = now() - interval '1 s' WHERE CAST(:id AS uuid) IS NULL OR id = :id", id=delivery_id)
