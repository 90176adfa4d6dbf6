"""Pages of other origins may call us from a browser: preflights are answered without a key, and every answer says who may read it.

No credentials are ever allowed: a caller's key is in a header that its own page sets. NOWSERVING_CORS_ORIGINS names the origins. While
keys are open on loopback and it is not set, origins on this machine and our own are the only ones, and a request with any other Origin is
refused: a page elsewhere can send a POST without a preflight, and has only no right to read the answer.
"""

from __future__ import annotations

import logging
from urllib.parse import urlsplit

from flask import Flask, Response, request

from api.http import errors
from models.access import host_names
from models.config.settings import settings
from models.platform.errors import OriginNotAllowed

log = logging.getLogger(__name__)

ANY = "*"
METHODS = "GET, POST, PATCH, DELETE, OPTIONS"
PREFLIGHT_KEPT_S = 86_400
LOGGED_MOST_CHARS = 100
PORTS = {"http": "80", "https": "443"}
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
    app.before_request(_refuse)
    app.after_request(_allow)


def _refuse() -> Response | None:
    origin = request.headers.get("Origin")
    if origin is None or not _is_narrowed() or _is_near(origin):
        return None
    log.warning("request refused: a page of another origin sent it", extra={"origin": origin[:LOGGED_MOST_CHARS]})
    return errors.error_response(OriginNotAllowed())


def _is_narrowed() -> bool:
    return host_names.has_open_loopback() and "cors_origins" not in settings().model_fields_set


def _is_near(origin: str) -> bool:
    """Whether the page is on this machine, at a name that the operator has configured, or one of our own."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    name = (parts.hostname or "").removesuffix(".")
    if not name:
        return False  # `null`: a page in a sandbox, or a file
    return (
        host_names.is_loopback(name)
        or host_names.is_configured(name)
        or _place(parts.netloc, parts.scheme) == _place(request.environ.get("HTTP_HOST", ""), parts.scheme)
    )


def _place(netloc: str, scheme: str) -> str:
    """Host and port, without the port that the scheme has anyway."""
    return netloc.lower().removesuffix(f":{PORTS.get(scheme)}")


def _is_allowed(origin: str) -> bool:
    if _is_narrowed():
        return _is_near(origin)
    return ANY in settings().cors_origins or origin in settings().cors_origins


def _allow(made: Response) -> Response:
    origin = request.headers.get("Origin")
    # With `*` too: a picture that an <img> has fetched, without an origin, must not stand in for the one that the page's script fetches.
    made.vary.add("Origin")
    if origin is None or not _is_allowed(origin):
        return made
    made.headers["Access-Control-Allow-Origin"] = ANY if ANY in settings().cors_origins and not _is_narrowed() else origin
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
