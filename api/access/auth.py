"""Who is calling: the bearer token, looked up in Postgres and remembered for a few seconds."""

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

# A revoked key opens nothing after this long.
CACHE_TTL_S = 5.0
MAX_CACHED = 20_000


class KeyCache:
    """The keys that were recognised a moment ago, in this process."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._newcomers = SignupLimit(clock=clock)
        self._known: dict[str, tuple[Key, float]] = {}

    def recognise(self, token: str, *, address: str | None = None) -> Key:
        """The key behind this token. Raises Unauthorised, until REMEMBERED_S after its revocation not; QueueFull when this address brings
        too many new ones (None: nobody counts those). Wrong ones are counted in metrics alone: keys cannot be guessed, and callers
        behind one address must not stop each other."""
        found = self._known.get(token)
        if found and found[1] > self._clock():
            return found[0]
        self._known.pop(token, None)
        try:
            with db.begin() as session:
                caller = keys.authenticate(session, token, before_new=partial(self._newcomers.admit, address))
        except Unauthorised:
            metrics.wrong_tokens.labels("api").inc()
            raise
        if len(self._known) >= MAX_CACHED:
            self._known.clear()
        self._known[token] = (caller, self._clock() + CACHE_TTL_S)
        return caller


def token_of(request: Request) -> str:
    """The bearer token, or that of the chat page for its visitors. Raises Unauthorised without one, Invalid when a key stands in the query,
    where logs would keep it."""
    refuse_in_query(request)
    if not (token := bearer_token(request) or visitors.page_key(request)):
        raise Unauthorised
    return token


def refuse_in_query(request: Request) -> None:
    """Raises Invalid when a key stands in the query, where logs would keep it."""
    for name in token_forms.QUERY_NAMES:
        if name in request.args:
            raise Invalid("Never put a key into a URL: logs keep those. Send it as `Authorization: Bearer <key>`.", param=name)


def bearer_token(request: Request) -> str:
    """The bearer token, or without an Authorization the `api-key` of Azure's SDKs; empty when there is none."""
    authorization = request.headers.get("Authorization", "")
    if not authorization:
        return request.headers.get("api-key", "").strip()
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def authenticate_operator(request: Request) -> Operator:
    """The operator that makes this request. Raises Unauthorised; TooManyWrongTokens when this address has sent too many wrong tokens."""
    refuse_in_query(request)
    token, address, wrong = bearer_token(request), client_address_of(request), wrong_tokens()
    wrong.expect_room(address, token)
    try:
        with db.begin() as session:
            found = operators.authenticate(session, token)
    except Unauthorised:
        if token:
            wrong.note_wrong(address, token, door="ops")
        raise
    wrong.note_right(address, token)
    return found


def wrong_tokens() -> WrongTokens:
    """The count of wrong tokens of this app."""
    found: WrongTokens = current_app.extensions["wrong_tokens"]
    return found


def authenticate(request: Request, *, token: str | None = None) -> Key:
    """The key that makes this request. Raises Unauthorised, and QueueFull when its address brings too many new keys.

    token: what it presents, where that is not a bearer token.
    """
    callers: KeyCache = current_app.extensions["callers"]
    found = callers.recognise(token_of(request) if token is None else token, address=client_address_of(request))
    logs.extend(key=found.id)
    return found
