"""Descriptions of the webhook routes for the OpenAPI document: those of the OpenAI API, and our additions."""

from __future__ import annotations

from functools import partial

from api.openapi.route import JSON, PAGING, Route, json_body
from api.webhooks import responses as webhook_responses
from api.webhooks import schemas as webhook_schemas
from models.platform.wire import JsonObject

HOOK: JsonObject = {"name": "answers", "url": "https://example.com/hook", "event_types": ["job.succeeded", "job.failed"]}
REFUSALS = (400, 401, 404, 408, 413, 415, 503)

_route = partial(Route, tag="webhooks")


ROUTES: tuple[Route, ...] = (
    _route(
        "post", "/v1/webhook_endpoints", "createWebhookEndpoint", "Create a webhook endpoint",
        {200: ("The endpoint with its secret, which is not shown again.", JSON, webhook_responses.WebhookEndpoint)},
        body=json_body(webhook_schemas.NewWebhookEndpoint, example=HOOK), errors=REFUSALS,
    ),
    _route(
        "get", "/v1/webhook_endpoints", "listWebhookEndpoints", "List your webhook endpoints, newest first",
        {200: ("One page.", JSON, webhook_responses.WebhookEndpointList)}, parameters=PAGING,
    ),
    _route(
        "get", "/v1/webhook_endpoints/{id}", "getWebhookEndpoint", "Retrieve a webhook endpoint",
        {200: ("The endpoint, without its secret.", JSON, webhook_responses.WebhookEndpoint)},
    ),
    _route(
        "post", "/v1/webhook_endpoints/{id}", "updateWebhookEndpoint", "Change a webhook endpoint, or enable it again",
        {200: ("The changed endpoint.", JSON, webhook_responses.WebhookEndpoint)},
        body=json_body(webhook_schemas.WebhookEndpointChange, example={"enabled": True}), errors=REFUSALS,
    ),
    _route(
        "delete", "/v1/webhook_endpoints/{id}", "deleteWebhookEndpoint", "Delete a webhook endpoint",
        {200: ("Deleted; no more deliveries are sent to it.", JSON, webhook_responses.WebhookEndpointDeleted)},
    ),
    _route(
        "post", "/v1/webhook_endpoints/{id}/rotate_secret", "rotateWebhookSecret", "Replace a signing secret",
        {200: ("The endpoint with its new secret, which is not shown again.", JSON, webhook_responses.WebhookEndpoint)},
        body=json_body(webhook_schemas.Rotation), errors=REFUSALS,
    ),
    _route(
        "post", "/v1/webhook_endpoints/{id}/test", "testWebhookEndpoint", "Send a sample event",
        {200: ("The receiver's response.", JSON, webhook_responses.WebhookTest)},
        body=json_body(webhook_schemas.Sample, example={"event_type": "job.succeeded"}), errors=(*REFUSALS, 502),
    ),
    _route(
        "get", "/v1/webhook_endpoints/{id}/deliveries", "listDeliveries", "List an endpoint's deliveries, newest first",
        {200: ("One page.", JSON, webhook_responses.DeliveryList)}, parameters=PAGING,
    ),
    _route(
        "post", "/v1/webhook_endpoints/{id}/deliveries/{delivery}/redeliver", "redeliver", "Send a delivery again",
        {202: ("The delivery is due now.", JSON, webhook_responses.Delivery)}, errors=(400, 401, 404, 409, 503),
    ),
    _route(
        "post", "/v1/webhook_endpoints/{id}/redeliver", "redeliverSince", "Send deliveries that failed since a time again",
        {202: ("The deliveries are due now.", JSON, webhook_responses.Redelivered)},
        body=json_body(webhook_schemas.Redelivery, example={"since": 1764072000}), errors=(*REFUSALS, 409),
    ),
    _route(
        "get", "/v1/webhook_event_types", "listWebhookEventTypes", "List the event types",
        {200: ("The names of the event types.", JSON, webhook_responses.EventTypes)}, errors=(400, 401, 503),
    ),
    _route(
        "get", "/v1/webhook_secret", "getWebhookSecret", "Retrieve the secret that signs deliveries to your jobs' webhook_url",
        {200: ("The secret.", JSON, webhook_responses.WebhookSecret)}, errors=(400, 401, 503),
    ),
    _route(
        "post", "/v1/webhook_secret/rotate", "rotateDefaultWebhookSecret", "Replace that secret",
        {200: ("The new secret.", JSON, webhook_responses.WebhookSecret)}, body=json_body(webhook_schemas.Rotation),
        errors=(400, 401, 408, 413, 415, 503),
    ),
    _route(
        "get", "/v1/jobs/{id}/deliveries", "listJobDeliveries", "List the deliveries to a job's own webhook_url",
        {200: ("One page.", JSON, webhook_responses.DeliveryList)}, parameters=PAGING,
    ),
    _route(
        "post", "/v1/jobs/{id}/deliveries/{delivery}/redeliver", "redeliverOfJob", "Send a delivery of a job again",
        {202: ("The delivery is due now.", JSON, webhook_responses.Delivery)}, errors=(400, 401, 404, 409, 503),
    ),
)  # fmt: skip
