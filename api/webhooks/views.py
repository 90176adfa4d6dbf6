"""The webhook endpoint routes, as in the OpenAI API, and the routes of the secret for a job's own `webhook_url`."""

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
from models.webhooks import delivery_log, endpoints, sample_event, signing
from models.webhooks.outbox import EventType

routes = Blueprint("webhooks", __name__)

Body = TypeVar("Body", bound=BaseModel)
# How long a sample may wait for a sender, in addition to the receiver's timeout.
SEND_WAIT_S = 5.0
POLL_S = 0.1


class NotDelivered(ServingError):
    """The receiver could not be reached."""

    code = "webhook_not_delivered"
    type = "webhook_error"
    status = 502
    retryable = False


class NoSender(ServingError):
    """No worker has sent the sample yet. The operator has to start a worker that sends webhooks (NOWSERVING_WEBHOOK_THREADS)."""

    code = "webhook_not_sent"
    status = 503
    retryable = False


def read_body(kind: type[Body]) -> Body:
    """Parses the request body; a missing body counts as an empty object. Raises Invalid and its subclasses."""
    is_empty = not request.content_length and "Transfer-Encoding" not in request.headers
    return schemas.validate(kind, {} if is_empty else request_body.read_json(request))


@routes.post("/webhook_endpoints")
def create() -> Response:
    """Creates an endpoint. Only this response and that of a rotation contain the secret."""
    caller, body = auth.authenticate(request), read_body(NewWebhookEndpoint)
    with db.begin() as session:
        row, plain = endpoints.create(
            session,
            caller.id,
            name=body.name,
            url=body.url,
            event_types=body.event_types,
            include_result="result" in body.include,
        )
    return render.json_response(endpoints.to_json(row, plain_secret=plain))


@routes.get("/webhook_endpoints")
def list_endpoints() -> Response:
    """Lists this key's endpoints, newest first."""
    caller, limit, after = auth.authenticate(request), paging.parse_limit(), paging.parse_after(endpoints.parse_id)
    with db.begin() as session:
        rows = endpoints.list_endpoints(session, caller.id, limit=limit, after=after)
    return paging.list_response([endpoints.to_json(row) for row in rows[:limit]], has_more=len(rows) > limit)


@routes.get("/webhook_endpoints/<name>")
def get(name: str) -> Response:
    """Returns the endpoint."""
    caller, endpoint_id = auth.authenticate(request), endpoints.parse_id(name)
    with db.begin() as session:
        row = endpoints.get(session, caller.id, endpoint_id)
    return render.json_response(endpoints.to_json(row))


@routes.post("/webhook_endpoints/<name>")
def update(name: str) -> Response:
    """Changes the endpoint."""
    caller, endpoint_id, body = auth.authenticate(request), endpoints.parse_id(name), read_body(WebhookEndpointChange)
    with db.begin() as session:
        row = endpoints.update(
            session,
            caller.id,
            endpoint_id,
            name=body.name,
            url=body.url,
            event_types=body.event_types,
            include_result=None if body.include is None else "result" in body.include,
            is_enabled=body.enabled,
        )
    return render.json_response(endpoints.to_json(row))


@routes.delete("/webhook_endpoints/<name>")
def delete(name: str) -> Response:
    """Deletes the endpoint; nothing more is sent to it."""
    caller, endpoint_id = auth.authenticate(request), endpoints.parse_id(name)
    with db.begin() as session:
        endpoints.delete(session, caller.id, endpoint_id)
    return render.json_response({"id": ids.format_id(endpoints.PREFIX, endpoint_id), "object": "webhook_endpoint.deleted", "deleted": True})


@routes.post("/webhook_endpoints/<name>/rotate_secret")
def rotate_secret(name: str) -> Response:
    """Replaces the endpoint's secret."""
    caller, endpoint_id, body = auth.authenticate(request), endpoints.parse_id(name), read_body(Rotation)
    with db.begin() as session:
        row, plain = endpoints.rotate_secret(session, caller.id, endpoint_id, keep_old=body.keep_old_secret_active_for_24_hours)
    return render.json_response(endpoints.to_json(row, plain_secret=plain))


@routes.post("/webhook_endpoints/<name>/test")
def test(name: str) -> Response:
    """Sends a sample and returns the receiver's response. 502 when the receiver could not be reached."""
    caller, endpoint_id, body = auth.authenticate(request), endpoints.parse_id(name), read_body(Sample)
    with db.begin() as session:
        delivery = sample_event.send_test(session, caller.id, endpoint_id, body.event_type)
    notify_queue.deliveries_due([delivery.receiver])
    sent = _wait_until_sent(caller, delivery.id)
    if sent.http_status is None:
        raise NotDelivered(f"The receiver did not respond: {sent.error}. Correct that, or the endpoint's `url`, and test again.")
    return render.json_response(
        {
            "object": "webhook_endpoint.test",
            "webhook_endpoint_id": ids.format_id(endpoints.PREFIX, endpoint_id),
            "event_type": body.event_type,
            "status_code": sent.http_status,
            "success": True,
            "delivery_id": ids.format_id(delivery_log.PREFIX, delivery.id),
        }
    )


@routes.get("/webhook_event_types")
def list_event_types() -> Response:
    """Lists the event types that an endpoint can subscribe to."""
    auth.authenticate(request)
    return render.json_response({"object": "list", "data": list(EventType)})


@routes.get("/webhook_secret")
def get_default_secret() -> Response:
    """Returns the secret that signs deliveries to the `webhook_url` of this key's jobs; created on first use."""
    caller = auth.authenticate(request)
    with db.begin() as session:
        plain = signing.default_secret(session, caller.id)
    return _respond_secret(plain)


@routes.post("/webhook_secret/rotate")
def rotate_default_secret() -> Response:
    """Replaces that secret."""
    caller, body = auth.authenticate(request), read_body(Rotation)
    with db.begin() as session:
        plain = signing.rotate_default_secret(session, caller.id, keep_old=body.keep_old_secret_active_for_24_hours)
    return _respond_secret(plain)


def _respond_secret(plain: str) -> Response:
    return render.json_response({"object": "webhook_secret", "signing_secret": plain, "signing_secret_hint": signing.hint(plain)})


def _wait_until_sent(caller: Key, delivery_id: UUID) -> Any:
    """Returns the delivery once it is final. Raises NoSender when no worker sent it in time."""
    until = time.monotonic() + settings().webhook_timeout_s + SEND_WAIT_S
    while True:
        with db.begin() as session:
            row = delivery_log.find(session, caller.id, delivery_id)
        if row.is_over:
            return row
        if time.monotonic() > until:
            raise NoSender
        time.sleep(POLL_S)
