"""Idempotency keys: the same Idempotency-Key and body return the same job, also for concurrent requests.

Except for a job that was cancelled because its waiter had disconnected: the repeated request makes a new job.
"""

from __future__ import annotations

from uuid import UUID

from psycopg.errors import LockNotAvailable
from sqlalchemy import text

from models.database.db import Transaction
from models.jobs import waiters
from models.platform.errors import Conflict, IdempotencyMismatch, Invalid

MAX_TOKEN_CHARS = 255

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


def claim_token(session: Transaction, key_id: int, token: str, *, digest: bytes, job_id: UUID) -> UUID:
    """Returns job_id if this request is the first with its token, otherwise the id of the first one's job.

    Waits for a concurrent request with the token until that one commits. digest: SHA-256 of the request.
    Raises IdempotencyMismatch for another digest, Conflict if the wait takes too long, Invalid for a token that is not 1 to 255 visible
    ASCII characters.
    """
    if not 1 <= len(token) <= MAX_TOKEN_CHARS or not all("!" <= char <= "~" for char in token):
        raise Invalid("An Idempotency-Key is 1 to 255 visible ASCII characters.", param="Idempotency-Key")
    params = {"key_id": key_id, "token": token, "fingerprint": digest, "job_id": job_id}
    try:
        if session.execute(_ADD, params).one_or_none() is not None:
            return job_id
        while True:
            earlier = session.execute(_FIND, params).one()
            if earlier.fingerprint != digest:
                raise IdempotencyMismatch(param="Idempotency-Key")
            if not earlier.is_abandoned:
                return UUID(str(earlier.job_id))
            # If a concurrent request replaced the job first, the loop returns that one's job.
            if session.execute(_REPLACE, {**params, "earlier": earlier.job_id}).one_or_none() is not None:
                return job_id
    except LockNotAvailable as error:
        raise Conflict(retry_after_s=1) from error
