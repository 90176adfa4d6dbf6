"""Who is calling: the bearer token, looked up in Postgres and remembered for a few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from flask import Request, current_app

from api import visitor
from api.newcomers import Newcomers, address_of
from models import db, key, logs
from models.errors import Invalid, Unauthorised
from models.key import Key

# A revoked key opens nothing after this long.
REMEMBERED_S = 5.0
REMEMBERED_MOST = 20_000
IN_QUERY = ("api_key", "apikey", "apiKey", "access_token", "key", "token")


class Callers:
    """The keys that were recognised a moment ago, in this process."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._newcomers = Newcomers(clock=clock)
        self._known: dict[str, tuple[Key, float]] = {}

    def recognise(self, token: str, *, address: str | None = None) -> Key:
        """The key behind this token. Raises Unauthorised, also within REMEMBERED_S of its revocation; LineFull when this address
        brings too many new ones (None: nobody counts them)."""
        found = self._known.get(token)
        if found and found[1] > self._clock():
            return found[0]
        self._known.pop(token, None)
        with db.begin() as session:
            caller = key.recognise(session, token, before_new=partial(self._newcomers.admit, address))
        if len(self._known) >= REMEMBERED_MOST:
            self._known.clear()
        self._known[token] = (caller, self._clock() + REMEMBERED_S)
        return caller


def token_of(request: Request) -> str:
    """The bearer token, or that of the chat page for its visitors. Raises Unauthorised without one, Invalid when a key stands in the query,
    where logs would keep it."""
    refuse_in_query(request)
    if not (token := bearer(request) or visitor.key_of(request)):
        raise Unauthorised
    return token


def refuse_in_query(request: Request) -> None:
    """Raises Invalid when a key stands in the query, where logs would keep it."""
    for name in IN_QUERY:
        if name in request.args:
            raise Invalid("Never put a key into a URL: logs keep those. Send it as `Authorization: Bearer <key>`.", param=name)


def bearer(request: Request) -> str:
    """The bearer token, or without an Authorization the `api-key` of Azure's SDKs; empty when there is none."""
    authorization = request.headers.get("Authorization", "")
    if not authorization:
        return request.headers.get("api-key", "").strip()
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def caller(request: Request, *, token: str | None = None) -> Key:
    """The key that makes this request. Raises Unauthorised, and LineFull when its address brings too many new keys.

    token: what it presents, where that is not a bearer token.
    """
    callers: Callers = current_app.extensions["callers"]
    found = callers.recognise(token_of(request) if token is None else token, address=address_of(request))
    logs.add(key=found.id)
    return found
