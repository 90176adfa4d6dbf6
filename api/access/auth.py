"""Authentication: the key or operator of a request, by its bearer token. Postgres knows the tokens; a cache keeps keys for seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from flask import Request, current_app

from api.access import visitors
from api.access.signup_limit import SignupLimit, client_address_of
from models.access import operators
from models.access.operators import Operator
from models.access.wrong_tokens import WrongTokens
from models.database import db
from models.keys import keys
from models.keys.keys import Key
from models.platform import token_forms
from models.platform.errors import Invalid, Unauthorised
from models.telemetry import logs, metrics

# A revoked key still works for this long.
CACHE_TTL_S = 5.0
MAX_CACHED = 20_000


class KeyCache:
    """The keys that this process authenticated a moment ago, by their tokens."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._signup_limit = SignupLimit(clock=clock)
        self._cached: dict[str, tuple[Key, float]] = {}

    def authenticate(self, token: str, *, address: str | None = None) -> Key:
        """The key of this token. Raises Unauthorised, for a revoked key at most CACHE_TTL_S late.

        Raises QueueFull when this address has registered too many keys; address None: no limit. Wrong tokens are only counted in a
        metric: keys cannot be guessed, and callers behind one address must not block each other.
        """
        key, expires_at = self._cached.get(token, (None, 0.0))
        if key and expires_at > self._clock():
            return key
        self._cached.pop(token, None)
        try:
            with db.begin() as session:
                key = keys.authenticate(session, token, before_new=partial(self._signup_limit.check, address))
        except Unauthorised:
            metrics.wrong_tokens.labels("api").inc()
            raise
        if len(self._cached) >= MAX_CACHED:
            self._cached.clear()
        self._cached[token] = (key, self._clock() + CACHE_TTL_S)
        return key


def authenticate(request: Request, *, token: str | None = None) -> Key:
    """The key of this request. Raises Unauthorised, and QueueFull when its address registers too many new keys.

    token: replaces the bearer token, for routes that read it from elsewhere.
    """
    cache: KeyCache = current_app.extensions["key_cache"]
    key = cache.authenticate(token_of(request) if token is None else token, address=client_address_of(request))
    logs.extend(key=key.id)
    return key


def token_of(request: Request) -> str:
    """The bearer token, or the operator's page key for a visitor of the chat page.

    Raises Unauthorised without one, and Invalid for a key in the query string, where logs would keep it.
    """
    refuse_in_query(request)
    if not (token := bearer_token(request) or visitors.page_key(request)):
        raise Unauthorised
    return token


def refuse_in_query(request: Request) -> None:
    """Raises Invalid when the query string holds a key, because logs would keep it."""
    for name in token_forms.QUERY_NAMES:
        if name in request.args:
            raise Invalid("Never put a key into a URL: logs keep those. Send it as `Authorization: Bearer <key>`.", param=name)


def bearer_token(request: Request) -> str:
    """The bearer token; without an Authorization header the `api-key` of Azure's SDKs; else an empty string."""
    authorization = request.headers.get("Authorization", "")
    if not authorization:
        return request.headers.get("api-key", "").strip()
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def authenticate_operator(request: Request) -> Operator:
    """The operator of this request. Raises Unauthorised, or TooManyWrongTokens when this address has sent too many wrong tokens."""
    refuse_in_query(request)
    token, address, wrong = bearer_token(request), client_address_of(request), wrong_tokens()
    wrong.expect_room(address, token)
    try:
        with db.begin() as session:
            operator = operators.authenticate(session, token)
    except Unauthorised:
        if token:
            wrong.note_wrong(address, token, door="ops")
        raise
    wrong.note_right(address, token)
    return operator


def wrong_tokens() -> WrongTokens:
    """The counter of wrong tokens of this application."""
    counter: WrongTokens = current_app.extensions["wrong_tokens"]
    return counter
