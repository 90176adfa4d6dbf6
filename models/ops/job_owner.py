"""Finds the state and the key of any caller's job."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import text

from models.database.db import Transaction
from models.platform.errors import NotFound

_FIND = text("""
    SELECT job.id, job.status, job.cancel_requested, job.key_id, key.pool_id, key.kind
    FROM job JOIN key ON key.id = job.key_id WHERE job.id = :id
""")


def find(session: Transaction, job_id: UUID) -> Any:
    """Returns the job's row: id, status, cancel_requested, key_id, and pool_id and kind of its key. Raises NotFound."""
    row = session.execute(_FIND, {"id": job_id}).one_or_none()
    if row is None:
        raise NotFound("No such job.")
    return row
