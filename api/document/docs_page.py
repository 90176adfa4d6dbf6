"""Serves the OpenAPI document at /openapi.json, and as an HTML page at /docs."""

from __future__ import annotations

from functools import cache

from flask import Blueprint, Response, render_template, request

from api.document import openapi
from api.http import render
from models.platform.wire import JsonObject

routes = Blueprint("docs", __name__)

# The page is self-contained: it runs no script and loads nothing.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


@routes.get("/openapi.json")
def document() -> Response:
    """Returns the OpenAPI document."""
    return render.json_response(openapi.document())


@routes.get("/docs")
def page() -> Response:
    """Returns the document as an HTML page."""
    response = Response(
        render_template("docs.html", document=openapi.document(), fields=_fields, schema_names=_schema_names, base=request.host_url),
        mimetype="text/html",
    )
    response.headers["Content-Security-Policy"] = POLICY
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


def _schema_names(schema: JsonObject) -> list[str]:
    """Returns the names of the schemas that this schema refers to by $ref, directly or as union members or items."""
    if "$ref" not in schema:
        return [name for part in schema.get("oneOf") or schema.get("allOf") or [] for name in _schema_names(part)]
    name = str(schema["$ref"]).rsplit("/", 1)[-1]
    return _schema_names(openapi.document()["components"]["schemas"][name]) or [name]


@cache
def _fields(name: str) -> list[JsonObject]:
    """Returns the fields of a schema for its table: name, type, required, description."""
    schema = openapi.document()["components"]["schemas"][name]
    required = schema.get("required", ())
    rows = schema.get("properties", {}).items()
    return [
        {"name": name, "kind": _kind(field), "required": name in required, "description": field.get("description", "")}
        for name, field in rows
    ]


def _kind(schema: JsonObject) -> str:
    """Returns a schema in a few words: `integer from 1 to 10`, `list of Message`, `string or null`."""
    if "$ref" in schema:
        return str(schema["$ref"]).rsplit("/", 1)[-1]
    if "anyOf" in schema:
        return " or ".join(_kind(option) for option in schema["anyOf"])
    if "const" in schema or "enum" in schema:
        return " | ".join(render.dump(value) for value in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"list of {_kind(schema['items'])}" if "items" in schema else "list"
    bounds = [f"{word} {schema[at]}" for at, word in (("minimum", "from"), ("maximum", "to"), ("maxLength", "at most")) if at in schema]
    return " ".join([kind if isinstance(kind, str) else " or ".join(kind), *bounds])
