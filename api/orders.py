"""From what a caller sent to an order for the line: who waits, what is reserved, which bytes go to the upstream."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from api import body, estimate, schemas
from models.key import Key
from models.line import Order
from models.settings import settings
from models.view import JsonObject

# Who waits when nobody is named: everything this key sends is one flow.
KEY_FLOW = "key"


def make(caller: Key, payload: JsonObject) -> Order:
    """The order in this payload. Raises Invalid."""
    wanted = schemas.parse(payload)
    inside = payload["body"]
    reserve = estimate.chat(inside) if wanted.endpoint == schemas.CHAT else estimate.images(inside)
    return Order(
        key=caller,
        endpoint=wanted.endpoint,
        model=wanted.body.model,
        request=body.dump(inside),
        flow=wanted.user or wanted.body.safety_identifier or wanted.body.user or wanted.conversation or KEY_FLOW,
        tokens=reserve.tokens,
        images=reserve.images,
        priority=wanted.priority,
        conversation=wanted.conversation,
        expires_in_s=wanted.expires_in_s or settings().default_expires_in_s,
        timeout_s=wanted.timeout_s or settings().default_timeout_s,
        on_lost=wanted.on_lost,
        max_attempts=wanted.max_attempts or settings().max_attempts,
        metadata=wanted.metadata or None,
    )


def again(caller: Key, ended: Any, *, retry_of: UUID) -> Order:
    """The same order once more, with its whole time to wait. ended: a row of view.find_order."""
    return Order(
        key=caller,
        endpoint=ended.endpoint,
        model=ended.model,
        request=bytes(ended.request),
        flow=ended.flow,
        tokens=ended.tokens,
        images=ended.images,
        priority=ended.priority,
        conversation=ended.conversation,
        expires_in_s=ended.expires_in_s,
        timeout_s=ended.timeout_s,
        on_lost=ended.on_lost,
        max_attempts=ended.max_attempts,
        metadata=ended.metadata,
        retry_of=retry_of,
    )
