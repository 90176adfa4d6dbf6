"""Signing secrets of webhooks: stored encrypted. After a rotation the old secret can sign too, for 24 hours."""

from __future__ import annotations

import base64
import os

from sqlalchemy import text

from models.database.db import Transaction
from models.platform import crypto, token_forms

SECRET_BYTES = 32
HINT_CHARS = 4
OVERLAP_HOURS = 24


def new_secret() -> str:
    """Generates a secret in the format of Standard Webhooks."""
    return token_forms.SIGNING + base64.b64encode(os.urandom(SECRET_BYTES)).decode()


def seal(plain: str, *, owner: str) -> bytes:
    """Encrypts a secret for storage, bound to the row of its owner: the public id of an endpoint, or key_owner()."""
    return crypto.seal(plain.encode(), bound_to=f"signing:{owner}")


def unseal(sealed: bytes, *, owner: str) -> str:
    """Decrypts a secret of this owner. Raises ValueError if that fails."""
    return crypto.unseal(bytes(sealed), bound_to=f"signing:{owner}").decode()


def hint(plain: str) -> str:
    """Returns the prefix and the last characters of a secret, to distinguish two secrets in a list."""
    return f"{token_forms.SIGNING}…{plain.rstrip('=')[-HINT_CHARS:]}"


def key_owner(key_id: int) -> str:
    """Returns the owner of a key's default secret, for seal and unseal."""
    return f"key:{key_id}"


_FIND = text("SELECT secret FROM webhook_secret WHERE key_id = :key_id")
_INSERT = text("INSERT INTO webhook_secret (key_id, secret) VALUES (:key_id, :secret) ON CONFLICT (key_id) DO NOTHING")


def default_secret(session: Transaction, key_id: int) -> str:
    """Returns the secret that signs deliveries to the webhook_url of this key's jobs; creates it on first use."""
    row = session.execute(_FIND, {"key_id": key_id}).one_or_none()
    if row is None:
        session.execute(_INSERT, {"key_id": key_id, "secret": seal(new_secret(), owner=key_owner(key_id))})
        row = session.execute(_FIND, {"key_id": key_id}).one()
    return unseal(row.secret, owner=key_owner(key_id))


_ROTATE = text("""
    UPDATE webhook_secret SET secret = :secret, old_secret = CASE WHEN :keep THEN secret END,
           old_secret_until = CASE WHEN :keep THEN now() + make_interval(hours => :hours) END
    WHERE key_id = :key_id
""")


def rotate_default_secret(session: Transaction, key_id: int, *, keep_old: bool) -> str:
    """Replaces the key's default secret and returns it. With keep_old the old one signs too, for OVERLAP_HOURS."""
    default_secret(session, key_id)
    plain = new_secret()
    params = {"key_id": key_id, "secret": seal(plain, owner=key_owner(key_id)), "keep": keep_old, "hours": OVERLAP_HOURS}
    session.execute(_ROTATE, params)
    return plain
