"""The same Idempotency-Key and body give the same job, however often and however many at once.

Except for a job that nowserving cancelled because its reader had left: the request that comes again gets a new one.
"""

from __future__ import annotations

from uuid import UUID

from psycopg.errors import LockNotAvailable
from sqlalchemy import text

from models.database.db import Transaction
from models.jobs import waiters
from models.platform.errors import Conflict, IdempotencyMismatch, Invalid

TOKEN_MOST_CHARS = 255


def claim_token(session: Transaction, key_id: int, token: str, *, digest: bytes, job_id: UUID) -> UUID:
    """`job_id` when this token is new or its job was abandoned, else the job it made before.

    A concurrent first waits here until the other has committed.

    digest: SHA-256 of the request. Raises IdempotencyMismatch for another one, Conflict when the other takes too long, Invalid for a token
    that is not 1 to 255 visible ASCII characters.
    """
    if not 1 <= len(token) <= TOKEN_MOST_CHARS or not all("!" <= char <= "~" for char in token):
        raise Invalid("An Idempotency-Key is 1 to 255 visible ASCII characters.", param="Idempotency-Key")
    wanted = {"key_id": key_id, "token": token, "fingerprint": digest, "job_id": job_id}
    try:
        if session.execute(_ADD, wanted).one_or_none() is not None:
            return job_id
        while True:
            earlier = session.execute(_FIND, wanted).one()
            if earlier.fingerprint != digest:
                raise IdempotencyMismatch(param="Idempotency-Key")
            if not earlier.is_abandoned:
                return UUID(str(earlier.job_id))
            # A concurrent request may have replaced it: then its job is the one.
            if session.execute(_REPLACE, {**wanted, "earlier": earlier.job_id}).one_or_none() is not None:
                return job_id
    except LockNotAvailable as error:
        raise Conflict(retry_after_s=1) from error


_ADD = text("""
    INSERT INTO idempotency (key_id, token, fingerprint, job_id) VALUES (:key_id, :token, :fingerprint, :job_id)
    ON CONFLICT (key_id, token) DO NOTHING RETURNING job_id
""")
_FIND = text(f"""
    SELECT idempotency.fingerprint, idempotency.job_id, coalesce({waiters.IS_ABANDONED}, false) AS is_abandoned
    FROM idempotency LEFT JOIN job ON job.id = idempotency.job_id
    WHERE idempotency.key_id = :key_id AND token = :token
""")
_REPLACE = text("""
    UPDATE idempotency SET job_id = :job_id, created_at = now()
    WHERE key_id = :key_id AND token = :token AND job_id = :earlier RETURNING job_id
""")
