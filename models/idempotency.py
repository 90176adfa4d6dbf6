"""The same Idempotency-Key and body give the same job, however often and however many at once."""

from __future__ import annotations

from uuid import UUID

from psycopg.errors import LockNotAvailable
from sqlalchemy import text

from models.db import Session
from models.errors import Conflict, IdempotencyMismatch, Invalid

TOKEN_MOST_CHARS = 255


def first_or_earlier(session: Session, key_id: int, token: str, *, digest: bytes, job_id: UUID) -> UUID:
    """`job_id` when this token is new, else the job it made before. A concurrent first waits here until the other has committed.

    digest: SHA-256 of the request. Raises IdempotencyMismatch for another one, Conflict when the other takes too long, Invalid for a token
    that is not 1 to 255 visible ASCII characters.
    """
    if not 1 <= len(token) <= TOKEN_MOST_CHARS or not all("!" <= char <= "~" for char in token):
        raise Invalid("An Idempotency-Key is 1 to 255 visible ASCII characters.", param="Idempotency-Key")
    try:
        row = session.execute(_ADD, {"key_id": key_id, "token": token, "fingerprint": digest, "job_id": job_id}).one_or_none()
    except LockNotAvailable as error:
        raise Conflict(retry_after_s=1) from error
    if row is not None:
        return job_id
    earlier = session.execute(_FIND, {"key_id": key_id, "token": token}).one()
    if earlier.fingerprint != digest:
        raise IdempotencyMismatch(param="Idempotency-Key")
    return UUID(str(earlier.job_id))


_ADD = text("""
    INSERT INTO idempotency (key_id, token, fingerprint, job_id) VALUES (:key_id, :token, :fingerprint, :job_id)
    ON CONFLICT (key_id, token) DO NOTHING RETURNING job_id
""")
_FIND = text("SELECT fingerprint, job_id FROM idempotency WHERE key_id = :key_id AND token = :token")
