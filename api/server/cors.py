"""CORS: which pages of other origins may call this server from a browser. Preflights need no key.

Credentials are never allowed: a page sends its key in a header. NOWSERVING_CORS_ORIGINS names the allowed origins. While keys are open on
loopback and the setting is not set, only origins on this machine and our own are allowed. A request with another Origin is then refused,
because a page can send a POST without a preflight: CORS would only stop it from reading the response.
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
PREFLIGHT_TTL_S = 86_400
MAX_LOGGED_CHARS = 100
PORTS = {"http": "80", "https": "443"}
EXPOSED = ", ".join(
    (
        "Retry-After", "retry-after-ms", "x-should-retry", "X-Request-Id", "X-Client-Request-Id", "Location", "Preference-Applied",
        "Idempotent-Replayed", "ETag", "openai-processing-ms", "X-Nowserving-Job-Id", "X-Nowserving-Waited-Ms", "X-Nowserving-Resumed",
        "Age", "X-Nowserving-Refresh-Error",
        "X-Nowserving-Content-Type",
        *(f"x-ratelimit-{figure}-{unit}" for figure in ("limit", "remaining", "reset") for unit in ("requests", "tokens")),
    )
)  # fmt: skip


def register(app: Flask) -> None:
    """Adds the headers to every response, also errors and streams. Flask answers preflights (OPTIONS) without a view."""
    app.before_request(_refuse)
    app.after_request(_add_headers)


def _refuse() -> Response | None:
    origin = request.headers.get("Origin")
    if origin is None or not _is_restricted() or _is_local(origin):
        return None
    log.warning("request refused: origin not allowed", extra={"origin": origin[:MAX_LOGGED_CHARS]})
    return errors.error_response(OriginNotAllowed())


def _is_restricted() -> bool:
    return host_names.has_open_loopback() and "cors_origins" not in settings().model_fields_set


def _is_local(origin: str) -> bool:
    """Whether the origin is on this machine, has a configured host name, or is our own."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    name = (parts.hostname or "").removesuffix(".")
    if not name:
        return False  # `null`: a sandboxed page or a local file
    return (
        host_names.is_loopback(name)
        or host_names.is_configured(name)
        or _authority(parts.netloc, parts.scheme) == _authority(request.environ.get("HTTP_HOST", ""), parts.scheme)
    )


def _authority(netloc: str, scheme: str) -> str:
    """Host and port, without the default port of the scheme."""
    return netloc.lower().removesuffix(f":{PORTS.get(scheme)}")


def _is_allowed(origin: str) -> bool:
    if _is_restricted():
        return _is_local(origin)
    return ANY in settings().cors_origins or origin in settings().cors_origins


def _add_headers(response: Response) -> Response:
    origin = request.headers.get("Origin")
    # Also with `*`: the cached response to an <img>, fetched without an Origin, must not answer the fetch of a script.
    response.vary.add("Origin")
    if origin is None or not _is_allowed(origin):
        return response
    response.headers["Access-Control-Allow-Origin"] = ANY if ANY in settings().cors_origins and not _is_restricted() else origin
    if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
        response.headers["Access-Control-Allow-Methods"] = METHODS
        response.headers["Access-Control-Max-Age"] = str(PREFLIGHT_TTL_S)
        # SDKs in a browser send a dozen headers of their own. Every header is allowed.
        if requested := request.headers.get("Access-Control-Request-Headers"):
            response.headers["Access-Control-Allow-Headers"] = requested
            response.vary.add("Access-Control-Request-Headers")
    else:
        response.headers["Access-Control-Expose-Headers"] = EXPOSED
    return response
