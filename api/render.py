"""Answers as JSON bytes, the same way everywhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from flask import Response

from models.view import JsonObject


def answer(value: object, status: int = 200, *, headers: Mapping[str, str] | None = None) -> Response:
    """This value as the answer. Results are nobody else's business: no cache keeps them."""
    made = Response(text(value) + "\n", status, mimetype="application/json")
    made.headers["Cache-Control"] = "no-store"
    made.headers["X-Content-Type-Options"] = "nosniff"
    made.headers.update(headers or {})
    return made


def text(value: object) -> str:
    """Compact JSON in ASCII: half a surrogate pair in an upstream's answer must not break ours."""
    return json.dumps(value, separators=(",", ":"))


def etag(job: JsonObject, *, now: float, fresh_s: float) -> str:
    """A weak validator of a job. Links carry a new signature each time: they count by the period in which they were made."""
    links = [{**one, "url": now // fresh_s} for one in job["artifacts"]]
    return hashlib.sha256(text({**job, "artifacts": links}).encode()).hexdigest()[:32]
