"""The document at /openapi.json, and the page that a person reads."""

from __future__ import annotations

from functools import cache

from flask import Blueprint, Response, render_template, request

from api.document import openapi
from api.http import render
from models.platform.wire import JsonObject

routes = Blueprint("docs", __name__)

# The page brings everything along: it runs nothing and fetches nothing.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


@routes.get("/openapi.json")
def document() -> Response:
    """The OpenAPI document."""
    return render.answer(openapi.document())


@routes.get("/docs")
def page() -> Response:
    """The document as a page."""
    made = Response(
        render_template("docs.html", document=openapi.document(), fields=_fields, shapes=_shapes, base=request.host_url),
        mimetype="text/html",
    )
    made.headers["Content-Security-Policy"] = POLICY
    made.headers["X-Content-Type-Options"] = "nosniff"
    return made


def _shapes(schema: JsonObject) -> list[str]:
    """The names of the schemas that this one is made of."""
    if "$ref" not in schema:
        return [name for one in schema.get("oneOf") or schema.get("allOf") or [] for name in _shapes(one)]
    name = str(schema["$ref"]).rsplit("/", 1)[-1]
    return _shapes(openapi.document()["components"]["schemas"][name]) or [name]


@cache
def _fields(name: str) -> list[JsonObject]:
    """The fields of one schema for its table: name, kind, whether it must be there, what it means."""
    schema = openapi.document()["components"]["schemas"][name]
    required = schema.get("required", ())
    rows = schema.get("properties", {}).items()
    return [{"name": at, "kind": _kind(one), "required": at in required, "said": one.get("description", "")} for at, one in rows]


def _kind(schema: JsonObject) -> str:
    """A schema in a few words: `integer, 1 to 10`, `list of Message`, `string or null`."""
    if "$ref" in schema:
        return str(schema["$ref"]).rsplit("/", 1)[-1]
    if "anyOf" in schema:
        return " or ".join(_kind(one) for one in schema["anyOf"])
    if "const" in schema or "enum" in schema:
        return " | ".join(render.text(one) for one in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"list of {_kind(schema['items'])}" if "items" in schema else "list"
    bounds = [f"{word} {schema[at]}" for at, word in (("minimum", "from"), ("maximum", "to"), ("maxLength", "at most")) if at in schema]
    return " ".join([kind if isinstance(kind, str) else " or ".join(kind), *bounds])
