"""The addresses of the legacy `/pro` API."""

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
        "properties": {name: {"type": "string", "minLength": 1, "maxLength": most} for name, most in LIMITS.items()},
    },
    "example": {"apiKey": "sk-…", "sessionId": "ana", "content": "你好"},
}
_KEY = query("apiKey", "Or as a Bearer token.", type="string")

_route = partial(
    Route, answers={200: ("Done or refused: `code` says which.", JSON, answers.Pro)}, tag="legacy", headers=("Deprecation", "Link"),
    needs_key=False, refusals=(),
)  # fmt: skip

ROUTES: tuple[Route, ...] = (
    _route("post", "/pro/chat/completions", "proAsk", "Ask in a session (deprecated)", takes={JSON: _ASK}),
    _route("get", "/pro/chat/completions/{id}", "proFetch", "Fetch a late answer (deprecated)", parameters=(_KEY,)),
    _route("get", "/pro/balance", "proBalance", "What a key was given, spent and has left (deprecated)", parameters=(_KEY,)),
)
