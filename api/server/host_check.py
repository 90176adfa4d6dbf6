"""The host check, against DNS rebinding: it refuses requests whose Host header is no name of this server, before any other handler.

It checks the requests that a hostile page could use: all routes while keys are open on loopback, and those that use the cookie of a
chat-page visitor. It skips health checks and metrics, which use neither, and requests with an issued token, which no page has.
"""

from __future__ import annotations

import logging

from flask import Flask, Response, request

from api.access import auth, visitors
from api.http import access_log, errors
from models.access import host_names
from models.config.settings import settings
from models.platform import token_forms
from models.platform.errors import HostNotAllowed

log = logging.getLogger(__name__)

MAX_LOGGED_CHARS = 100


def register(app: Flask) -> None:
    """Registers the check. Call it before all other before_request handlers except those of api/http/errors.py."""
    app.before_request(_refuse)


def _refuse() -> Response | None:
    host = request.environ.get("HTTP_HOST", "")
    # Browsers always send a Host header.
    if not host or host_names.is_allowed(host) or not _needs_check():
        return None
    log.warning("request refused: unknown host", extra={"host": host[:MAX_LOGGED_CHARS]})
    name = host_names.parse_name(host) or "NAME"
    return errors.error_response(HostNotAllowed(
        f"The Host header of this request is no name of this server. Use http://127.0.0.1 or localhost, or have the operator set "
        f"NOWSERVING_ALLOWED_HOSTS={name} (or NOWSERVING_PUBLIC_URL) and restart."
    ))  # fmt: skip


def _needs_check() -> bool:
    """Whether a page of another site could use this request."""
    if request.environ.get(access_log.ROUTE) in access_log.MONITORING_ROUTES or auth.bearer_token(request).startswith(
        (token_forms.ISSUED, token_forms.OPERATOR)
    ):
        return False
    return host_names.has_open_loopback() or _is_visitor()


def _is_visitor() -> bool:
    """Whether the request sets or uses the cookie of visitors."""
    is_page = request.endpoint == "page.home" or (visitors.HEADER in request.headers and "Authorization" not in request.headers)
    return is_page and bool(settings().page_key.get_secret_value())
