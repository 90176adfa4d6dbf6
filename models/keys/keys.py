"""Keys of callers: own keys, registered on first use, and issued keys, created by the operator and bound to a pool."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from sqlalchemy import text

from models.access import operators
from models.config.settings import settings
from models.database.db import Transaction
from models.keys import credential_address
from models.platform import crypto, token_forms
from models.platform.errors import Invalid, Unauthorised

MAX_TOKEN_CHARS = 256


@dataclass(frozen=True)
class Key:
    """A caller. `pool_id` is the pool whose credentials serve it."""

    id: int
    pool_id: int
    kind: str


@dataclass(frozen=True)
class Limits:
    """The limits of a credential for one model; None: not set, so it is learned from the upstream's headers."""

    rpm: int | None = None
    tpm: int | None = None
    ipm: int | None = None
    rpd: int | None = None
    max_in_flight: int | None = None


_FIND = text("SELECT id, pool_id, kind, revoked_at FROM key WHERE fingerprint = ANY(:prints)")


def authenticate(session: Transaction, token: str, *, before_new: Callable[[], None] = lambda: None) -> Key:
    """The key with this bearer token. An own key is registered on first use, if the operator allows it.

    before_new: called before a key is registered; it may raise to refuse it.
    Raises Unauthorised for an operator's token, for a revoked or unknown issued key, for a token that is not 1 to 256 printable ASCII
    characters, and for an unknown own key where NOWSERVING_OPEN_KEYS is off.
    """
    if not 1 <= len(token) <= MAX_TOKEN_CHARS or not token.isascii() or not token.isprintable():
        raise Unauthorised("A key is 1 to 256 printable ASCII characters, sent as `Authorization: Bearer <key>`.")
    if operators.is_operator_token(token):
        raise Unauthorised("This is an operator's token: it opens /ops only. Send a caller's key (`nowserving keys create`).")
    prints = _fingerprints(token)
    row = session.execute(_FIND, {"prints": prints}).one_or_none()
    if row is None:
        if token.startswith(token_forms.ISSUED) or not settings().open_keys:
            raise Unauthorised("This key is not known here. Ask the operator for one (`nowserving keys create`).")
        before_new()
        return _register(session, token, prints)
    if row.revoked_at is not None:
        raise Unauthorised("This key was revoked. Ask the operator for a new one.")
    return Key(id=row.id, pool_id=row.pool_id, kind=row.kind)


_ADD_KEY = text("INSERT INTO key (fingerprint, kind, name, pool_id) VALUES (:print, :kind, :name, :pool_id) RETURNING id")


def issue(session: Transaction, *, name: str, pool: str) -> tuple[Key, str]:
    """Creates an issued key bound to the named pool. Returns the key and its plain text, which is never stored."""
    row = session.execute(text("SELECT id FROM pool WHERE name = :name"), {"name": pool}).one_or_none()
    if row is None:
        raise Invalid(f"There is no pool named {pool!r}. Make it first: nowserving pools create {pool}", param="pool")
    token = token_forms.ISSUED + secrets.token_urlsafe(32)
    made = session.execute(_ADD_KEY, {"print": _fingerprints(token)[0], "kind": "issued", "name": name, "pool_id": row.id}).one()
    return Key(id=made.id, pool_id=row.id, kind="issued"), token


def revoke(session: Transaction, key_id: int) -> bool:
    """Revokes a key; its queued jobs still run. Returns False if there is no such key or it was revoked before."""
    done = session.execute(text("UPDATE key SET revoked_at = now() WHERE id = :id AND revoked_at IS NULL RETURNING id"), {"id": key_id})
    return done.one_or_none() is not None


_ADD_CREDENTIAL = text("""
    INSERT INTO credential (id, pool_id, base_url, secret, kind, api_version) OVERRIDING SYSTEM VALUE
    VALUES (:id, :pool_id, :base_url, :secret, :kind, :api_version)
""")


def add_credential(
    session: Transaction,
    *,
    pool_id: int,
    upstream_key: str,
    base_url: str | None = None,
    kind: str = "openai",
    api_version: str | None = None,
) -> int:
    """Adds a credential to this pool, with its upstream key encrypted; returns its id. kind, api_version: see credential_address.

    Raises Invalid for a wrong address, and for an operator's token.
    """
    check_upstream_key(upstream_key)
    base_url, api_version = credential_address.normalize(kind, base_url=base_url, api_version=api_version)
    number = session.execute(text("SELECT nextval(pg_get_serial_sequence('credential', 'id'))")).scalar_one()
    sealed = crypto.seal(upstream_key.encode(), bound_to=f"credential:{number}")
    session.execute(
        _ADD_CREDENTIAL,
        {"id": number, "pool_id": pool_id, "base_url": base_url, "secret": sealed, "kind": kind, "api_version": api_version},
    )
    return int(number)


def check_upstream_key(upstream_key: str) -> None:
    """Raises Invalid for an operator's token, which must never be sent upstream."""
    if operators.is_operator_token(upstream_key):
        raise Invalid("This is an operator's token of nowserving. Give the key of the upstream.", param="key")


def create_pool(session: Transaction, name: str) -> int:
    """Creates a pool if there is none with this name; returns its id."""
    made = session.execute(text("INSERT INTO pool (name) VALUES (:name) ON CONFLICT (name) DO NOTHING RETURNING id"), {"name": name})
    found = made.scalar_one_or_none()
    return int(found or session.execute(text("SELECT id FROM pool WHERE name = :name"), {"name": name}).scalar_one())


def _register(session: Transaction, token: str, prints: list[bytes]) -> Key:
    # Of two simultaneous first requests, the second waits here for the first, then finds its row.
    session.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": int.from_bytes(prints[0][:8], "big", signed=True)})
    row = session.execute(_FIND, {"prints": prints}).one_or_none()
    if row is not None:
        return Key(id=row.id, pool_id=row.pool_id, kind=row.kind)
    pool_id = create_pool(session, f"own:{prints[0].hex()[:32]}")
    add_credential(session, pool_id=pool_id, upstream_key=token)
    made = session.execute(_ADD_KEY, {"print": prints[0], "kind": "own", "name": None, "pool_id": pool_id}).one()
    return Key(id=made.id, pool_id=pool_id, kind="own")


@lru_cache(maxsize=4096)
def _fingerprints(token: str) -> list[bytes]:
    return crypto.fingerprints(token.encode())
