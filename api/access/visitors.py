"""Visitors of the chat page, who need no key: a signed cookie stands for the operator's key (NOWSERVING_PAGE_KEY).

The key never reaches a browser. A visitor may use only the routes of the page, and only conversations whose id begins with the visitor's
name; the ids of jobs cannot be guessed. Visitors share the lanes of the key fairly, and its budget.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Set as AbstractSet

from flask import Request, Response

from models.config.settings import settings
from models.platform import crypto
from models.platform.errors import Invalid, NotFound, Unauthorised
from models.platform.wire import JsonObject

COOKIE = "nowserving_visitor"
HEADER = "X-Nowserving-Page"
COOKIE_TTL_S = 400 * 86_400
ROUTES = frozenset({
    "jobs.submit", "jobs.get", "jobs.cancel", "jobs.retry", "events.follow", "stream_response.follow", "model_lists.list_models",
    "balance.balance", "balance.usage", "attachments.attach", "sessions.create", "sessions.list_sessions", "sessions.get",
    "sessions.update", "sessions.list_messages", "sessions.delete_turn", "sessions.delete",
})  # fmt: skip
# The fields that a visitor may set in a submit. The visitor's name replaces `user`.
FIELDS = frozenset({"endpoint", "body", "conversation", "attachments", "metadata", "user"})
_NAME = re.compile(r"v[0-9a-f]{20}")


def set_cookie(request: Request, response: Response) -> str | None:
    """Sets the visitor's cookie and returns the visitor's name. None when the operator has configured no key for the page."""
    if not settings().page_key.get_secret_value():
        return None
    name = _name_in_cookie(request) or f"v{secrets.token_hex(10)}"
    response.set_cookie(COOKIE, f"{name}.{_sign(name)}", max_age=COOKIE_TTL_S, httponly=True, samesite="Strict", secure=request.is_secure)
    return name


def page_key(request: Request) -> str | None:
    """The operator's key for a request of a visitor; None for other requests. Raises Unauthorised for a route that visitors may not use."""
    if name_of(request) is None:
        return None
    if (endpoint := request.endpoint or "") not in ROUTES:
        raise Unauthorised("Visitors of the chat page cannot do this. Send a key of your own as `Authorization: Bearer <key>`.")
    if "name" in (view_args := request.view_args or {}) and endpoint.startswith(("sessions.", "attachments.")):
        check_session(request, view_args["name"])
    return settings().page_key.get_secret_value()


def name_of(request: Request) -> str | None:
    """The visitor's name; None for a caller with a key, and for a request that a page of another origin sent."""
    # The custom header makes browsers send a preflight, and CORS allows no credentials. Browsers also send Sec-Fetch-Site.
    is_page = request.headers.get(HEADER) == "1" and request.headers.get("Sec-Fetch-Site", "same-origin") == "same-origin"
    if not settings().page_key.get_secret_value() or "Authorization" in request.headers or not is_page:
        return None
    if (name := _name_in_cookie(request)) is None:
        raise Unauthorised("Reload the page: it no longer knows who you are.")
    return name


def check_session(request: Request, conversation: object) -> None:
    """Raises NotFound when a visitor uses a conversation whose id does not begin with the visitor's name."""
    name = name_of(request)
    if name is not None and not (isinstance(conversation, str) and conversation.startswith(f"{name}.")):
        raise NotFound("No such session.")


def session_prefix(request: Request) -> str:
    """The prefix of the conversation ids that this caller may list: a visitor their own, a key all of its own."""
    name = name_of(request)
    return f"{name}." if name else ""


def mark_submit(request: Request, payload: JsonObject) -> JsonObject:
    """The submit with the visitor's name as `user`. To be called after the fields of headers were merged in.

    Raises NotFound for the conversation of another visitor, Invalid for a field that visitors may not set.
    """
    name = name_of(request)
    if name is None:
        return payload
    check_session(request, payload.get("conversation"))
    _check_fields(payload.keys() - FIELDS)
    return {**payload, "user": name}


def _check_fields(forbidden: AbstractSet[str]) -> None:
    if forbidden:
        field = min(forbidden)
        raise Invalid(f"Visitors of the chat page cannot set `{field}`. Leave it out, or send a key of your own.", param=field)


def _name_in_cookie(request: Request) -> str | None:
    name, _, signature = request.cookies.get(COOKIE, "").partition(".")
    return name if _NAME.fullmatch(name) and crypto.is_valid_signature(f"visitor {name}", signature) else None


def _sign(name: str) -> str:
    return crypto.sign(f"visitor {name}")
