"""Pages of other origins may call us from a browser: preflights are answered without a key, and every answer says who may read it.

No credentials are ever allowed: a caller's key is in a header that its own page sets. Narrowed by NOWSERVING_CORS_ORIGINS.
"""

from __future__ import annotations

from flask import Flask, Response, request

from models.settings import settings

ANY = "*"
METHODS = "GET, POST, PATCH, DELETE, OPTIONS"
PREFLIGHT_KEPT_S = 86_400
EXPOSED = ", ".join(
    (
        "Retry-After", "retry-after-ms", "x-should-retry", "X-Request-Id", "X-Client-Request-Id", "Location", "Preference-Applied",
        "Idempotent-Replayed", "ETag", "openai-processing-ms", "X-Nowserving-Job-Id", "X-Nowserving-Waited-Ms", "X-Nowserving-Resumed",
        "Age", "X-Nowserving-Refresh-Error",
        "X-Nowserving-Content-Type",
        *(f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")),
    )
)  # fmt: skip


def register(app: Flask) -> None:
    """Errors and streams carry the headers too. Preflights never reach a view: Flask answers OPTIONS of every address it knows."""
    app.after_request(_allow)


def _allow(made: Response) -> Response:
    origin = request.headers.get("Origin")
    allowed = settings().cors_origins
    # With `*` too: a picture that an <img> has fetched, without an origin, must not stand in for the one that the page's script fetches.
    made.vary.add("Origin")
    if origin is None or not (ANY in allowed or origin in allowed):
        return made
    made.headers["Access-Control-Allow-Origin"] = ANY if ANY in allowed else origin
    if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
        made.headers["Access-Control-Allow-Methods"] = METHODS
        made.headers["Access-Control-Max-Age"] = str(PREFLIGHT_KEPT_S)
        # SDKs in a browser send a dozen of their own: whatever is asked for is fine, for it is only headers.
        if wanted := request.headers.get("Access-Control-Request-Headers"):
            made.headers["Access-Control-Allow-Headers"] = wanted
            made.vary.add("Access-Control-Request-Headers")
    else:
        made.headers["Access-Control-Expose-Headers"] = EXPOSED
    return made
