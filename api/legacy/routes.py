"""Descriptions of the legacy `/pro` routes for the OpenAPI document."""

from __future__ import annotations

from functools import partial

from api.legacy.pro import LIMITS
from api.openapi.route import JSON, Route, query
from api.submit import responses as answers
from models.platform.wire import JsonObject

_ASK: JsonObject = {
    "schema": {
        "type": "object",
        "required": list(LIMITS),
        "properties": {name: {"type": "string", "minLength": 1, "maxLength": limit} for name, limit in LIMITS.items()},
    },
    "example": {"apiKey": "sk-…", "sessionId": "ana", "content": "你好"},
}
_KEY = query("apiKey", "The key; alternatively sent as a Bearer token.", type="string")

_route = partial(
    Route, responses={200: ("Success or error, as `code` says.", JSON, answers.Pro)}, tag="legacy", headers=("Deprecation", "Link"),
    needs_key=False, errors=(),
)  # fmt: skip

ROUTES: tuple[Route, ...] = (
    _route("post", "/pro/chat/completions", "proAsk", "Ask in a session (deprecated)", body={JSON: _ASK}),
    _route("get", "/pro/chat/completions/{id}", "proFetch", "Fetch a late answer (deprecated)", parameters=(_KEY,)),
    _route("get", "/pro/balance", "proBalance", "Retrieve a key's grants, spending and balance (deprecated)", parameters=(_KEY,)),
)
