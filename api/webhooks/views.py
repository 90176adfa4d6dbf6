"""Webhook endpoints of a key, as the OpenAI API has them; and the secret that signs what goes to a job's own `webhook_url`."""

from __future__ import annotations

import time
from typing import Any, TypeVar
from uuid import UUID

from flask import Blueprint, Response, request
from pydantic import BaseModel

from api.access import auth
from api.http import paging, render, request_body
from api.submit import schemas
from api.waiting import notify_queue
from api.webhooks.schemas import NewWebhookEndpoint, Rotation, Sample, WebhookEndpointChange
from models.config.settings import settings
from models.database import db
from models.keys.keys import Key
from models.platform import ids
from models.platform.errors import ServingError
from models.webhooks import delivery_log, endpoints, signing
from models.webhooks.outbox import EventType

routes = Blueprint("webhooks", __name__)

Body = TypeVar("Body", bound=BaseModel)
# How long a sample may wait for a sender, beside the time its receiver has to answer.
PICKED_UP_S = 5.0
LOOK_EVERY_S = 0.1


class NotDelivered(ServingError):
    """The receiver could not be reached."""

    code = "webhook_not_delivered"
    type = "webhook_error"
    status = 502
    retryable = False


class NoSender(ServingError):
    """The sample still waits to be sent. The operator has to start a worker that sends webhooks (NOWSERVING_WEBHOOK_THREADS)."""

    code = "webhook_not_sent"
    status = 503
    retryable = False


def said(kind: type[Body]) -> Body:
    """The body of this request; one that was left out says nothing. Raises Invalid and its kinds."""
    is_empty = not request.content_length and "Transfer-Encoding" not in request.headers
    return schemas.check(kind, {} if is_empty else request_body.read(request))


@routes.post("/webhook_endpoints")
def create() -> Response:
    """A new endpoint; the one answer, with that of a rotation, that holds its secret."""
    caller, wanted = auth.caller(request), said(NewWebhookEndpoint)
    with db.begin() as session:
        row, plain = endpoints.create(
            session,
            caller.id,
            name=wanted.name,
            url=wanted.url,
            event_types=wanted.event_types,
            include_result="result" in wanted.include,
        )
    return render.answer(endpoints.show(row, plain_secret=plain))


@routes.get("/webhook_endpoints")
def listing() -> Response:
    """One page of this key's endpoints, newest first."""
    caller, limit, after = auth.caller(request), paging.limit(), paging.after(endpoints.parse_id)
    with db.begin() as session:
        rows = endpoints.page(session, caller.id, limit=limit, after=after)
    return paging.answer([endpoints.show(row) for row in rows[:limit]], has_more=len(rows) > limit)


@routes.get("/webhook_endpoints/<name>")
def look(name: str) -> Response:
    """The endpoint as it is now."""
    caller, endpoint_id = auth.caller(request), endpoints.parse_id(name)
    with db.begin() as session:
        row = endpoints.get(session, caller.id, endpoint_id)
    return render.answer(endpoints.show(row))


@routes.post("/webhook_endpoints/<name>")
def update(name: str) -> Response:
    """The endpoint with these changes."""
    caller, endpoint_id, wanted = auth.caller(request), endpoints.parse_id(name), said(WebhookEndpointChange)
    with db.begin() as session:
        row = endpoints.update(
            session,
            caller.id,
            endpoint_id,
            name=wanted.name,
            url=wanted.url,
            event_types=wanted.event_types,
            include_result=None if wanted.include is None else "result" in wanted.include,
            is_enabled=wanted.enabled,
        )
    return render.answer(endpoints.show(row))


@routes.delete("/webhook_endpoints/<name>")
def delete(name: str) -> Response:
    """The endpoint is called no more."""
    caller, endpoint_id = auth.caller(request), endpoints.parse_id(name)
    with db.begin() as session:
        endpoints.delete(session, caller.id, endpoint_id)
    return render.answer({"id": ids.show(endpoints.PREFIX, endpoint_id), "object": "webhook_endpoint.deleted", "deleted": True})


@routes.post("/webhook_endpoints/<name>/rotate_secret")
def rotate_secret(name: str) -> Response:
    """The endpoint with a new secret."""
    caller, endpoint_id, wanted = auth.caller(request), endpoints.parse_id(name), said(Rotation)
    with db.begin() as session:
        row, plain = endpoints.rotate_secret(session, caller.id, endpoint_id, keep_old=wanted.keep_old_secret_active_for_24_hours)
    return render.answer(endpoints.show(row, plain_secret=plain))


@routes.post("/webhook_endpoints/<name>/test")
def test(name: str) -> Response:
    """What the receiver answers to a sample. 502 when it could not be reached."""
    caller, endpoint_id, wanted = auth.caller(request), endpoints.parse_id(name), said(Sample)
    with db.begin() as session:
        made = endpoints.test(session, caller.id, endpoint_id, wanted.event_type)
    notify_queue.deliveries_due([made.receiver])
    sent = _once_sent(caller, made.id)
    if sent.http_status is None:
        raise NotDelivered(f"No answer came from the receiver: {sent.error}. Correct that, or the endpoint's `url`, and test again.")
    return render.answer(
        {
            "object": "webhook_endpoint.test",
            "webhook_endpoint_id": ids.show(endpoints.PREFIX, endpoint_id),
            "event_type": wanted.event_type,
            "status_code": sent.http_status,
            "success": True,
            "delivery_id": ids.show(delivery_log.PREFIX, made.id),
        }
    )


@routes.get("/webhook_event_types")
def event_types() -> Response:
    """What an endpoint can ask to be told of."""
    auth.caller(request)
    return render.answer({"object": "list", "data": list(EventType)})


@routes.get("/webhook_secret")
def secret() -> Response:
    """What signs deliveries to the `webhook_url` of this key's jobs; made when it is first asked for."""
    caller = auth.caller(request)
    with db.begin() as session:
        plain = signing.default(session, caller.id)
    return _secret(plain)


@routes.post("/webhook_secret/rotate")
def rotate_default() -> Response:
    """A new one in its place."""
    caller, wanted = auth.caller(request), said(Rotation)
    with db.begin() as session:
        plain = signing.rotate_default(session, caller.id, keep_old=wanted.keep_old_secret_active_for_24_hours)
    return _secret(plain)


def _secret(plain: str) -> Response:
    return render.answer({"object": "webhook_secret", "signing_secret": plain, "signing_secret_hint": signing.hint(plain)})


def _once_sent(caller: Key, delivery_id: UUID) -> Any:
    """The delivery when nothing more happens to it. Raises NoSender when nobody took it in time."""
    until = time.monotonic() + settings().webhook_timeout_s + PICKED_UP_S
    while True:
        with db.begin() as session:
            row = delivery_log.find(session, caller.id, delivery_id)
        if row.is_over:
            return row
        if time.monotonic() > until:
            raise NoSender
        time.sleep(LOOK_EVERY_S)
