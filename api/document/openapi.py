"""The API as one OpenAPI 3.1 document, made from the models that the views use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from http import HTTPStatus

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from api.billing import responses as billing_responses
from api.document.routes import ROUTES
from api.openapi import links
from api.openapi.route import JSON, STREAM, Route
from api.ops import responses as ops_responses
from api.ops import schemas as ops_schemas
from api.sessions import responses as session_responses
from api.sessions import schemas as session_schemas
from api.stored import responses as stored_responses
from api.stored import schemas as stored_schemas
from api.submit import openai_requests, schemas
from api.submit import responses as answers
from api.webhooks import responses as webhook_responses
from api.webhooks import schemas as webhook_schemas
from models.platform.wire import JsonObject

TITLE = "nowserving"
VERSION = "1"
SUMMARY = "A queue in front of the OpenAI API: take a number, everyone is served."
REFUSALS: Mapping[int | str, str] = {
    "default": "What the upstream refused: its own status and error, byte for byte.",
    400: "The request cannot be understood; `param` names the field and `message` says what to do.",
    401: "No valid key was sent.",
    403: "This operator's token may only look.",
    404: "There is no such thing here: unknown, malformed and other callers' ids look the same.",
    408: "The body did not arrive in time.",
    409: "The state of the job does not allow this; it was cancelled while its answer was waited for.",
    413: "The body is too large.",
    415: "The body is not UTF-8 JSON.",
    416: "The picture does not have the bytes that `Range` names; `Content-Range` says how many it has.",
    422: "This Idempotency-Key was used with another body.",
    429: "The line is full or longer than the job may wait, or too many of the key's connections wait: `Retry-After` says when to come "
    "back. Or the key has no money left.",
    502: "The upstream could not be reached, or its answer is lost or cannot be used, as often as it was tried.",
    504: "The request expired in line, or the upstream took longer than it may.",
    503: "The store cannot be reached; nothing was accepted.",
}
_ROOM = (
    ("limit", "How many {of} the line may let through in a minute, where that is known.", "integer"),
    ("remaining", "How many {of} of those are neither used nor waited for.", "integer"),
    ("reset", "When all of them are there again: 12ms, 1s, 6m0s.", "string"),
)
HEADERS: JsonObject = {
    "X-Request-Id": {"description": "Names this answer: give it to the operator.", "required": True, "schema": {"type": "string"}},
    "Location": {"description": "Where the job is.", "schema": {"type": "string"}},
    "Idempotent-Replayed": {"description": "true: this job was made earlier with the same Idempotency-Key.", "schema": {"type": "string"}},
    "X-Nowserving-Job-Id": {"description": "The job behind this answer.", "schema": {"type": "string"}},
    "X-Nowserving-Waited-Ms": {"description": "How long it stood in line.", "schema": {"type": "integer"}},
    "Age": {"description": "Seconds since the upstream gave this list.", "schema": {"type": "integer"}},
    "X-Nowserving-Refresh-Error": {
        "description": "Status and code of the last refresh, where the upstream refused it; the list is the last good one.",
        "schema": {"type": "string"},
    },
    "X-Nowserving-Resumed": {"description": "true: an SDK's own retry found the job of its first try.", "schema": {"type": "string"}},
    "X-Nowserving-Content-Type": {"description": "What the upstream called these bytes.", "schema": {"type": "string"}},
    "openai-processing-ms": {"description": "How long the upstream took.", "schema": {"type": "integer"}},
    "Preference-Applied": {"description": "What of `Prefer` was followed.", "schema": {"type": "string"}},
    **{
        f"x-ratelimit-{name}-{of}": {"description": said.format(of=of), "schema": {"type": kind}}
        for of in ("requests", "tokens")
        for name, said, kind in _ROOM
    },
    "Deprecation": {"description": "Since when (RFC 9745).", "schema": {"type": "string"}},
    "Link": {"description": "What to use instead.", "schema": {"type": "string"}},
    "ETag": {"description": "Send it as If-None-Match.", "schema": {"type": "string"}},
    "Accept-Ranges": {"description": "bytes: a part can be asked for.", "schema": {"type": "string"}},
    "Content-Range": {"description": "Which of the bytes these are, and how many there are.", "schema": {"type": "string"}},
    "Content-Disposition": {"description": "Its name as a file; `attachment`: browsers save it.", "schema": {"type": "string"}},
    "Retry-After": {"description": "Seconds until it is worth coming back.", "schema": {"type": "integer"}},
    "retry-after-ms": {"description": "The same in milliseconds.", "schema": {"type": "integer"}},
    "x-should-retry": {"description": "false: coming back with the same request is of no use.", "schema": {"type": "string"}},
}
# OpenAPI 3.1 has no word for the items of a stream: as most tools read it, this describes each event.
_EVENT: JsonObject = {
    "type": "object",
    "properties": {"id": {"type": "string"}, "event": {"type": "string"}, "data": {"type": "string"}},
}
_SHOWN: tuple[type[BaseModel], ...] = (
    *schemas.SUBMITS.values(), openai_requests.EditBody, schemas.Inside,
    answers.Job, answers.JobList, answers.Event, answers.QueueEvent, answers.Error, answers.Health, answers.Pro,
    webhook_schemas.NewWebhookEndpoint, webhook_schemas.WebhookEndpointChange, webhook_schemas.Rotation, webhook_schemas.Sample,
    webhook_schemas.Redelivery, webhook_responses.WebhookEndpoint, webhook_responses.WebhookEndpointList,
    webhook_responses.WebhookEndpointDeleted, webhook_responses.WebhookTest, webhook_responses.EventTypes, webhook_responses.WebhookSecret,
    webhook_responses.Delivery, webhook_responses.DeliveryList, webhook_responses.Redelivered,
    billing_responses.Balance, billing_responses.UsageList, billing_responses.Subscription, billing_responses.BillingUsage,
    billing_responses.CreditSummary,
    stored_schemas.CompletionChange, stored_responses.StoredCompletion, stored_responses.StoredCompletionList,
    stored_responses.StoredMessage,
    stored_responses.StoredMessageList, stored_responses.StoredCompletionDeleted,
    session_schemas.NewSession, session_schemas.SessionChange, session_responses.Session, session_responses.SessionList,
    session_responses.SessionDeleted, session_responses.TurnDeleted, session_responses.SessionMessageList, session_responses.AttachmentList,
    *ops_schemas.SHOWN,
    *ops_responses.LISTS,
)  # fmt: skip


@cache
def document() -> JsonObject:
    """The whole document."""
    _, made = models_json_schema([(model, "validation") for model in _SHOWN], ref_template="#/components/schemas/{model}")
    mapping = {endpoint: _ref(kind)["$ref"] for endpoint, kind in schemas.SUBMITS.items()}
    submits = [_ref(kind) for kind in schemas.SUBMITS.values()]
    submit = {"oneOf": submits, "discriminator": {"propertyName": "endpoint", "mapping": mapping}}
    paths: dict[str, JsonObject] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": TITLE, "version": VERSION, "summary": SUMMARY},
        "paths": paths,
        "components": {
            "schemas": {**made["$defs"], "Submit": submit},
            "headers": HEADERS,
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "Your OpenAI key, or one from the operator; `api-key` may carry it too.",
                },
                "operator": {"type": "http", "scheme": "bearer", "description": "An operator's token, never a caller's key."},
            },
        },
    }


def _operation(route: Route) -> JsonObject:
    made: JsonObject = {
        "operationId": route.name,
        "summary": route.summary,
        "tags": [route.tag],
        "parameters": [*map(_path_parameter, route.path_names), *route.parameters],
        "responses": {**{str(status): _answer(route, status) for status in route.answers}, **_refusals(route)},
        "security": [{route.scheme: []}] if route.needs_key else [],
    }
    if route.takes:
        made["requestBody"] = {"required": True, "content": dict(route.takes)}
    return made


def _answer(route: Route, status: int) -> JsonObject:
    said, media, model = route.answers[status]
    made: JsonObject = {"description": said, "headers": _headers("X-Request-Id", *route.headers)}
    if media:
        made["content"] = {media: {"schema": _content(route, media, model)}}
    if route.streams and status == HTTPStatus.OK:
        made["content"][STREAM] = {"schema": {**_EVENT, "description": route.streams}}
    if leads := links.of(route.name, status):
        made["links"] = leads
    return made


def _content(route: Route, media: str, model: type[BaseModel] | None) -> JsonObject:
    if media == STREAM:
        return {**_EVENT, "properties": {**_EVENT["properties"], "data": _data(route.events)}} if route.events else _EVENT
    return _ref(model) if model else {"type": "object" if media == JSON else "string"}


def _data(models: Sequence[type[BaseModel]]) -> JsonObject:
    return {"type": "string", "contentMediaType": JSON, "contentSchema": {"anyOf": [_ref(model) for model in models]}}


def _refusals(route: Route) -> JsonObject:
    headers = _headers("X-Request-Id", "Retry-After", "retry-after-ms", "x-should-retry")
    content = {"application/json": {"schema": _ref(answers.Error)}}
    # A token that is looked at may be one of too many wrong ones.
    statuses = dict.fromkeys([*route.refusals, *([429] if 401 in route.refusals else [])])
    return {str(status): {"description": REFUSALS[status], "headers": headers, "content": content} for status in statuses}


def _headers(*names: str) -> JsonObject:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _path_parameter(name: str) -> JsonObject:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _ref(model: type[BaseModel]) -> JsonObject:
    return {"$ref": f"#/components/schemas/{model.__name__}"}
