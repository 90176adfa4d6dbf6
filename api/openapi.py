"""The API as one OpenAPI 3.1 document, made from the models that the views use."""

from __future__ import annotations

from functools import cache

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from api import answers, schemas
from api.routes import ROUTES, Route
from models.view import JsonObject

TITLE = "nowserving"
VERSION = "1"
SUMMARY = "A queue in front of the OpenAI API: take a number, everyone is served."
REFUSALS = {
    400: "The request cannot be understood; `param` names the field and `message` says what to do.",
    401: "No valid key was sent.",
    404: "There is no such thing here: unknown, malformed and other callers' ids look the same.",
    408: "The body did not arrive in time.",
    409: "The state of the job does not allow this.",
    413: "The body is too large.",
    415: "The body is not UTF-8 JSON.",
    422: "This Idempotency-Key was used with another body.",
    429: "The line is full, or longer than the job may wait. `Retry-After` says when to come back.",
    503: "The store cannot be reached; nothing was accepted.",
}
HEADERS: JsonObject = {
    "X-Request-Id": {"description": "Names this answer: give it to the operator.", "required": True, "schema": {"type": "string"}},
    "Location": {"description": "Where the job is.", "schema": {"type": "string"}},
    "Idempotent-Replayed": {"description": "true: this job was made earlier with the same Idempotency-Key.", "schema": {"type": "string"}},
    "ETag": {"description": "Send it as If-None-Match.", "schema": {"type": "string"}},
    "Retry-After": {"description": "Seconds until it is worth coming back.", "schema": {"type": "integer"}},
    "retry-after-ms": {"description": "The same in milliseconds.", "schema": {"type": "integer"}},
    "x-should-retry": {"description": "false: coming back with the same request is of no use.", "schema": {"type": "string"}},
}
_SHOWN: tuple[type[BaseModel], ...] = (
    schemas.ChatSubmit, schemas.ImageSubmit, answers.Job, answers.JobList, answers.Event, answers.QueueEvent, answers.Error, answers.Health,
)  # fmt: skip


@cache
def document() -> JsonObject:
    """The whole document."""
    _, made = models_json_schema([(model, "validation") for model in _SHOWN], ref_template="#/components/schemas/{model}")
    submits = [_ref(schemas.ChatSubmit), _ref(schemas.ImageSubmit)]
    mapping = {kind: one["$ref"] for kind, one in zip((schemas.CHAT, schemas.IMAGES), submits, strict=True)}
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
                "bearer": {"type": "http", "scheme": "bearer", "description": "Your OpenAI key, or one from the operator."}
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
        "security": [{"bearer": []}] if route.needs_key else [],
    }
    if route.takes_job:
        example = {"endpoint": schemas.CHAT, "body": {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]}}
        content = {"application/json": {"schema": {"$ref": "#/components/schemas/Submit"}, "example": example}}
        made["requestBody"] = {"required": True, "content": content}
    return made


def _answer(route: Route, status: int) -> JsonObject:
    said, media, model = route.answers[status]
    made: JsonObject = {"description": said, "headers": _headers("X-Request-Id", *route.headers)}
    if media:
        schema = _ref(model) if model else {"type": "string"}
        made["content"] = {media: {"schema": schema}}
    return made


def _refusals(route: Route) -> JsonObject:
    headers = _headers("X-Request-Id", "Retry-After", "retry-after-ms", "x-should-retry")
    content = {"application/json": {"schema": _ref(answers.Error)}}
    return {str(status): {"description": REFUSALS[status], "headers": headers, "content": content} for status in route.refusals}


def _headers(*names: str) -> JsonObject:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _path_parameter(name: str) -> JsonObject:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _ref(model: type[BaseModel]) -> JsonObject:
    return {"$ref": f"#/components/schemas/{model.__name__}"}
