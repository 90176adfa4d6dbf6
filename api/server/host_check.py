"""Refuses requests whose Host header is no name of this server, before anything else happens to them (DNS rebinding).

Checked is what such a page could use: every route while keys are open on loopback, and what the cookie of a chat-page visitor opens.
Not checked: health checks and metrics, which use neither, and requests with a token that the operator has issued, which no page has.
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

LOGGED_MOST_CHARS = 100


def register(app: Flask) -> None:
    """To be called before anything else that runs before a request, except the errors' own."""
    app.before_request(_refuse)


def _refuse() -> Response | None:
    host = request.environ.get("HTTP_HOST", "")
    # Browsers always send a Host: without one it is no page.
    if not host or host_names.is_allowed(host) or not _is_guarded():
        return None
    log.warning("request refused: its Host is no name of this server", extra={"host": host[:LOGGED_MOST_CHARS]})
    name = host_names.parse_name(host) or "NAME"
    return errors.error_response(HostNotAllowed(
        f"The Host header of this request is no name of this server. Use http://127.0.0.1 or localhost, or have the operator set "
        f"NOWSERVING_ALLOWED_HOSTS={name} (or NOWSERVING_PUBLIC_URL) and restart."
    ))  # fmt: skip


def _is_guarded() -> bool:
    """Whether a page elsewhere could use this request."""
    if request.environ.get(access_log.ROUTE) in access_log.MONITORING_ROUTES or auth.bearer_token(request).startswith(
        (token_forms.ISSUED, token_forms.OPERATOR)
    ):
        return False
    return host_names.has_open_loopback() or _is_visitor()


def _is_visitor() -> bool:
    """Whether the request gets the visitors' cookie, or comes with it."""
    is_page = request.endpoint == "page.home" or (visitors.HEADER in request.headers and "Authorization" not in request.headers)
    return is_page and bool(settings().page_key.get_secret_value())
