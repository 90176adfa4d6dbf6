"""Builds the OpenAPI 3.1 document from the route descriptions and the models that the views use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from http import HTTPStatus

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from api.document.routes import ROUTES
from api.openapi import links
from api.openapi.route import JSON, STREAM, Route
from api.ops import schemas as ops_schemas
from api.sessions import schemas as session_schemas
from api.stored import schemas as stored_schemas
from api.submit import openai_requests, schemas
from api.submit.responses import Error
from api.webhooks import schemas as webhook_schemas
from models.platform.wire import JsonObject

TITLE = "nowserving"
VERSION = "1"
SUMMARY = "A queue in front of the OpenAI API: take a number, everyone is served."
ERRORS: Mapping[int | str, str] = {
    "default": "The upstream's refusal: its own status and error, byte for byte.",
    400: "The request is invalid; `param` names the field and `message` says what to do.",
    401: "No valid key was sent.",
    403: "This operator's token is read-only.",
    404: "Not found: unknown, malformed and other callers' ids look the same.",
    408: "The body did not arrive in time.",
    409: "The job's state does not allow this, or the job was cancelled while the request waited for it.",
    413: "The body is too large.",
    415: "The body is not UTF-8 JSON.",
    416: "The image does not have the bytes that `Range` names; `Content-Range` gives its size.",
    422: "This Idempotency-Key was used with another body.",
    429: "The queue is full or longer than the job may wait, or too many connections of the key wait: `Retry-After` says when to retry. "
    "Or the key's budget is used up.",
    502: "The upstream could not be reached, or its answer was lost or unusable at every try.",
    504: "The job expired in the queue, or the upstream exceeded the timeout.",
    503: "The database is unavailable; nothing was accepted.",
}
_RATE_LIMIT_HEADERS = (
    ("limit", "The limit of {of} per minute, where it is known.", "integer"),
    ("remaining", "The {of} that are neither used nor reserved by waiting jobs.", "integer"),
    ("reset", "Time until all of them are available again: 12ms, 1s, 6m0s.", "string"),
)
HEADERS: JsonObject = {
    "X-Request-Id": {"description": "Identifies this response: give it to the operator.", "required": True, "schema": {"type": "string"}},
    "Location": {"description": "The path of the job.", "schema": {"type": "string"}},
    "Idempotent-Replayed": {
        "description": "true: an earlier request with the same Idempotency-Key made this job.",
        "schema": {"type": "string"},
    },
    "X-Nowserving-Job-Id": {"description": "The job of this response.", "schema": {"type": "string"}},
    "X-Nowserving-Waited-Ms": {"description": "Milliseconds in the queue.", "schema": {"type": "integer"}},
    "Age": {"description": "Seconds since this list was read from the upstream.", "schema": {"type": "integer"}},
    "X-Nowserving-Refresh-Error": {
        "description": "Status and code of the last refresh, if the upstream refused it; the list is older then.",
        "schema": {"type": "string"},
    },
    "X-Nowserving-Resumed": {"description": "true: an SDK's retry found the job of its first try.", "schema": {"type": "string"}},
    "X-Nowserving-Content-Type": {"description": "The upstream's content type.", "schema": {"type": "string"}},
    "openai-processing-ms": {"description": "Milliseconds of the upstream call.", "schema": {"type": "integer"}},
    "Preference-Applied": {"description": "The preferences that were applied.", "schema": {"type": "string"}},
    **{
        f"x-ratelimit-{name}-{of}": {"description": text.format(of=of), "schema": {"type": kind}}
        for of in ("requests", "tokens")
        for name, text, kind in _RATE_LIMIT_HEADERS
    },
    "Deprecation": {"description": "The date of deprecation (RFC 9745).", "schema": {"type": "string"}},
    "Link": {"description": "The successor.", "schema": {"type": "string"}},
    "ETag": {"description": "Send it as If-None-Match.", "schema": {"type": "string"}},
    "Accept-Ranges": {"description": "bytes: ranges are supported.", "schema": {"type": "string"}},
    "Content-Range": {"description": "The range, and the total size.", "schema": {"type": "string"}},
    "Content-Disposition": {"description": "The file name; `attachment`: browsers save the file.", "schema": {"type": "string"}},
    "Retry-After": {"description": "Seconds until a retry is worthwhile.", "schema": {"type": "integer"}},
    "retry-after-ms": {"description": "The same in milliseconds.", "schema": {"type": "integer"}},
    "x-should-retry": {"description": "false: a retry of the same request is useless.", "schema": {"type": "string"}},
}
# OpenAPI 3.1 cannot describe the items of a stream: most tools take this schema for each event.
_EVENT: JsonObject = {
    "type": "object",
    "properties": {"id": {"type": "string"}, "event": {"type": "string"}, "data": {"type": "string"}},
}
_BODIES: tuple[type[BaseModel], ...] = (
    *schemas.SUBMITS.values(), openai_requests.EditBody, schemas.Inside, stored_schemas.CompletionChange,
    webhook_schemas.NewWebhookEndpoint, webhook_schemas.WebhookEndpointChange, webhook_schemas.Rotation, webhook_schemas.Sample,
    webhook_schemas.Redelivery, session_schemas.NewSession, session_schemas.SessionChange, *ops_schemas.BODIES,
)  # fmt: skip


def _models() -> list[type[BaseModel]]:
    """Returns the models of all bodies, responses and events."""
    responses = [model for route in ROUTES for _, _, model in route.responses.values() if model]
    events = [model for route in ROUTES for model in route.events]
    return list(dict.fromkeys([*_BODIES, *responses, *events, Error]))


@cache
def document() -> JsonObject:
    """Returns the whole document."""
    _, definitions = models_json_schema([(model, "validation") for model in _models()], ref_template="#/components/schemas/{model}")
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
            "schemas": {**definitions["$defs"], "Submit": submit},
            "headers": HEADERS,
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "Your OpenAI key, or a key from the operator; the `api-key` header works too.",
                },
                "operator": {"type": "http", "scheme": "bearer", "description": "An operator's token, never a caller's key."},
            },
        },
    }


def _operation(route: Route) -> JsonObject:
    operation: JsonObject = {
        "operationId": route.name,
        "summary": route.summary,
        "tags": [route.tag],
        "parameters": [*map(_path_parameter, route.path_names), *route.parameters],
        "responses": {**{str(status): _response(route, status) for status in route.responses}, **_errors(route)},
        "security": [{route.scheme: []}] if route.needs_key else [],
    }
    if route.body:
        operation["requestBody"] = {"required": True, "content": dict(route.body)}
    return operation


def _response(route: Route, status: int) -> JsonObject:
    description, media, model = route.responses[status]
    response: JsonObject = {"description": description, "headers": _headers("X-Request-Id", *route.headers)}
    if media:
        response["content"] = {media: {"schema": _content(route, media, model)}}
    if route.stream and status == HTTPStatus.OK:
        response["content"][STREAM] = {"schema": {**_EVENT, "description": route.stream}}
    if operations := links.of_operation(route.name, status):
        response["links"] = operations
    return response


def _content(route: Route, media: str, model: type[BaseModel] | None) -> JsonObject:
    if media == STREAM:
        return {**_EVENT, "properties": {**_EVENT["properties"], "data": _data(route.events)}} if route.events else _EVENT
    return _ref(model) if model else {"type": "object" if media == JSON else "string"}


def _data(models: Sequence[type[BaseModel]]) -> JsonObject:
    return {"type": "string", "contentMediaType": JSON, "contentSchema": {"anyOf": [_ref(model) for model in models]}}


def _errors(route: Route) -> JsonObject:
    headers = _headers("X-Request-Id", "Retry-After", "retry-after-ms", "x-should-retry")
    content = {"application/json": {"schema": _ref(Error)}}
    # Every route that checks a token limits wrong tokens.
    statuses = dict.fromkeys([*route.errors, *([429] if 401 in route.errors else [])])
    return {str(status): {"description": ERRORS[status], "headers": headers, "content": content} for status in statuses}


def _headers(*names: str) -> JsonObject:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _path_parameter(name: str) -> JsonObject:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _ref(model: type[BaseModel]) -> JsonObject:
    return {"$ref": f"#/components/schemas/{model.__name__}"}
