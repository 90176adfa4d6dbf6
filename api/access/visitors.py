"""Visitors of the chat page who need no key: a signed cookie stands for the operator's one (NOWSERVING_PAGE_KEY).

The key itself never reaches a browser. Of what it opens a visitor is let to what the page needs, and only to conversations whose id begins
with the visitor's own name; jobs are known by ids that nobody guesses. Visitors share the key's line fairly, and its budget.
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
KEPT_S = 400 * 86_400
ROUTES = frozenset({
    "jobs.submit", "jobs.get", "jobs.cancel", "jobs.retry", "events.follow", "stream_response.follow", "model_lists.list_models",
    "balance.balance", "balance.usage", "attachments.attach", "sessions.create", "sessions.list_sessions", "sessions.get",
    "sessions.update", "sessions.list_messages", "sessions.delete_turn", "sessions.delete",
})  # fmt: skip
# What visitors may say of a job. `user` is replaced by the visitor's name, whatever it says.
FIELDS = frozenset({"endpoint", "body", "conversation", "attachments", "metadata", "user"})
_NAME = re.compile(r"v[0-9a-f]{20}")


def set_cookie(request: Request, made: Response) -> str | None:
    """The visitor's name, which this answer's cookie carries; None where the operator has configured no key for the page."""
    if not settings().page_key.get_secret_value():
        return None
    name = _known(request) or f"v{secrets.token_hex(10)}"
    made.set_cookie(COOKIE, f"{name}.{_sign(name)}", max_age=KEPT_S, httponly=True, samesite="Strict", secure=request.is_secure)
    return name


def page_key(request: Request) -> str | None:
    """The operator's key, for a request of the page for a visitor; None for every other. Raises Unauthorised for what it may not ask."""
    if name_of(request) is None:
        return None
    if (asked := request.endpoint or "") not in ROUTES:
        raise Unauthorised("Visitors of the chat page cannot do this. Send a key of your own as `Authorization: Bearer <key>`.")
    if "name" in (found := request.view_args or {}) and asked.startswith(("sessions.", "attachments.")):
        check_session(request, found["name"])
    return settings().page_key.get_secret_value()


def name_of(request: Request) -> str | None:
    """The visitor's name; None for a caller with a key, and for what another page has a browser send."""
    # The header makes other origins ask first, and none is ever allowed to send cookies; browsers also say who asks.
    is_page = request.headers.get(HEADER) == "1" and request.headers.get("Sec-Fetch-Site", "same-origin") == "same-origin"
    if not settings().page_key.get_secret_value() or "Authorization" in request.headers or not is_page:
        return None
    if (name := _known(request)) is None:
        raise Unauthorised("Reload the page: it no longer knows who you are.")
    return name


def check_session(request: Request, conversation: object) -> None:
    """A visitor's conversations begin with the visitor's name. Raises NotFound."""
    name = name_of(request)
    if name is not None and not (isinstance(conversation, str) and conversation.startswith(f"{name}.")):
        raise NotFound("No such session.")


def session_prefix(request: Request) -> str:
    """What the ids of the caller's conversations begin with: a visitor sees their own, everybody else all of the key's."""
    name = name_of(request)
    return f"{name}." if name else ""


def mark_submit(request: Request, payload: JsonObject) -> JsonObject:
    """The submit as the visitor's own: it waits as this visitor, in one of their conversations. To be called last, after headers.

    Raises NotFound for another's conversation; Invalid for a field or control that visitors may not set.
    """
    name = name_of(request)
    if name is None:
        return payload
    check_session(request, payload.get("conversation"))
    _expect_allowed(payload.keys() - FIELDS)
    return {**payload, "user": name}


def _expect_allowed(others: AbstractSet[str]) -> None:
    if others:
        field = min(others)
        raise Invalid(f"Visitors of the chat page cannot set `{field}`. Leave it out, or send a key of your own.", param=field)


def _known(request: Request) -> str | None:
    name, _, signature = request.cookies.get(COOKIE, "").partition(".")
    return name if _NAME.fullmatch(name) and crypto.is_valid_signature(f"visitor {name}", signature) else None


def _sign(name: str) -> str:
    return crypto.sign(f"visitor {name}")
