"""The addresses of webhooks: those of the OpenAI API, and what it lacks."""

from __future__ import annotations

from functools import partial

from pydantic import BaseModel

from api.openapi.route import JSON, Route, query
from api.webhooks import responses as webhook_responses
from api.webhooks import schemas as webhook_schemas
from models.platform.wire import JsonObject

HOOK: JsonObject = {"name": "answers", "url": "https://example.com/hook", "event_types": ["job.succeeded", "job.failed"]}
PAGING = (
    query("limit", "How many on a page.", type="integer", minimum=1, maximum=100, default=20),
    query("after", "The last id of the page before.", type="string"),
)
SAID = (400, 401, 404, 408, 413, 415, 503)

_route = partial(Route, tag="webhooks")


def _json(body: type[BaseModel], **more: object) -> dict[str, JsonObject]:
    return {JSON: {"schema": {"$ref": f"#/components/schemas/{body.__name__}"}, **more}}


ROUTES: tuple[Route, ...] = (
    _route(
        "post", "/v1/webhook_endpoints", "createWebhookEndpoint", "Make a webhook endpoint",
        {200: ("The endpoint, and its secret this once.", JSON, webhook_responses.WebhookEndpoint)},
        takes=_json(webhook_schemas.NewWebhookEndpoint, example=HOOK), refusals=SAID,
    ),
    _route(
        "get", "/v1/webhook_endpoints", "listWebhookEndpoints", "List your webhook endpoints, newest first",
        {200: ("One page.", JSON, webhook_responses.WebhookEndpointList)}, parameters=PAGING,
    ),
    _route(
        "get", "/v1/webhook_endpoints/{id}", "getWebhookEndpoint", "Look at a webhook endpoint",
        {200: ("The endpoint, without its secret.", JSON, webhook_responses.WebhookEndpoint)},
    ),
    _route(
        "post", "/v1/webhook_endpoints/{id}", "updateWebhookEndpoint", "Change a webhook endpoint, or enable it again",
        {200: ("The endpoint as it is now.", JSON, webhook_responses.WebhookEndpoint)},
        takes=_json(webhook_schemas.WebhookEndpointChange, example={"enabled": True}), refusals=SAID,
    ),
    _route(
        "delete", "/v1/webhook_endpoints/{id}", "deleteWebhookEndpoint", "Delete a webhook endpoint",
        {200: ("It is called no more.", JSON, webhook_responses.WebhookEndpointDeleted)},
    ),
    _route(
        "post", "/v1/webhook_endpoints/{id}/rotate_secret", "rotateWebhookSecret", "Replace a signing secret",
        {200: ("The endpoint, and its new secret this once.", JSON, webhook_responses.WebhookEndpoint)},
        takes=_json(webhook_schemas.Rotation), refusals=SAID,
    ),
    _route(
        "post", "/v1/webhook_endpoints/{id}/test", "testWebhookEndpoint", "Send a sample of an event",
        {200: ("What the receiver answered.", JSON, webhook_responses.WebhookTest)},
        takes=_json(webhook_schemas.Sample, example={"event_type": "job.succeeded"}), refusals=(*SAID, 502),
    ),
    _route(
        "get", "/v1/webhook_endpoints/{id}/deliveries", "listDeliveries", "What became of an endpoint's deliveries, newest first",
        {200: ("One page.", JSON, webhook_responses.DeliveryList)}, parameters=PAGING,
    ),
    _route(
        "post", "/v1/webhook_endpoints/{id}/deliveries/{delivery}/redeliver", "redeliver", "Send a delivery again",
        {202: ("It is due now.", JSON, webhook_responses.Delivery)}, refusals=(400, 401, 404, 409, 503),
    ),
    _route(
        "post", "/v1/webhook_endpoints/{id}/redeliver", "redeliverSince", "Send again what failed since a time",
        {202: ("They are due now.", JSON, webhook_responses.Redelivered)},
        takes=_json(webhook_schemas.Redelivery, example={"since": 1764072000}), refusals=(*SAID, 409),
    ),
    _route(
        "get", "/v1/webhook_event_types", "listWebhookEventTypes", "Which events there are",
        {200: ("Their names.", JSON, webhook_responses.EventTypes)}, refusals=(400, 401, 503),
    ),
    _route(
        "get", "/v1/webhook_secret", "getWebhookSecret", "What signs for the webhook_url of your jobs",
        {200: ("The secret.", JSON, webhook_responses.WebhookSecret)}, refusals=(400, 401, 503),
    ),
    _route(
        "post", "/v1/webhook_secret/rotate", "rotateDefaultWebhookSecret", "Replace that secret",
        {200: ("The new secret.", JSON, webhook_responses.WebhookSecret)}, takes=_json(webhook_schemas.Rotation),
        refusals=(400, 401, 408, 413, 415, 503),
    ),
    _route(
        "get", "/v1/jobs/{id}/deliveries", "listJobDeliveries", "What became of the deliveries to a job's own webhook_url",
        {200: ("One page.", JSON, webhook_responses.DeliveryList)}, parameters=PAGING,
    ),
    _route(
        "post", "/v1/jobs/{id}/deliveries/{delivery}/redeliver", "redeliverOfJob", "Send such a delivery again",
        {202: ("It is due now.", JSON, webhook_responses.Delivery)}, refusals=(400, 401, 404, 409, 503),
    ),
)  # fmt: skip
