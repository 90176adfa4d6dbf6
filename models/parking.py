"""Credentials that the upstream refuses altogether: they get no jobs but one probe a minute, and a good answer opens them again.

A parked pool's jobs wait: it is for its operator to mend. Only the jobs of an own key that the upstream does not know are failed at
once with what the upstream said, since waiting cannot cure a wrong key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import text

from models.db import Session


def park(session: Session, credential_id: int, *, reason: str, error: Mapping[str, object] | None) -> Any:
    """The credential is parked from now. error: what the jobs of an own key are told, None: they wait.

    Row: is_own (the pool of a caller's own key), was_parked (this was a probe).
    """
    return session.execute(_PARK, {"id": credential_id, "reason": reason, "error": json.dumps(error) if error else None}).one()


def unpark(session: Session, credential_id: int) -> None:
    """The credential takes part again."""
    session.execute(_UNPARK, {"id": credential_id})


def open_or_due(session: Session, pool_ids: Sequence[int], *, probe_s: float) -> Sequence[Any]:
    """The credentials that may be asked. Rows: id, pool_id, weight, is_probe (parked, and due for one job that tries it)."""
    return session.execute(_OPEN, {"pools": list(pool_ids), "probe_s": probe_s}).all()


def probed(session: Session, credential_ids: Sequence[int]) -> None:
    """A probe is on its way with these; the next is due only after another probe_s."""
    if credential_ids:
        session.execute(
            text("UPDATE credential SET parked_at = now() WHERE id = ANY(:ids) AND parked_at IS NOT NULL"), {"ids": list(credential_ids)}
        )


def hopeless(session: Session, pool_ids: Sequence[int]) -> dict[int, dict[str, object]]:
    """Pools of own keys that the upstream does not know, and what it said."""
    rows = session.execute(
        text("SELECT pool_id, parked_error FROM credential WHERE pool_id = ANY(:pools) AND parked_error IS NOT NULL"),
        {"pools": list(pool_ids)},
    )
    return {row.pool_id: row.parked_error for row in rows}


_PARK = text("""
    UPDATE credential SET parked_at = now(), parked_reason = :reason,
           parked_error = CASE WHEN owned.is_own THEN CAST(:error AS jsonb) END
    FROM (
        SELECT old.id, old.parked_at IS NOT NULL AS was_parked,
               EXISTS (SELECT FROM key WHERE key.pool_id = old.pool_id AND key.kind = 'own') AS is_own
        FROM credential AS old WHERE old.id = :id
    ) AS owned
    WHERE credential.id = owned.id RETURNING owned.is_own, owned.was_parked
""")
_UNPARK = text("UPDATE credential SET parked_at = NULL, parked_reason = NULL, parked_error = NULL WHERE id = :id AND parked_at IS NOT NULL")
_OPEN = text("""
    SELECT id, pool_id, weight, parked_at IS NOT NULL AS is_probe FROM credential
    WHERE pool_id = ANY(:pools) AND coalesce(paused_at, retired_at) IS NULL
    AND (parked_at IS NULL OR parked_at < now() - make_interval(secs => :probe_s)) ORDER BY id
""")
