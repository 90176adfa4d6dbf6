"""JSON responses."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from flask import Response

from models.platform.wire import JsonObject


def json_response(value: object, status: int = 200, *, headers: Mapping[str, str] | None = None) -> Response:
    """A response with this value. Results are private, so no cache may store them."""
    response = Response(dump(value) + "\n", status, mimetype="application/json")
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers.update(headers or {})
    return response


def dump(value: object) -> str:
    """Compact JSON in ASCII, because an upstream's response may hold half a surrogate pair."""
    return json.dumps(value, separators=(",", ":"))


def etag(value: JsonObject) -> str:
    """A weak validator of this value."""
    return hashlib.sha256(dump(value).encode()).hexdigest()[:32]
