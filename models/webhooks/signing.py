"""The secrets that webhooks are signed with: stored sealed, and for a day after a rotation two of them where that is asked for."""

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
    """A new secret, in the form of Standard Webhooks."""
    return token_forms.SIGNING + base64.b64encode(os.urandom(SECRET_BYTES)).decode()


def seal(plain: str, *, owner: str) -> bytes:
    """As it is stored. owner: of_endpoint() or of_key(), whose row it is bound to."""
    return crypto.seal(plain.encode(), bound_to=f"signing:{owner}")


def unseal(sealed: bytes, *, owner: str) -> str:
    """What was sealed for this owner. Raises ValueError when it cannot be read."""
    return crypto.unseal(bytes(sealed), bound_to=f"signing:{owner}").decode()


def hint(plain: str) -> str:
    """What may be shown of it: enough to tell two apart."""
    return f"{token_forms.SIGNING}…{plain.rstrip('=')[-HINT_CHARS:]}"


def key_owner(key_id: int) -> str:
    return f"key:{key_id}"


def default_secret(session: Transaction, key_id: int) -> str:
    """The secret that signs what goes to the webhook_url of this key's jobs; made when it is first asked for."""
    row = session.execute(_FIND, {"key_id": key_id}).one_or_none()
    if row is None:
        session.execute(_MAKE, {"key_id": key_id, "secret": seal(new_secret(), owner=key_owner(key_id))})
        row = session.execute(_FIND, {"key_id": key_id}).one()
    return unseal(row.secret, owner=key_owner(key_id))


def rotate_default_secret(session: Transaction, key_id: int, *, keep_old: bool) -> str:
    """The key's new default secret; with keep_old, the old one signs beside it for OVERLAP_HOURS."""
    default_secret(session, key_id)
    plain = new_secret()
    wanted = {"key_id": key_id, "secret": seal(plain, owner=key_owner(key_id)), "keep": keep_old, "hours": OVERLAP_HOURS}
    session.execute(_ROTATE, wanted)
    return plain


_FIND = text("SELECT secret FROM webhook_secret WHERE key_id = :key_id")
_MAKE = text("INSERT INTO webhook_secret (key_id, secret) VALUES (:key_id, :secret) ON CONFLICT (key_id) DO NOTHING")
_ROTATE = text("""
    UPDATE webhook_secret SET secret = :secret, old_secret = CASE WHEN :keep THEN secret END,
           old_secret_until = CASE WHEN :keep THEN now() + make_interval(hours => :hours) END
    WHERE key_id = :key_id
""")
