"""Lists of keys, pools and credentials for operators, without secrets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import text

from models.database.db import Transaction
from models.platform.errors import NotFound

_KEYS = text("""
    SELECT key.id, key.kind, key.name, pool.name AS pool, key.created_at, key.revoked_at
    FROM key JOIN pool ON pool.id = key.pool_id ORDER BY key.id
""")


def list_keys(session: Transaction) -> Sequence[Any]:
    """Every key. Rows: id, kind, name, pool, created_at, revoked_at."""
    return session.execute(_KEYS).all()


def kind_of_key(session: Transaction, key_id: int) -> str:
    """`own` or `issued`. Raises NotFound."""
    value = session.execute(text("SELECT kind FROM key WHERE id = :id"), {"id": key_id}).scalar_one_or_none()
    if value is None:
        raise NotFound(f"There is no key {key_id}. `nowserving keys list` shows them all.")
    return str(value)


_POOLS = text("""
    SELECT pool.id, pool.name, pool.paused_reason,
           coalesce(array_agg(credential.id ORDER BY credential.id) FILTER (WHERE credential.id IS NOT NULL), '{}') AS credentials,
           coalesce(array_agg(credential.id || ': ' || coalesce(credential.parked_reason, partly.reasons))
                    FILTER (WHERE credential.parked_at IS NOT NULL OR partly.reasons IS NOT NULL), '{}') AS parked
    FROM pool LEFT JOIN credential ON credential.pool_id = pool.id CROSS JOIN LATERAL (
        SELECT string_agg(model || ': ' || reason, '; ' ORDER BY model) AS reasons FROM parked_model WHERE credential_id = credential.id
    ) AS partly
    GROUP BY pool.id ORDER BY pool.id
""")


def list_pools(session: Transaction) -> Sequence[Any]:
    """Every pool. Rows: id, name, paused_reason, credentials (their ids), parked (of these, with reasons)."""
    return session.execute(_POOLS).all()


def pool_id_by_name(session: Transaction, name: str) -> int:
    """The id of this pool. Raises NotFound."""
    value = session.execute(text("SELECT id FROM pool WHERE name = :name"), {"name": name}).scalar_one_or_none()
    if value is None:
        raise NotFound(f"There is no pool named {name!r}. Make it first: nowserving pools create {name}")
    return int(value)


_BEHIND = text("""
    SELECT credential.id FROM credential LEFT JOIN key ON key.pool_id = credential.pool_id AND key.id = CAST(:key_id AS bigint)
    WHERE credential.id = CAST(:credential_id AS bigint) OR key.id IS NOT NULL ORDER BY credential.id
""")


def credential_ids_by(session: Transaction, *, key_id: int | None = None, credential_id: int | None = None) -> list[int]:
    """The ids of the credentials that serve this key, or this one credential. Raises NotFound if there is none."""
    ids = [row.id for row in session.execute(_BEHIND, {"key_id": key_id, "credential_id": credential_id})]
    if not ids:
        raise NotFound("There is no such credential. `nowserving pools list` shows them all.")
    return ids
