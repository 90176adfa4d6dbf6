"""Answers as JSON bytes, the same way everywhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from flask import Response

from models.platform.wire import JsonObject


def json_response(value: object, status: int = 200, *, headers: Mapping[str, str] | None = None) -> Response:
    """This value as the answer. Results are nobody else's business: no cache keeps them."""
    made = Response(dump(value) + "\n", status, mimetype="application/json")
    made.headers["Cache-Control"] = "no-store"
    made.headers["X-Content-Type-Options"] = "nosniff"
    made.headers.update(headers or {})
    return made


def dump(value: object) -> str:
    """Compact JSON in ASCII: half a surrogate pair in an upstream's answer must not break ours."""
    return json.dumps(value, separators=(",", ":"))


def etag(shown: JsonObject) -> str:
    """A weak validator of what is shown."""
    return hashlib.sha256(dump(shown).encode()).hexdigest()[:32]
