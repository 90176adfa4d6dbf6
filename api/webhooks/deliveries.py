"""Webhook deliveries: the log of an endpoint or of a job's own `webhook_url`, and redelivery."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from flask import Blueprint, Response, request

from api.access import auth
from api.http import paging, render
from api.waiting import notify_queue
from api.webhooks.schemas import Redelivery
from api.webhooks.views import read_body
from models.database import db
from models.keys.keys import Key
from models.platform import ids, wire
from models.webhooks import delivery_log, endpoints
from models.webhooks.delivery_log import DeliveryScope
from models.webhooks.endpoints import PREFIX

routes = Blueprint("deliveries", __name__)


@routes.get("/webhook_endpoints/<name>/deliveries")
def list_of_endpoint(name: str) -> Response:
    """Lists an endpoint's deliveries, newest first."""
    return _list(auth.authenticate(request), DeliveryScope(endpoint_id=endpoints.parse_id(name)))


@routes.get("/jobs/<name>/deliveries")
def list_of_job(name: str) -> Response:
    """Lists the deliveries to a job's own webhook_url, newest first."""
    return _list(auth.authenticate(request), DeliveryScope(job_id=wire.parse_id(name)))


@routes.post("/webhook_endpoints/<name>/deliveries/<delivery>/redeliver")
def redeliver_of_endpoint(name: str, delivery: str) -> Response:
    """Schedules the delivery again and returns 202."""
    return _redeliver(auth.authenticate(request), DeliveryScope(endpoint_id=endpoints.parse_id(name)), delivery)


@routes.post("/jobs/<name>/deliveries/<delivery>/redeliver")
def redeliver_of_job(name: str, delivery: str) -> Response:
    """Schedules the delivery again and returns 202."""
    return _redeliver(auth.authenticate(request), DeliveryScope(job_id=wire.parse_id(name)), delivery)


@routes.post("/webhook_endpoints/<name>/redeliver")
def redeliver_since(name: str) -> Response:
    """Schedules an endpoint's deliveries that failed since a time again and returns 202."""
    caller, endpoint_id, body = auth.authenticate(request), endpoints.parse_id(name), read_body(Redelivery)
    since = datetime.fromtimestamp(body.since, UTC)
    with db.begin() as session:
        count = delivery_log.redeliver_since(session, caller.id, endpoint_id, since=since, limit=delivery_log.MAX_REDELIVERIES)
    shown_id = ids.format_id(PREFIX, endpoint_id)
    notify_queue.deliveries_due([shown_id])
    return render.json_response(
        {
            "object": "webhook_endpoint.redelivery",
            "webhook_endpoint_id": shown_id,
            "since": body.since,
            "redelivered": count,
            "has_more": count == delivery_log.MAX_REDELIVERIES,
        },
        202,
    )


def _list(caller: Key, log: DeliveryScope) -> Response:
    limit, after = paging.parse_limit(), paging.parse_after(delivery_log.parse_id)
    with db.begin() as session:
        rows = delivery_log.list_deliveries(session, caller.id, log, limit=limit, after=after)
    return paging.list_response([delivery_log.to_json(row) for row in rows[:limit]], has_more=len(rows) > limit)


def _redeliver(caller: Key, log: DeliveryScope, name: str) -> Response:
    delivery_id = delivery_log.parse_id(name)
    with db.begin() as session:
        row: Any = delivery_log.redeliver(session, caller.id, log, delivery_id)
    notify_queue.deliveries_due([row.receiver])
    return render.json_response(delivery_log.to_json(row), 202)
