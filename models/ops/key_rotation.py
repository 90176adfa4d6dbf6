"""Rotation of NOWSERVING_SECRET_KEYS: encrypts every stored secret again with the newest key.

Issued keys and operators' tokens are stored as fingerprints only and cannot be computed again: an old secret key stays in the setting as
long as one of them was created under it. Own keys can, because their plain text is stored with the credential.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import text

from models.access import audit_log
from models.access.audit_log import Act
from models.database.db import Transaction
from models.platform import crypto, ids
from models.webhooks import endpoints, signing


def reencrypt_all(session: Transaction, act: Act) -> dict[str, int]:
    """Encrypts every secret with the newest key; returns the number of each kind.

    Raises ValueError, without changes, if a secret cannot be decrypted.
    """
    counts = {"credentials": _credentials(session), "own_keys": _own_keys(session)}
    counts["webhook_secrets"] = _signing(session, "webhook_endpoint", "id", lambda number: ids.format_id(endpoints.PREFIX, number))
    counts["webhook_secrets"] += _signing(session, "webhook_secret", "key_id", signing.key_owner)
    audit_log.write(session, act, "rotate-secret", "secrets", before=None, after=counts)
    return counts


def _credentials(session: Transaction) -> int:
    rows = session.execute(text("SELECT id, secret FROM credential ORDER BY id FOR UPDATE")).all()
    for row in rows:
        bound_to = f"credential:{row.id}"
        sealed = crypto.seal(crypto.unseal(bytes(row.secret), bound_to=bound_to), bound_to=bound_to)
        session.execute(text("UPDATE credential SET secret = :secret WHERE id = :id"), {"id": row.id, "secret": sealed})
    return len(rows)


_OWN = text("""
    SELECT key.id, key.fingerprint, credential.id AS credential_id, credential.secret
    FROM key JOIN credential ON credential.pool_id = key.pool_id WHERE key.kind = 'own' ORDER BY key.id
""")


def _own_keys(session: Transaction) -> int:
    rows = session.execute(_OWN).all()
    for row in rows:
        plain = crypto.unseal(bytes(row.secret), bound_to=f"credential:{row.credential_id}")
        fingerprints = crypto.fingerprints(plain)
        if bytes(row.fingerprint) in fingerprints:
            session.execute(
                text("UPDATE key SET fingerprint = :fingerprint WHERE id = :id"), {"id": row.id, "fingerprint": fingerprints[0]}
            )
    return len(rows)


def _signing(session: Transaction, table: str, name: str, owner_of: Any) -> int:
    rows = session.execute(text(f"SELECT {name} AS id, secret, old_secret FROM {table} FOR UPDATE")).all()
    for row in rows:
        owner = owner_of(row.id)
        columns = {
            column: None if sealed is None else signing.seal(signing.unseal(sealed, owner=owner), owner=owner)
            for column, sealed in (("secret", row.secret), ("old_secret", row.old_secret))
        }
        session.execute(
            text(f"UPDATE {table} SET secret = :secret, old_secret = :old_secret WHERE {name} = :id"), {"id": row.id, **columns}
        )
    return len(rows)
